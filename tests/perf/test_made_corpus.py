"""The made-up corpus of perf.trace is a finished run: its tables have their contracts, what is planted is found."""

from pathlib import Path

import pytest

from cosmopedia.dataset_diff.compare import compare
from cosmopedia.dataset_diff.report import report
from cosmopedia.execution.versions import Version
from cosmopedia.tracing.backward import affected
from cosmopedia.tracing.corpus import Corpus
from cosmopedia.tracing.forward import trace
from perf.made_corpus import CELLS, made_corpus


@pytest.mark.slow
def test_a_made_corpus_can_be_traced_and_its_changes_are_found(tmp_path: Path) -> None:
    for name, changed in (("a", 0), ("b", 10)):
        made_corpus(tmp_path / name, 50 * len(CELLS), changed)
    versions = (Version("a", "folder", tmp_path / "a"), Version("b", "folder", tmp_path / "b"))
    found = affected(Corpus(versions[0]), {"source": "web"})
    assert (found["generated"], found["documents"]) == (4 * 50, 4 * 49)  # clean removes one of a hundred, the first
    (history,) = trace(Corpus(versions[0]), found["sample_ids"][0], lambda *_: None)
    assert history["state"] == "in the corpus" and history["tokens"] and history["topic"]
    totals = report(versions, "decontaminate", compare(versions, "decontaminate", 1), 1)["totals"]
    assert (totals["changed"], totals["added"], totals["removed"]) == (5 * len(CELLS), 0, 0)
