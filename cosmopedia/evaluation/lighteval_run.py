"""lighteval's run over one model, for evaluate.harness: lighteval."""

import contextlib
import glob
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.core.files import discard, runs
from cosmopedia.evaluation.lighteval_tasks import PREFIX, quiet_offline, task_module
from cosmopedia.execution.progress import track

QUIETENED = ("lighteval", "datasets", "accelerate", "transformers", "git", "huggingface_hub")


def run_lighteval(
    model: Path, items: dict[str, list[dict[str, Any]]], dtype: str, batch_size: int = 32
) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """Score BENCHMARK rows by task; (lighteval's scores by task, nats of an item's choices by item id).

    Everything that lighteval writes goes to a folder that is deleted: it caches predictions by configuration, so a
    lasting cache would return the scores of older weights.
    """
    quiet_offline()
    for name in QUIETENED:
        logging.getLogger(name).setLevel(logging.ERROR)
    import torch

    gradients = torch.is_grad_enabled()
    with _scratch() as scratch:
        os.environ["HF_DATASETS_CACHE"] = f"{scratch}/datasets"
        for task, rows in items.items():
            folder = Path(scratch) / "tasks" / task
            folder.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / "validation.parquet")
        pipeline = _pipeline(model, list(items), Path(scratch), dtype, batch_size)
        pipeline.evaluate()
        results, details = pipeline.get_results()["results"], pipeline.get_details()
    torch.set_grad_enabled(gradients)  # lighteval switches them off for the whole process
    scores = {task: dict(results[f"{PREFIX}{task}:0"]) for task in items}
    entries = [entry for task in items for entry in details[f"{PREFIX}{task}|0"]]
    return scores, {e.doc.specific["item_id"]: [float(v) for v in e.model_response.logprobs] for e in entries}


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder for what lighteval writes; those that killed processes of this host left are removed.

    In the temporary folder, since `datasets` takes some characters of a checkout's path for wildcards.
    """
    prefix = f"cosmopedia-lighteval-{socket.gethostname()}-"
    for left in Path(tempfile.gettempdir()).glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            if left.stat().st_uid == os.getuid() and not runs(left.name.removeprefix(prefix).partition("-")[0]):
                discard(left)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-") as folder:
        yield folder


def _pipeline(model: Path, tasks: list[str], scratch: Path, dtype: str, batch_size: int) -> Any:
    import datasets
    from lighteval.logging import info_loggers
    from lighteval.logging.evaluation_tracker import EvaluationTracker
    from lighteval.models.transformers import transformers_model
    from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters

    for name in QUIETENED:
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers_model.tqdm = _tracked  # type: ignore[assignment]
    # lighteval asks git for the revision of the part of its own path before "src", and fails where there is none.
    info_loggers.git.Repo = lambda *_, **__: None  # type: ignore[misc]
    config = transformers_model.TransformersModelConfig(
        model_name=str(_linked(model, scratch / "model")),
        batch_size=batch_size,
        device="cuda" if transformers_model.torch.cuda.is_available() else "cpu",
        dtype=dtype,
        override_chat_template=False,
        cache_dir=str(scratch / "cache"),
    )
    parameters = PipelineParameters(
        launcher_type=ParallelismManager.NONE,
        custom_tasks_directory=task_module(tasks, scratch / "tasks"),  # type: ignore[arg-type]
    )
    pipeline = Pipeline(
        tasks=",".join(f"{PREFIX}{task}|0" for task in tasks),
        pipeline_parameters=parameters,
        evaluation_tracker=EvaluationTracker(output_dir=str(scratch / "out"), save_details=False),
        model_config=config,
    )
    # lighteval takes the tasks in the order of a set, another one in each process; batches follow it, and with them
    # the last digits of log-probabilities.
    for docs in pipeline.sampling_docs.values():
        docs.sort(key=lambda doc: doc.specific["item_id"])
    return pipeline


def _linked(model: Path, folder: Path) -> Path:
    """A folder of links to the model's files.

    lighteval puts its cache into the model's folder when that is an absolute path, whatever `cache_dir` says, and
    `models/export` belongs to DVC.
    """
    folder.mkdir()
    for file in model.resolve().iterdir():
        (folder / file.name).symlink_to(file)
    return folder.resolve()


def _tracked(items: Any, **_: Any) -> Any:
    """In place of lighteval's tqdm: batches of items as our progress, the single outer round as it is."""
    return track(items, "evaluate", len(items), "batches") if hasattr(items, "__len__") else items
