"""What label asks a model in this checkout, for `cosmo store`."""

from cosmopedia.generation.complete import StageRequests
from cosmopedia.generation.model import GenerationModel
from cosmopedia.params import load
from stages.label.__main__ import LabelParams, questions


def stage_requests() -> StageRequests:
    """The requests of the clusters as they are now."""
    params, model = load("label", LabelParams), GenerationModel.read()
    return StageRequests("label", questions(params, model).requests, model, params.sampling)
