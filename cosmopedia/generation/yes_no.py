"""Questions to which the generation model answers Yes or No: the grammar, and what an answer means."""

from cosmopedia.core.errors import ClusterError
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Sampling

VERDICTS = {"yes": "yes", "no": "no"}


def judge_sampling(sampling: Sampling, model: GenerationModel) -> Sampling:
    """The sampling with a grammar of Yes and No. A model whose chat template opens a thought ends it first."""
    thought = r"</think>\n\n" if model.opens_thought else ""
    return Sampling.model_validate(sampling.model_dump() | {"grammar": f"{thought}(Yes|No)"})


def verdict(text: str) -> str | None:
    """ "yes", "no", or None for another answer: of a server that takes no grammar."""
    return VERDICTS.get(text.strip(" \n.*\"'").lower())


def check_result(result: Completion | Failure) -> None:
    """`ClusterError` when another run could get an answer where this one got none."""
    if isinstance(result, Failure) and not result.lasting:
        raise ClusterError(
            f"a question got no answer from the servers ({result.reason}, {result.detail}); run it again: the answers"
            " that came are in the store"
        )
