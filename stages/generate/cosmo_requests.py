"""The requests of generate in this checkout, for `cosmo store`; the pilot's are among them."""

from pathlib import Path

from cosmopedia.generation.complete import StageRequests
from cosmopedia.generation.model import GenerationModel
from stages.generate.__main__ import all_requests, settings


def stage_requests(prompts: list[Path] | None = None) -> StageRequests:
    """The requests of the prompts as they are now, or of other files of prompts."""
    params, model = settings(), GenerationModel.read()
    return StageRequests("generate", all_requests(params, model, prompts), model, params.sampling)
