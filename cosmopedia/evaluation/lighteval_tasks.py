"""The cloze tasks, for lighteval, from `data/benchmarks/<task>.parquet`.

lighteval 0.13's own hellaswag, piqa, siqa, openbookqa, boolq and mmlu match generated letters; Cosmopedia was
evaluated in the cloze form (`evaluation/lighteval_tasks.py` there): each choice is scored as a continuation of the
query by its log-probability (`acc`), or by that divided by its characters without the leading space (`acc_norm`).
The `benchmarks` stage gives every task the same form: query, choices with their leading space, gold.
"""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "cosmo_"  # lighteval refuses the names of its own tasks


def quiet_offline() -> None:
    """Make importing and running lighteval quiet and offline. Call before anything of Hugging Face is imported.

    lighteval downloads a pickle when its tinyBenchmarks module is imported, and nltk's sentence splitter; the cloze
    tasks need neither.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "LIGHTEVAL_DISABLE_TQDM": "1"}
    import nltk

    nltk.download = lambda *_, **__: False
    silent: Any = ModuleType("lighteval.tasks.tasks.tiny_benchmarks")
    silent.TASKS_TABLE = []
    sys.modules[silent.__name__] = silent


def task_module(tasks: list[str], folder: Path) -> ModuleType:
    """A module of lighteval tasks, named `cosmo_<task>`, that read `folder`/<task>/validation.parquet."""
    import numpy as np
    from lighteval.metrics.metrics_sample import LoglikelihoodAcc
    from lighteval.metrics.normalizations import LogProbCharNorm
    from lighteval.metrics.utils.metric_utils import SampleLevelMetric
    from lighteval.tasks.lighteval_task import LightevalTaskConfig
    from lighteval.tasks.requests import Doc, SamplingMethod

    def metric(name: str, normalisation: Any) -> SampleLevelMetric:
        return SampleLevelMetric(
            metric_name=name,
            sample_level_fn=LoglikelihoodAcc(logprob_normalization=normalisation),
            category=SamplingMethod.LOGPROBS,
            corpus_level_fn=np.mean,
            higher_is_better=True,
        )

    def document(item: dict[str, Any], task_name: str = "") -> Doc:
        return Doc(
            task_name=task_name,
            query=item["query"],
            choices=item["choices"],
            gold_index=item["gold"],
            specific={"item_id": item["item_id"]},
        )

    module: Any = ModuleType("cosmopedia_tasks")
    module.TASKS_TABLE = [
        LightevalTaskConfig(
            name=PREFIX + task,
            prompt_function=document,
            hf_repo=str(folder / task),
            hf_subset="default",
            hf_avail_splits=["validation"],
            evaluation_splits=["validation"],
            metrics=[metric("acc", None), metric("acc_norm", LogProbCharNorm(ignore_first_space=True))],
        )
        for task in tasks
    ]
    return module
