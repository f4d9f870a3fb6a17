"""What the generation model is asked about a pair."""

from pathlib import Path
from string import Template

from cosmopedia.generation.template import read_template

TEMPLATE = Path("curation/paraphrase.txt")


def read_judge_template() -> Template:
    """The judge's template. `ConfigError` for a missing file or a wrong slot."""
    return read_template(TEMPLATE, {"question", "answer", "passage"})


def judge_prompt(template: Template, question: str, answer: str, passage: str) -> str:
    """The prompt for a pair, before any chat template. A passage is on one line."""
    return template.substitute(question=question, answer=answer, passage=" ".join(passage.split()))
