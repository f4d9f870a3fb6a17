"""The prompts as they would be now, for `cosmo plan`: the stage's own functions, in a folder that is thrown away."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cosmopedia.core.lineage import store_root
from stages.prompts.__main__ import settings, source_rows_of, write_cells


@contextmanager
def rendered_prompts() -> Iterator[list[Path]]:
    """The files of prompts that the stage would write, given the source rows and topics that are here."""
    params, grid = settings()
    folder = store_root() / "work"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="plan-") as name:
        scratch = Path(name)
        sources = {source: source_rows_of(source, cells, params, scratch / source) for source, cells in grid.items()}
        cells = [(sources[c.source], c) for several in grid.values() for c in several if sources[c.source].rows]
        yield [scratch / "out" / file for file in sorted(write_cells(cells, params, scratch / "out"))]
