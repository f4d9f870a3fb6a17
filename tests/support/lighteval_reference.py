"""lighteval's own run over BENCHMARK rows: what the scores of the stage `evaluate` are compared with.

lighteval 0.13's own hellaswag, piqa, siqa, openbookqa, boolq and mmlu match letters; here each choice is scored as a
continuation of the query, as in Cosmopedia's `evaluation/lighteval_tasks.py`.
"""

import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PREFIX = "cosmo_"  # lighteval refuses the names of its own tasks
QUIETENED = ("lighteval", "datasets", "accelerate", "transformers", "git", "huggingface_hub")


def run_lighteval(
    model: Path, items: dict[str, list[dict[str, Any]]], scratch: Path
) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """(lighteval's scores by task, the log-probabilities of an item's choices by item id)."""
    quiet_offline()
    for name in QUIETENED:
        logging.getLogger(name).setLevel(logging.ERROR)
    import torch

    gradients = torch.is_grad_enabled()
    os.environ["HF_DATASETS_CACHE"] = f"{scratch}/datasets"
    for task, rows in items.items():
        folder = scratch / "tasks" / task
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "validation.parquet")
    pipeline = _pipeline(model, list(items), scratch)
    pipeline.evaluate()
    results, details = pipeline.get_results()["results"], pipeline.get_details()
    torch.set_grad_enabled(gradients)  # lighteval switches them off for the whole process
    scores = {task: dict(results[f"{PREFIX}{task}:0"]) for task in items}
    entries = [entry for task in items for entry in details[f"{PREFIX}{task}|0"]]
    return scores, {e.doc.specific["item_id"]: [float(v) for v in e.model_response.logprobs] for e in entries}


def quiet_offline() -> None:
    """Make importing and running lighteval quiet and offline.

    lighteval downloads a pickle when its tinyBenchmarks module is imported, and nltk's sentence splitter.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "LIGHTEVAL_DISABLE_TQDM": "1"}
    import nltk

    nltk.download = lambda *_, **__: False
    silent: Any = ModuleType("lighteval.tasks.tasks.tiny_benchmarks")
    silent.TASKS_TABLE = []
    sys.modules[silent.__name__] = silent


def _pipeline(model: Path, tasks: list[str], scratch: Path) -> Any:
    import datasets
    from lighteval.logging import info_loggers
    from lighteval.logging.evaluation_tracker import EvaluationTracker
    from lighteval.models.transformers import transformers_model
    from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters

    datasets.disable_progress_bars()
    # lighteval asks git for the revision of the part of its own path before "src", and fails where there is none.
    info_loggers.git.Repo = lambda *_, **__: None  # type: ignore[misc]
    return Pipeline(
        tasks=",".join(f"{PREFIX}{task}|0" for task in tasks),
        pipeline_parameters=PipelineParameters(
            launcher_type=ParallelismManager.NONE,
            custom_tasks_directory=_task_module(tasks, scratch / "tasks"),  # type: ignore[arg-type]
        ),
        evaluation_tracker=EvaluationTracker(output_dir=str(scratch / "out"), save_details=False),
        model_config=transformers_model.TransformersModelConfig(
            model_name=str(model.resolve()),
            batch_size=32,
            device="cpu",
            dtype="float32",
            override_chat_template=False,
            cache_dir=str(scratch / "cache"),
        ),
    )


def _task_module(tasks: list[str], folder: Path) -> ModuleType:
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
        specific = {"item_id": item["item_id"]}
        return Doc(item["query"], item["choices"], item["gold"], task_name=task_name, specific=specific)

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
