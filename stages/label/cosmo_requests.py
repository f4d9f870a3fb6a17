"""The requests of label in this checkout, for `cosmo store`."""

from cosmopedia.generation.complete import StageRequests
from cosmopedia.generation.model import GenerationModel
from stages.label.__main__ import Labelling, settings


def stage_requests(further: bool = True) -> StageRequests:
    """The requests of the clusters as they are now; with those of further draws, which only some clusters need."""
    params, model = settings(), GenerationModel.read()
    labelling = Labelling(params, model)
    draws = range(max(params.draws, params.max_draws if further else 0))
    requests = labelling.requests((cluster, draw) for cluster in labelling.clusters.rows for draw in draws)
    return StageRequests("label", requests, model, labelling.sampling)
