"""What a prompt gave the model to write from: what its slots were filled with, without the template's own words."""

import re
from pathlib import Path

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.text import read_text

SLOT = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[a-z_]+)|\{(?P<braced>[a-z_]+)\})")
QUOTED = frozenset({"extract", "references"})  # slots that hold text of a source: such prompts can be judged


class PromptTemplate:
    """A template of prompts/, cut at its slots."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            lines = read_text(self.path).splitlines(keepends=True)
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} is missing, though prompts were made from it; restore it with git"
            ) from None
        while lines and lines[0].startswith("#"):
            lines.pop(0)
        self.slots: list[str] = []
        self.literals = [""]
        last, body = 0, "".join(lines).strip()
        for match in SLOT.finditer(body):
            self.literals[-1] += body[last : match.start()]
            last = match.end()
            if match["dollar"]:
                self.literals[-1] += "$"
            else:
                self.slots.append(match["name"] or match["braced"])
                self.literals.append("")
        self.literals[-1] += body[last:]

    @property
    def quotes(self) -> bool:
        """Whether its prompts have text of a source in them."""
        return not QUOTED.isdisjoint(self.slots)

    def source_of(self, prompt: str) -> str:
        """What the slots were filled with, a line each. `DataError` for a prompt of another template.

        Where a value contains the words behind its slot, it is cut between the two slots; together they are the same.
        """
        first, *middle, last = self.literals if len(self.literals) > 1 else [*self.literals, ""]
        if not (prompt.startswith(first) and prompt[len(first) :].endswith(last)):
            raise self._other(prompt)
        place, end, values = len(first), len(prompt) - len(last), []
        for literal in middle:
            found = prompt.find(literal, place, end)
            if found < 0:
                raise self._other(prompt)
            values.append(prompt[place:found])
            place = found + len(literal)
        return "\n".join([*values, prompt[place:end]]).strip()

    def _other(self, prompt: str) -> DataError:
        return DataError(
            f"{self.path}: the prompt that begins {prompt[:60]!r} was not made from this template as it is now; run"
            " prompts and generate again (dvc repro generate)"
        )
