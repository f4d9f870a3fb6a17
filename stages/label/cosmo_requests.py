"""The requests of label in this checkout, for `cosmo store`."""

from cosmopedia.generation.complete import StageRequests
from cosmopedia.generation.model import GenerationModel
from stages.label.__main__ import labelling_requests, settings


def stage_requests() -> StageRequests:
    """The requests of the clusters as they are now."""
    params, model = settings(), GenerationModel.read()
    _, requests = labelling_requests(params, model)
    return StageRequests("label", requests, model, params.sampling)
