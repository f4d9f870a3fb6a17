"""`cosmo trace`: where a document came from and went, what came from something, and what that costs to leave out."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cosmopedia.cli import trace
from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.rng import content_hash
from cosmopedia.tables.contracts import PASSAGE, REFERENCES
from cosmopedia.tables.parquet import write_table
from cosmopedia.tracing.backward import downstream
from cosmopedia.tracing.changes import word_diff
from tests.support.command_line import cosmo
from tests.support.documents import ROOT, document
from tests.support.finished_run import (
    CELL,
    COPY,
    FAILED_ID,
    KEPT,
    LEAKED,
    OTHER,
    REMOVED_ID,
    SHORT,
    TEXT,
    finished_run,
    write_cell,
)  # fmt: skip


@pytest.fixture
def run(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("cosmopedia.cli.checkout._started", empty_folder)
    finished_run(empty_folder)
    return empty_folder


def traced(*words: object) -> dict[str, Any]:
    return json.loads(cosmo(trace.app, *words, "--json"))


def one(*words: object) -> dict[str, Any]:
    (found,) = traced(*words)["documents"]
    return found


def test_a_document_in_the_corpus_has_its_whole_history(run: Path) -> None:
    found = one(f"{KEPT}-0")
    assert found["state"] == "in the corpus" and found["removed"] is None
    assert found["source_row"]["row_id"] == "web/0" and found["source_row"]["url"] == "https://tides.example"
    assert (found["source_row"]["licence"], found["source_row"]["revision"]) == ("CC0-1.0", "sha256:0")
    assert (found["topic"]["cluster"], found["topic"]["decision"], found["topic"]["decided_by"]) == (
        4,
        "keep",
        "label",
    )
    assert found["written_by"]["model"] == "tiny" and found["store_key"] == "key-0"
    assert found["cleaning"]["diff"] == [["-", "Sure! Here it is.\n\n"], ["=", TEXT]]
    assert [other["id"] for other in found["duplicates"]["removed"]] == [f"{COPY}-0"]
    shard = "data/tokenize_corpus/train/000_train.ds"
    assert found["tokens"] == [{"split": "train", "shard": shard, "start": 1234, "tokens": 18}]
    assert [model["model"] for model in found["models"]] == ["seed-1"]  # seed-2 is trained on another corpus
    assert found["text"] == TEXT
    assert one(KEPT) == found  # a prompt's id is its completions'


def test_no_model_is_trained_on_a_validation_document(run: Path) -> None:
    found = one(OTHER)
    assert found["tokens"][0]["split"] == "validation" and found["models"] == []
    assert "no model is trained on it" in cosmo(trace.app, OTHER)


@pytest.mark.parametrize(
    ("prompt_id", "stage", "reason", "evidence"),
    [
        (SHORT, "clean", "short", {"tokens": 2}),
        (COPY, "dedup", "exact", {"kept": f"{KEPT}-0", "kind": "exact", "jaccard": 1.0}),
        (LEAKED, "decontaminate", "contaminated", {"items": [{"item_id": "arc_easy/000001"}]}),
        (FAILED_ID, "generate", "server", {"detail": "500"}),
        (REMOVED_ID, "prompts", "near_duplicate_prompt", {"detail": "like web/1"}),
    ],
)
def test_what_fell_out_names_stage_reason_and_evidence(
    run: Path, prompt_id: str, stage: str, reason: str, evidence: dict
) -> None:
    found = one(prompt_id)
    assert {name: found["removed"][name] for name in ("stage", "reason", "evidence")} == {
        "stage": stage, "reason": reason, "evidence": evidence,
    }  # fmt: skip
    assert not found.get("models") and not found.get("tokens")
    assert reason in cosmo(trace.app, prompt_id)


def test_a_piece_of_text_is_found_whatever_its_line_ends(run: Path) -> None:
    assert one("because  the Earth\nturns")["id"] == f"{KEPT}-0"
    assert one("Too short")["removed"]["stage"] == "clean"  # not in the corpus, so it is looked for in generate
    several = traced("in")
    assert not several["documents"] and {row["id"] for row in several["matches"]} == {f"{KEPT}-0", f"{OTHER}-0"}


def test_a_search_reads_no_more_than_its_bound(run: Path) -> None:
    with pytest.raises(DataError, match="in no text that was read"):
        cosmo(trace.app, "because the Earth", "--read-gb", "0")
    assert traced("A mill", "--source", "web")["documents"]
    with pytest.raises(DataError):
        cosmo(trace.app, "A mill", "--source", "wikihow")


def test_every_id_of_a_sharded_cell_is_found_by_its_own_file(run: Path) -> None:
    rows = [document(text=f"Text number {n}.", seed_id=f"web/{n}") for n in range(60)]
    rows.sort(key=lambda row: row["completion_id"])
    for stage in ("generate", "clean", "dedup", "decontaminate"):
        shutil.rmtree(run / "data" / stage)
        for number in range(3):
            part = rows[20 * number : 20 * number + 20]
            write_cell(run / "data" / stage, part, f"web-blogpost.{number:05d}.parquet")
    assert all(one(row["completion_id"])["text"] == row["text"] for row in rows[::7])


def test_part_of_the_data_is_enough_and_what_is_missing_is_named(run: Path) -> None:
    for folder in ("generate", "clean", "dedup", "tokenize_corpus", "sources", "topics", "paraphrases"):
        shutil.rmtree(run / "data" / folder)
    found = traced(f"{KEPT}-0")
    (history,) = found["documents"]
    assert history["state"] == "in the corpus" and history["cleaning"] is None and history["tokens"] == []
    assert found["missing"]["data/generate"] == "dvc pull data/generate"
    assert found["missing"]["data/sources/web.parquet"] == "dvc pull data/sources/web.parquet"
    assert "data/mix" not in found["missing"]  # this pipeline has no such stage
    shutil.rmtree(run / "data/decontaminate")
    assert one(f"{SHORT}-0")["state"] == "no completion here"
    shutil.rmtree(run / "data/prompts")
    with pytest.raises(DataError, match="dvc pull data/generate"):
        cosmo(trace.app, f"{SHORT}-0")


def test_what_later_stages_did_is_not_guessed(run: Path) -> None:
    shutil.rmtree(run / "data/decontaminate")
    assert one(KEPT)["state"] == "in data/dedup; what decontaminate did is not here"
    shutil.rmtree(run / "data/dedup")
    assert one(COPY)["state"] == "in data/clean; what dedup and decontaminate did is not here"
    finished = run / "other"
    finished_run(finished)
    shutil.copytree(finished / "data/decontaminate", run / "data/decontaminate")
    assert one(COPY)["state"] == "in data/clean, but not in data/decontaminate; what dedup removed is not here"


def natural(number: int) -> dict[str, Any]:
    """Natural text: no prompt, template or model."""
    names = ("prompt", "prompt_id", "template", "template_hash", "seed_data", "model", "engine", "key", "audience")
    own = {"completion_id": f"fineweb/{number}", "text": f"From the web, number {number}.", "seed_id": "0a"}
    return document(**dict.fromkeys(names, ""), **own, source="fineweb", style="natural", text_token_length=7)


def mix(run: Path, **copies: int) -> None:
    """A mix of the natural document and those of the run, by their ids."""
    schema = {"completion_id": pl.String, "copies": pl.Int32}
    cells = {"fineweb-natural": "fineweb/", "web-blogpost": ""}
    (run / "data/mix").mkdir()
    for cell, start in cells.items():
        taken = {i: n for i, n in sorted(copies.items()) if i.startswith("fineweb/") == bool(start)}
        rows = {"completion_id": list(taken), "copies": list(taken.values())}
        pl.DataFrame(rows, schema=schema).write_parquet(run / f"data/mix/{cell}.parquet")


def test_natural_text_and_repeats_of_a_mix_are_traced(run: Path) -> None:
    for stage in ("natural", "clean", "dedup", "decontaminate"):
        write_cell(run / "data" / stage, [natural(1)], "fineweb-natural.parquet")
    mix(run, **{f"{KEPT}-0": 1, "fineweb/1": 2})
    places = pl.read_parquet(run / "data/tokenize_corpus/train/documents.parquet")
    copies = [places.with_columns(completion_id=pl.lit(i)) for i in ("fineweb/1", "fineweb/1#2", "fineweb/11")]
    pl.concat([places, *copies]).write_parquet(run / "data/tokenize_corpus/train/documents.parquet")
    found = one("fineweb/1")
    assert (found["state"], found["copies"], len(found["tokens"])) == ("in the corpus", 2, 2)
    printed = cosmo(trace.app, "fineweb/1")
    assert (
        "From the web, number 1." in printed and "no model: natural text" in printed and "takes it 2 times" in printed
    )
    assert one(OTHER)["state"] == "in data/decontaminate, but the mix leaves it out" and not one(OTHER)["models"]
    assert traced("--source", "fineweb")["in_the_mix"] == {"documents": 1, "tokens": 14}
    assert traced("--source", "web")["in_the_mix"] == {"documents": 1, "tokens": 21}


def test_a_mix_of_everything_once_is_the_corpus(run: Path) -> None:
    mix(run, **{f"{KEPT}-0": 1, f"{OTHER}-0": 1})
    report = traced("--source", "web")
    assert report["in_the_mix"] == {"documents": report["documents"], "tokens": report["tokens"]}


def test_what_comes_from_something_is_counted_by_source_and_style(run: Path) -> None:
    cell = {"source": "web", "style": "blogpost", "generated": 5, "documents": 2, "tokens": 28}
    assert traced("--source", "web")["cells"] == [cell]
    assert traced("--template", "web/blogpost")["cells"] == [cell]
    assert traced("--topic", "Tides", "--source", "web")["cells"] == [cell]
    by_licence = traced("--licence", "CC-BY-4.0")
    assert (by_licence["documents"], by_licence["sample_ids"]) == (1, [f"{OTHER}-0"])
    row = traced("--source-row", "web/3")  # all that came of it is removed
    assert (row["generated"], row["documents"], row["models"]) == (1, 0, [])
    cosmo(trace.app, "--source", "web", "--ids", "ids.txt")
    assert Path("ids.txt").read_text().split() == [f"{KEPT}-0", f"{OTHER}-0"]


def test_a_value_that_is_nowhere_is_answered_with_those_there_are(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"--licence 'CC': data/decontaminate has none of it.*'CC-BY-4.0'"):
        cosmo(trace.app, "--licence", "CC")
    with pytest.raises(ConfigError, match=r"has no document with source_row 'web/1' and licence 'CC0-1.0' together"):
        cosmo(trace.app, "--licence", "CC0-1.0", "--source-row", "web/1")
    with pytest.raises(ConfigError, match="wants an id, a piece of text, or one of the options"):
        cosmo(trace.app)


def test_a_corpus_without_something_says_what_is_lost_reused_and_done_again(run: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    costs = traced("--source-row", "web/0", "--without")["without"]
    assert (costs["documents_lost"], costs["documents_left"], costs["completions_reused"]) == (1, 1, 4)
    assert costs["duplicates_that_may_return"] == 1  # COPY was removed because KEPT stays
    assert costs["models_to_train_again"] == ["seed-1"]
    assert "is not generated again" in cosmo(trace.app, "--source", "web", "--without")


def test_the_stages_that_rerun_are_those_that_dvc_yaml_connects() -> None:
    topics, prompts = (downstream(stage, ROOT / "dvc.yaml") for stage in ("topics", "prompts"))
    assert topics == ["topics", *prompts] and "generate" in prompts and "cluster" not in topics
    assert {"benchmarks", "sources"}.isdisjoint(topics) and topics[-1] == "report"
    assert set(topics) < set(downstream("sources", ROOT / "dvc.yaml"))


def test_the_template_has_the_commit_that_brought_the_text_that_was_sent(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main")
    commits = []
    for text in (
        "# one\nFirst: $extract",
        "# one\nWrite about $extract",
        "# two\nWrite about $extract",
        "New $extract",
    ):
        Path("prompts/web").mkdir(parents=True, exist_ok=True)
        Path("prompts/web/blogpost.txt").write_text(text)
        git("add", "prompts")
        git("commit", "-q", "-m", f"it says {text[-20:]!r}")
        commits.append(git("rev-parse", "HEAD"))

    def origin(body: str) -> dict[str, Any]:
        row = document(template_hash=content_hash(body), completion_id="page-1")
        write_cell(run / "data/generate", [row])
        return one("page-1")["template"]

    used = origin("Write about $extract")
    assert used["commit"] == commits[1] and used["edited_since"]  # the third only edits the comment
    assert origin("New $extract")["commit"] == commits[3] and not origin("New $extract")["edited_since"]
    Path("prompts/web/blogpost.txt").write_text("Not yet $extract")
    assert origin("Not yet $extract")["state"] == "not committed"
    assert origin("Nobody's $extract")["state"] == "not found"


def test_hostile_text_cannot_reach_the_terminal(run: Path) -> None:
    bad = "\x1b]0;owned\x07\x1b[2J\u202eback [bold]words[/bold]"
    row = document(completion_id="page-1", text=bad, prompt=bad, topic=bad, seed_data=bad, model=bad)
    write_cell(run / "data/generate", [row])
    write_cell(run / "data/clean", [row | {"text": bad[3:]}])
    for words in (("page-1",), ("page-1", "--full"), ("words",), ("--topic", bad)):
        printed = cosmo(trace.app, *words)
        assert not set(printed) & {"\x1b", "\x07", "\u202e"}
    assert "[bold]words[/bold]" in cosmo(trace.app, "page-1")


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("Hi!\n\na b c", "a b c", [("-", "Hi!\n\n"), ("=", "a b c")]),
        ("a b c. Hope it helps!", "a b c.", [("=", "a b c."), ("-", " Hope it helps!")]),
        ("a b c", "a x c", [("=", "a "), ("-", "b"), ("+", "x"), ("=", " c")]),
        ("", "a", [("+", "a")]),
    ],
)
def test_a_diff_is_by_words(old: str, new: str, wanted: list) -> None:
    assert word_diff(old, new) == wanted


def test_a_diff_of_large_texts_is_quick_and_gives_both_back() -> None:
    old, new = ("word " * 20_000 + end for end in ("x y", "z"))
    for pieces in (word_diff(old, new), word_diff(f"a {old}", f"b {new}")):
        assert "".join(text for kind, text in pieces if kind != "+").endswith("x y")
        assert "".join(text for kind, text in pieces if kind != "-").endswith("z")


def test_the_passages_that_a_prompt_quotes_are_named_with_article_and_licence(run: Path) -> None:
    assert one(KEPT)["passages"] == []
    write_table(f"data/prompts/references/{CELL}", [{"prompt_id": KEPT, "passages": ["b/1", "a/0"]}], REFERENCES)
    same = {"title": "Tides", "text": "Two bulges.", "revision": "r1", "licence": "CC-BY-SA-3.0"}
    rows = [{"passage_id": name, "article": f"https://{name[0]}", **same} for name in ("a/0", "a/1", "b/1")]
    write_table("data/knowledge/passages.parquet", rows, PASSAGE)
    found = one(KEPT)["passages"]
    assert [(row["passage_id"], row["article"]) for row in found] == [("b/1", "https://b"), ("a/0", "https://a")]
    assert "Tides, https://b, CC-BY-SA-3.0, r1: Two bulges." in " ".join(cosmo(trace.app, KEPT).split())
