"""The model card: card.md, filled in with what training and the generator say of themselves.

No revision, time or machine: the same weights are the same out. MLflow has those, under the two hashes of the card.
"""

from pathlib import Path
from string import Template
from typing import Any

import yaml

TEMPLATE = Path(__file__).with_name("card.md")


def model_card(training: dict[str, Any], generator: dict[str, Any]) -> str:
    """README.md of an exported folder; `training` is training.json, `generator` generator.json."""
    recipe = training["recipe"]
    facts = {name: value for name, value in training.items() if name != "recipe"} | recipe["architecture"]
    facts |= {"sequence": recipe["sequence"], "seed": recipe["seed"]}
    facts["recipe_text"] = yaml.safe_dump(recipe, sort_keys=False)
    facts |= {"generator": generator["model"], "generator_revision": generator["revision"]}
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute({name: shown(value) for name, value in facts.items()})


def shown(value: Any) -> str:
    """A value for people; a dash for what is not there."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
