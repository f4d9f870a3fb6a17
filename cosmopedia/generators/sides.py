"""What several generators made of the same prompts: one cell at a time, over the completion ids that all have tried.

An id is made of the source row, style, audience and sample number and of nothing else: it is the same whichever model
writes. A failed request counts as tried. Of a cell the first ids are measured: an id is a hash, so these are drawn at
random.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from cosmopedia.dataset_diff.compare import cells_of
from cosmopedia.execution.budget import rates_path
from cosmopedia.execution.compute import compute_path
from cosmopedia.execution.rates import read_rates
from cosmopedia.execution.versions import Version
from cosmopedia.generation.requests import Completion, Failure

ID = "completion_id"
COLUMNS = [ID, "prompt", "text", "text_token_length", "finish_reason"]
GENERATED, KEPT = "generate", "decontaminate"
Result = Completion | Failure
Tried = tuple[str, Result]  # a prompt and what came of it
Measure = Callable[[Sequence[Tried]], dict[str, Any]]
# The stages that say how far a text can be believed, whose figures are shown where a version has them.
TRUST = {"faithful": "metrics/faithful.json", "selfcheck": "metrics/selfcheck.json"}


@dataclass(frozen=True)
class Generator:
    """One version of the corpus, and the model that wrote it."""

    name: str
    version: Version

    @cached_property
    def cells(self) -> dict[str, list[Path]]:
        return cells_of(self.version, GENERATED)

    @cached_property
    def failed(self) -> dict[str, str]:
        """Completion id -> reason."""
        path = self.version.files(f"data/{GENERATED}").get("failed/failed.parquet")
        return dict(pl.read_parquet(path, columns=[ID, "reason"]).iter_rows()) if path else {}

    @cached_property
    def model(self) -> dict[str, str]:
        """What its documents say of who wrote them, and how: model, revision, sampling."""
        columns = ["model", "model_revision", "sampling"]
        for paths in self.cells.values():
            for row in pl.scan_parquet(paths, glob=False).select(columns).head(1).collect().iter_rows():
                return dict(zip(("model", "revision", "sampling"), row, strict=True))
        return dict.fromkeys(("model", "revision", "sampling"), "")

    def thoughts(self, cell: str) -> dict[str, int]:
        """Completion id -> tokens of its thought; {} for a model that does not think."""
        files = self.version.files(f"data/{GENERATED}")
        paths = [path for name, path in files.items() if name.startswith(f"thoughts/{cell}.")]
        return dict(pl.read_parquet(paths, columns=[ID, "thought_tokens"]).iter_rows()) if paths else {}

    def kept(self) -> float | None:
        """Share of the tokens written that cleaning, deduplication and decontamination leave; None: not known."""
        if self.version.direct or not self.version.has(f"data/{KEPT}"):
            return None
        written, left = (_tokens(cells_of(self.version, stage)) for stage in (GENERATED, KEPT))
        return left / written if written else None

    def rate(self) -> dict[str, Any]:
        """Its last measured rate: tokens/s of one instance, its GPUs, the compute file; {}: none was measured.

        Of several compute files' rates that of $COSMO_COMPUTE is preferred.
        """
        stores = [rates_path(), self.version.folder / ".store/rates.json"]
        found: dict[str, dict[str, Any]] = {}
        for path in stores:
            for name, rate in read_rates(path).items():
                compute, _, identity = name.partition(" ")
                if _identity(identity)[:2] == [self.model["model"], self.model["revision"]]:
                    found.setdefault(compute, {**rate, "compute": compute})
        return found.get(compute_path().stem) or next(iter(found.values()), {})


def _identity(text: str) -> list[Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return []
    return content if isinstance(content, list) else []


def _tokens(cells: Mapping[str, list[Path]]) -> int:
    column = pl.col("text_token_length").cast(pl.Int64).sum()
    return sum(pl.scan_parquet(paths, glob=False).select(column).collect().item() for paths in cells.values())


@dataclass
class CellResult:
    """What each generator made of a cell's shared prompts, in the generators' order."""

    cell: str
    tried: list[list[Tried]] = field(default_factory=list)
    reworded: int = 0  # prompts whose text is not the same everywhere: labels and topics are the generator's too
    thoughts: list[list[int]] = field(default_factory=list)  # tokens of each thought
    figures: list[dict[str, Any]] = field(default_factory=list)


def results(generators: Sequence[Generator], per_cell: int, measure: Measure) -> Iterator[CellResult]:
    """Every cell that all generators have, in the order of their names; `per_cell` prompts of each at most."""
    for cell in sorted(set.intersection(*(set(one.cells) for one in generators))):
        written = [_ids(one, cell) for one in generators]
        tried = [ids | one.failed.keys() for ids, one in zip(written, generators, strict=True)]
        shared = sorted(set().union(*written).intersection(*tried))[:per_cell]
        if shared:
            yield _result(generators, cell, shared, measure)


def _ids(generator: Generator, cell: str) -> set[str]:
    return set(pl.scan_parquet(generator.cells[cell], glob=False).select(ID).collect()[ID])


def _result(generators: Sequence[Generator], cell: str, shared: list[str], measure: Measure) -> CellResult:
    result, rows, prompts = CellResult(cell), [], defaultdict[str, set[str]](set)
    for one in generators:
        scan = pl.scan_parquet(one.cells[cell], glob=False).filter(pl.col(ID).is_in(shared)).select(COLUMNS)
        rows.append({row[ID]: row for row in scan.collect().iter_rows(named=True)})
        for number, row in rows[-1].items():
            prompts[number].add(row["prompt"])
    for one, documents in zip(generators, rows, strict=True):
        tried = [_tried(documents.get(number), min(prompts[number]), one.failed.get(number, "")) for number in shared]
        thoughts = one.thoughts(cell)
        result.tried.append(tried)
        result.thoughts.append([thoughts[number] for number in shared if number in thoughts])
        result.figures.append({**measure(tried), **more_figures(tried, result.thoughts[-1]), **trust(one, cell)})
    result.reworded = sum(len(texts) > 1 for texts in prompts.values())
    return result


def _tried(row: dict[str, Any] | None, prompt: str, reason: str) -> Tried:
    """A document as what came of its prompt; without one it is a failure, and the prompt is another generator's."""
    if row is None:
        return prompt, Failure("", reason, "", 1)
    return row["prompt"], Completion("", row["text"], row["finish_reason"], row["text_token_length"], 0, "")


def more_figures(tried: Sequence[Tried], thoughts: Sequence[int]) -> dict[str, Any]:
    """Lengths in words, which do not depend on a tokenizer; thoughts, which are no part of a text; why requests
    failed (a thought that was cut is `truncated_thought`)."""
    sizes = [len(result.text.split()) for _, result in tried if isinstance(result, Completion)]
    reasons = Counter(result.reason for _, result in tried if isinstance(result, Failure))
    return {
        "median_words": median(sizes) if sizes else 0,
        "words": sum(sizes),
        "thoughts": len(thoughts),
        "thought_tokens": sum(thoughts),
        "failed_by_reason": dict(sorted(reasons.items())),
    }


def trust(generator: Generator, cell: str) -> dict[str, float]:
    """What `faithful` and `selfcheck` measured of a cell, as "faithful.<name>"; {} where they have not run.

    A figure is a number, or a mapping with an interval around its `value`, `share` or `mean`; whatever else is in the
    cell's entry (counts by kind, examples) is left out.
    """
    found = {}
    for stage, path in TRUST.items():
        content = None if generator.version.direct else generator.version.json(path)
        figures = ((content or {}).get("cells") or {}).get(cell) or {}
        for name, figure in figures.items():
            if isinstance(figure, dict):
                figure = next((figure[key] for key in ("value", "share", "mean") if key in figure), None)
            if isinstance(figure, int | float) and not isinstance(figure, bool):
                found[f"{stage}.{name}"] = figure
    return found
