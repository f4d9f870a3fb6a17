"""The model card: card.md, filled in with what training and the generator say of themselves.

No revision, time or machine: the same weights are the same out. MLflow has those, under the two hashes of the card.
"""

from pathlib import Path
from string import Template
from typing import Any

import yaml

from cosmopedia.cards import escaped, head, licence_text, model_rows, rows
from cosmopedia.corpus.components import SYNTHETIC
from cosmopedia.licences import front_matter, model_terms

TEMPLATE = Path(__file__).with_name("card.md")
HEAD = {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["synthetic-data", "cosmopedia"],
}
CORPUS = """a synthetic corpus{share}: textbooks, blog posts, WikiHow articles,
stories and forum posts that **{model}** (revision `{revision}`) wrote"""


def texts(generator: dict[str, Any], shares: dict[str, float]) -> str:
    """What a model was trained on, in words; `shares`: of each component of the mix."""
    natural = [f"{name} text ({share:.0%})" for name, share in shares.items() if name != SYNTHETIC]
    if SYNTHETIC not in shares:
        return ", ".join(natural)
    share = f" ({shares[SYNTHETIC]:.0%})" if natural else ""
    return ", ".join([*natural, CORPUS.format(share=share, **generator)])


def model_card(training: dict[str, Any], generator: dict[str, Any], components: dict[str, dict[str, Any]]) -> str:
    """README.md of an exported folder; `training` is training.json, `generator` generator.json, and `components` those
    of metrics/mix.json. The scores come after export: `cosmo publish model` adds them."""
    recipe = training["recipe"]
    facts = {name: value for name, value in training.items() if name != "recipe"} | recipe["architecture"]
    facts |= {"sequence": recipe["sequence"], "seed": recipe["seed"]}
    facts["recipe_text"] = yaml.safe_dump(recipe, sort_keys=False)
    written_by = {"model": escaped(generator["model"]), "revision": generator["revision"]}
    shares = {name: component["share"] for name, component in components.items()}
    whole = model_terms(generator, components)
    facts |= {
        "texts": texts(written_by, shares),
        "head": head(HEAD | front_matter(whole)),
        "licence": licence_text(whole),
    }
    writers = [(generator["model"], generator["revision"])] if SYNTHETIC in components else []
    rows_of = [(name, ", ".join(component.get("licences", [])) or "unknown") for name, component in components.items()]
    facts |= {"licences": rows(rows_of), "models": model_rows(writers)}
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute({name: shown(value) for name, value in facts.items()})


def shown(value: Any) -> str:
    """A value for people; a dash for what is not there."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
