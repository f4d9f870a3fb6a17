"""What the trainings of this checkout would take, for `cosmo plan`."""

from cosmopedia.execution.training_forecast import TrainingForecast, forecast
from stages.train.__main__ import TOKENS, settings
from stages.train.seed_run import training_folder
from stages.train.windows import read_corpus


def training_forecast(corpus_known: bool) -> TrainingForecast:
    """Of the seeds that the store does not have; of all of them where the corpus will be another one."""
    params = settings()
    recipes = [params.recipe(seed) for seed in params.seeds]
    if corpus_known:
        corpus = read_corpus(TOKENS)
        folders = {one.seed: training_folder(one, params.kept_steps, corpus) for one in recipes}
        recipes = [one for one in recipes if not (folders[one.seed] / "finished/training.json").is_file()]
    return forecast(params.recipe(params.seeds[0]), len(recipes), len(params.kept_steps))
