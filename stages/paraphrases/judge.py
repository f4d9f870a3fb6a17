"""What the generation model is asked about a pair, and what its answer means."""

from pathlib import Path
from string import Template

from cosmopedia.errors import ClusterError
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Sampling
from cosmopedia.generation.template import read_template

TEMPLATE = Path("curation/paraphrase.txt")
VERDICTS = {"yes": "yes", "no": "no"}


def read_judge_template() -> Template:
    """The judge's template. `ConfigError` for a missing file or a wrong slot."""
    return read_template(TEMPLATE, {"question", "answer", "passage"})


def judge_sampling(sampling: Sampling, model: GenerationModel) -> Sampling:
    """The sampling with a grammar of Yes and No. A model whose chat template opens a thought ends it first."""
    thought = r"</think>\n\n" if model.opens_thought else ""
    return Sampling.model_validate(sampling.model_dump() | {"grammar": f"{thought}(Yes|No)"})


def judge_prompt(template: Template, question: str, answer: str, passage: str) -> str:
    """The prompt for a pair, before any chat template. A passage is on one line."""
    return template.substitute(question=question, answer=answer, passage=" ".join(passage.split()))


def verdict(text: str) -> str | None:
    """ "yes", "no", or None for another answer: of a server that takes no grammar."""
    return VERDICTS.get(text.strip(" \n.*\"'").lower())


def check_result(result: Completion | Failure) -> None:
    """`ClusterError` when another run could get an answer where this one got none."""
    if isinstance(result, Failure) and not result.lasting:
        raise ClusterError(
            f"a pair got no answer from the servers ({result.reason}, {result.detail}); run it again: the answers that"
            " came are in the store"
        )
