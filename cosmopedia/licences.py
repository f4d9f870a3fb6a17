"""Licences: what each asks, which one texts made from several may have, and what a model's terms ask of its texts.

Not legal advice: a table by which a card does not promise more than its sources allow. A licence or a model that is
not in it counts as unknown.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cosmopedia.corpus.components import SYNTHETIC

CREATIVE_COMMONS = "https://creativecommons.org/licenses"
LLAMA = "https://www.llama.com"


@dataclass(frozen=True)
class Licence:
    """One licence. `binds`: what is made from its texts must have the same licence, or these terms."""

    spdx: str  # as source rows have it; for a model's own terms their name
    hub: str  # `license` of a card on the hub
    url: str
    attribution: bool = True
    share_alike: bool = False
    non_commercial: bool = False
    conditions: str = ""  # of a model's terms, on what is made with its texts
    forbids: str = ""  # why texts made from it may not be passed on
    forbids_training: str = ""  # why no other model may be trained on them

    @property
    def binds(self) -> bool:
        return self.share_alike or self.non_commercial or bool(self.conditions)

    @property
    def family(self) -> str:
        """The name without Creative Commons' version: adaptations may have a later one of the same licence."""
        return re.sub(r"-\d\.\d$", "", self.spdx) if self.spdx.startswith("CC-") else self.spdx


def _cc(kind: str, version: str, **terms: bool | str) -> Licence:
    url = f"{CREATIVE_COMMONS}/{kind}/{version}/"
    return Licence(f"CC-{kind.upper()}-{version}", f"cc-{kind}-{version}", url, **terms)  # type: ignore[arg-type]


def _llama(version: str, path: str, forbids_training: str = "") -> Licence:
    name = f"Llama {version} Community License"
    conditions = 'the name of a model trained on these texts begins with "Llama", and "Built with Llama" is shown'
    if forbids_training:
        conditions = "these texts may be used to improve no other large language model than Llama"
    return Licence(
        name, f"llama{version}", f"{LLAMA}/{path}", conditions=conditions, forbids_training=forbids_training
    )


NO_ADAPTATION = "it allows no adaptation to be shared"
NO_OTHER_MODEL = "its terms allow texts of the model to improve no other large language model"
# From the freest to the strictest.
LICENCES = (
    Licence("CC0-1.0", "cc0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/", attribution=False),
    Licence("PDDL-1.0", "pddl", "https://opendatacommons.org/licenses/pddl/1-0/", attribution=False),
    Licence("Unlicense", "unlicense", "https://unlicense.org/", attribution=False),
    Licence("MIT", "mit", "https://opensource.org/license/mit"),
    Licence("BSD-2-Clause", "bsd-2-clause", "https://opensource.org/license/bsd-2-clause"),
    Licence("BSD-3-Clause", "bsd-3-clause", "https://opensource.org/license/bsd-3-clause"),
    Licence("Apache-2.0", "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    Licence("CDLA-Permissive-2.0", "cdla-permissive-2.0", "https://cdla.dev/permissive-2-0/"),
    Licence("ODC-By-1.0", "odc-by", "https://opendatacommons.org/licenses/by/1-0/"),
    *(_cc("by", version) for version in ("2.0", "2.5", "3.0", "4.0")),
    *(_cc("by-sa", version, share_alike=True) for version in ("3.0", "4.0")),
    Licence("ODbL-1.0", "odbl", "https://opendatacommons.org/licenses/odbl/1-0/", share_alike=True),
    Licence("GPL-3.0-only", "gpl-3.0", "https://www.gnu.org/licenses/gpl-3.0.html", share_alike=True),
    *(_cc("by-nc", version, non_commercial=True) for version in ("2.0", "3.0", "4.0")),
    *(_cc("by-nc-sa", version, share_alike=True, non_commercial=True) for version in ("2.0", "3.0", "4.0")),
    _cc("by-nd", "4.0", forbids=NO_ADAPTATION),
    *(_cc("by-nc-nd", version, non_commercial=True, forbids=NO_ADAPTATION) for version in ("3.0", "4.0")),
    _llama("2", "llama2/license", NO_OTHER_MODEL),
    _llama("3", "llama3/license", NO_OTHER_MODEL),
    _llama("3.1", "llama3_1/license"),
    _llama("3.2", "llama3_2/license"),
    _llama("3.3", "llama3_3/license"),
    _llama("4", "llama4/license"),
)
BY_NAME = {name.lower(): licence for licence in LICENCES for name in (licence.spdx, licence.hub)}
# Of a model's name, with or without the owner's; what comes after is a size, "Instruct", a quantisation.
MODELS = (
    (r"Mixtral-8x(7|22)B\b", "Apache-2.0"),
    (r"Mistral-7B\b", "Apache-2.0"),
    (r"SmolLM[23]?\b", "Apache-2.0"),
    (r"OLMo-", "Apache-2.0"),
    (r"Qwen2\.5-(0\.5|1\.5|7|14|32)B\b", "Apache-2.0"),
    (r"Qwen3-", "Apache-2.0"),
    (r"phi-(3|3\.5|4)\b", "MIT"),
    (r"(Meta-)?Llama-2-", "llama2"),
    (r"(Meta-)?Llama-3-", "llama3"),
    (r"(Meta-)?Llama-3\.1-", "llama3.1"),
    (r"Llama-3\.2-", "llama3.2"),
    (r"Llama-3\.3-", "llama3.3"),
    (r"Llama-4-", "llama4"),
    (r"cosmopedia-smoke$", "CC0-1.0"),  # trained here, on texts written for this repository
)


def licence(name: str | None) -> Licence | None:
    """The licence of a name, SPDX's or the hub's in any case; None for one that is not in the table."""
    return BY_NAME.get((name or "").strip().lower())


def terms_of_model(model: str) -> Licence | None:
    """The terms of a generation model by its id; None for one that is not in the table."""
    name = model.rpartition("/")[2]
    return next((BY_NAME[terms.lower()] for form, terms in MODELS if re.match(form, name, re.IGNORECASE)), None)


@dataclass(frozen=True)
class Terms:
    """What texts made from several licences, by several models, come under."""

    of_rows: tuple[str, ...]  # licences as the rows have them, "" for none
    of_models: tuple[str, ...]  # models' ids

    @cached_property
    def known(self) -> tuple[Licence, ...]:
        """The licences and models' terms that are in the table, from the freest to the strictest."""
        found = {licence(name) for name in self.of_rows} | {terms_of_model(model) for model in self.of_models}
        return tuple(one for one in LICENCES if one in found)

    @cached_property
    def unknown(self) -> tuple[str, ...]:
        """Licences and models that are not in the table, as the rows have them."""
        rows = [name for name in self.of_rows if licence(name) is None]
        return (*rows, *(model for model in self.of_models if terms_of_model(model) is None))

    @cached_property
    def strictest(self) -> Licence | None:
        """The licence for the whole; None when one is unknown or forbids it, or two bind to different terms."""
        families = {one.family for one in self.known if one.binds}
        if not self.known or self.unknown or len(families) > 1 or any(one.forbids for one in self.known):
            return None
        return self.known[-1]

    @property
    def share_alike(self) -> tuple[Licence, ...]:
        return tuple(one for one in self.known if one.share_alike)

    def refusals(self, training: bool = False) -> dict[str, str]:
        """By licence or model, why the texts may not be passed on, or with `training` no model trained on them."""
        refused = {name or "(none)": "it is not known what it allows" for name in self.unknown}
        for one in self.known:
            if why := one.forbids or (training and one.forbids_training):
                refused[one.spdx] = str(why)
        return refused

    def why_other(self) -> str:
        """Why no one licence fits; "" when one does."""
        if self.strictest:
            return ""
        reasons = [f"{name}: {why}" for name, why in self.refusals().items()]
        if binding := [one.spdx for one in self.known if one.binds and not one.forbids]:
            reasons += [f"{' and '.join(binding)} bind to different terms"] if len(binding) > 1 else []
        return "; ".join(reasons)


def terms(of_rows: Iterable[str | None], of_models: Iterable[str]) -> Terms:
    """The terms of texts that quote rows of these licences and were written by these models."""
    return Terms(tuple(sorted({name or "" for name in of_rows})), tuple(sorted(set(of_models))))


def model_terms(generator: dict[str, Any], components: dict[str, dict[str, Any]]) -> Terms:
    """The terms of a trained model: of the rows behind what it was trained on, and of the generator if that wrote any.

    `generator` is generator.json, `components` those of metrics/mix.json.
    """
    licences = (name for component in components.values() for name in component.get("licences", [None]))
    return terms(licences, [generator["model"]] if SYNTHETIC in components else [])


def front_matter(whole: Terms) -> dict[str, str]:
    """A card's `license`, as the hub reads it."""
    if whole.strictest:
        return {"license": whole.strictest.hub}
    return {"license": "other", "license_name": "several"}
