"""Adding a source: a reader, its settings and a template; everything else follows from them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cosmopedia.cli.deps import write_deps
from stages.prompts.cosmo_preview_prompts import preview
from tests.support.own_params import text_of

ROOT = Path(__file__).parents[3]
READER = '''"""News: headline, body."""

from typing import Any

from cosmopedia.core.params import Params
from cosmopedia.record_ids import row_id
from stages.sources.reader import Reader, Rejected, Rows, SourceRow, text_of


class NewsFilter(Params):
    min_words: int


def read(values: dict[str, Any], keep: NewsFilter) -> Rows:
    body = text_of(values, "body")
    if len(body.split()) < keep.min_words:
        yield Rejected("length", f"{len(body.split())} words")
    else:
        yield SourceRow(row_id(values, body), text_of(values, "headline"), body)


READER = Reader(read, NewsFilter)
'''


def edit(path: Path, *keys: str, value: object) -> None:
    """Set a key of a YAML file."""
    content = node = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.mark.slow
def test_a_new_source_is_a_reader_its_settings_and_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stages", "cosmopedia", "profiles", "prompts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(text_of("params.yaml"), encoding="utf-8")
    rows = [{"headline": f"Lava {n}", "body": f"In village {n} the lava came down the hill."} for n in range(3)]
    (tmp_path / "news.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"headline": "a", "body": "b"}])
    )

    (tmp_path / "stages/sources/readers/news.py").write_text(READER)
    edit(tmp_path / "params.yaml", "sources", "news", value={"keep": {"min_words": 4}})
    dataset = {"dataset": "news.jsonl", "subset": None, "split": None, "revision": None, "limit": None, "licence": "x"}
    edit(tmp_path / "profiles/smoke.yaml", "sources", "news", value=dataset)
    style = {"story": {"format": "story", "audience": "general", "share": 1.0}}
    edit(tmp_path / "params.yaml", "prompts", "styles", "cosmopedia", value={"news": style})
    (tmp_path / "prompts/news").mkdir()
    (tmp_path / "prompts/news/story.txt").write_text("Write about $title: $extract\n")

    assert write_deps(tmp_path / "dvc.yaml")
    stages = yaml.safe_load((tmp_path / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert stages["sources"]["matrix"]["source"][-1] == "news"
    assert "data/sources/news.parquet" in stages["prompts"]["deps"]

    command = [sys.executable, "-m", "stages.sources", "news"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("sources news: 3 rows from news.jsonl; left out: 1 length\n"), done.stderr
    monkeypatch.chdir(tmp_path)
    prompts = [prompt["prompt"] for prompt in preview("news", "story", 3, None, False, None)["prompts"]]
    assert sorted(prompts) == [f"Write about Lava {n}: In village {n} the lava came down the hill." for n in range(3)]
