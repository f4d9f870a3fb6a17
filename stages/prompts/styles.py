"""The section `prompts` of the parameters: the styles, presets and draws that decide which prompts there are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params
from stages.prompts.slots import SLOTS

Preset = Literal["cosmopedia", "grid", "rephrase", "taxonomy", "grounded"]
WithoutPassage = Literal["plain", "skip", "skip_everywhere"]
STYLE = re.compile(r"\w+")  # a cell's files are named after it


class Style(Params):
    """One cell of the prompt grid."""

    format: str  # as the published dataset names it; ready-made prompts have their own, and audience
    audience: str
    share: float = Field(ge=0, le=1)  # of the source's rows; 0 switches the style off


class PromptsParams(Params):
    """What is asked, of whom, and how often."""

    seed: int
    topic_probability: float = Field(ge=0, le=1)
    near_duplicate: float | None = Field(ge=0.5, le=1)  # similarity from which the later of two rows goes; None: off
    goal_rate: float = Field(ge=0, le=1)  # duplicates among a run's prompts above which the stage warns
    without_passage: WithoutPassage  # what rows get for which retrieve has no passage
    extract_chars: int = Field(ge=40)
    per_cell: int | None = Field(ge=1)
    presets: list[Preset] = Field(min_length=1)
    styles: dict[Preset, dict[str, dict[str, Style]]]

    def chosen(self) -> dict[str, dict[str, Style]]:
        """Source -> style -> the style, sorted, of the chosen presets; styles of share 0 are left out.

        `ConfigError` for an unknown source, a style that two presets have, or when nothing is left.
        """
        for _, source, name, _ in self.listed():
            owners = [preset for preset, sources in self.styles.items() if name in sources.get(source, {})]
            if len(owners) > 1:
                both = " and ".join(owners)
                raise ConfigError(f"prompts.styles has {source}.{name} in {both}; rename one, and its template")
        found: dict[str, dict[str, Style]] = {}
        for preset, source, name, style in sorted(self.listed(), key=lambda entry: entry[1:3]):
            if preset in self.presets and style.share > 0:
                found.setdefault(source, {})[name] = style
        if not found:
            raise ConfigError(f"no style of the presets {', '.join(self.presets)} has a share above 0; switch one on")
        return found

    def listed(self) -> Iterator[tuple[Preset, str, str, Style]]:
        """(preset, source, style's name, style) of every style. `ConfigError` for an unknown source or a bad name."""
        for preset, sources in self.styles.items():
            for source, styles in sources.items():
                if source not in SLOTS and not Path("prompts", source).is_dir():
                    known = ", ".join(SLOTS)
                    raise ConfigError(
                        f"prompts.styles.{preset} names the unknown source {source!r}; known sources: {known}"
                    )
                for name, style in styles.items():
                    if not STYLE.fullmatch(name):
                        raise ConfigError(
                            f"prompts.styles.{preset}.{source}: {name!r} cannot name files; use letters, digits and _"
                        )
                    yield preset, source, name, style
