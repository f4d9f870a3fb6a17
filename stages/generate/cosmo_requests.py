"""The requests of generate in this checkout, for `cosmo store`; the pilot's are among them."""

from cosmopedia.generation.complete import StageRequests
from cosmopedia.generation.model import GenerationModel
from cosmopedia.params import load
from stages.generate.__main__ import GenerateParams, all_requests


def stage_requests() -> StageRequests:
    """The requests of the prompts as they are now."""
    params, model = load("generate", GenerateParams), GenerationModel.read()
    return StageRequests("generate", all_requests(params, model), model, params.sampling)
