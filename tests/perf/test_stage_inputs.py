"""What perf.dedup and perf.decontaminate make as a stage's input is what the stage takes."""

from pathlib import Path

from cosmopedia.corpus.pipeline import check_rows
from cosmopedia.tables.parquet import tables_in
from perf.decontaminate import make
from perf.dedup import write_stage_input


def test_the_benchmarks_of_dedup_and_decontaminate_write_rows_that_the_stages_accept(tmp_path: Path) -> None:
    texts = [f"Tide number {number} came in. It went out again. " * 3 for number in range(8)]
    (tmp_path / "dedup").mkdir()
    write_stage_input(tmp_path / "dedup", texts)
    check_rows(tables_in(tmp_path / "dedup/data/clean"))
    (tmp_path / "decontaminate").mkdir()
    make(tmp_path / "decontaminate", texts, [{"task_name": "tides", "text": "What moves the tides? The moon"}])
    check_rows(tables_in(tmp_path / "decontaminate/data/dedup"))
