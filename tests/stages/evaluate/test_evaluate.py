"""Evaluation: the scores are the ones a direct computation and lighteval give, for the weights that are there."""

import json
import math
import os
import socket
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.evaluation import lighteval_run
from cosmopedia.evaluation.encoding import Sequence
from cosmopedia.evaluation.heldout import HeldoutSet, read_set, windows
from cosmopedia.evaluation.item_scores import best, by_character, item_scores
from cosmopedia.evaluation.items import encode_items, read_items
from cosmopedia.evaluation.lighteval_run import run_lighteval
from cosmopedia.evaluation.scorer import Scorer, batches, packs
from cosmopedia.evaluation.scores import by_group, heldout, highest_floor, over_seeds, panel, summary, with_floor
from cosmopedia.evaluation.scoring import encoder_of
from cosmopedia.tables.contracts import BENCHMARK, DETAIL, HELDOUT
from cosmopedia.tables.parquet import read_table, write_table
from stages.evaluate.__main__ import main, settings
from stages.evaluate.floors import by_unigrams, longest_choice, unigram_logprobs
from tests.support import tokenizers
from tests.support.tiny_llama import write_model, write_tokenizer, write_training

ITEMS = {
    "arc_easy": [
        ("Question: What do plants take in?\nAnswer:", [" light", " soup", " iron filings", " sleep"], 0),
        ("Question: What is ice?\nAnswer:", [" a gas", " frozen water", " wood", " glass"], 1),
        ("Question: Which is a mammal?\nAnswer:", [" trout", " fern", " bat", " wasp"], 2),
        ("Question: What moves the tides?\nAnswer:", [" whales", " ships", " rain", " the moon"], 3),
    ],
    "boolq": [
        ("Venus is a planet.\nQuestion: is venus a planet?\nAnswer:", [" yes", " no"], 0),
        ("Salt is a mineral.\nQuestion: is salt a plant?\nAnswer:", [" yes", " no"], 1),
        ("Rome is in Italy.\nQuestion: is rome in spain?\nAnswer:", [" yes", " no"], 1),
    ],
    "hellaswag": [
        (
            "She fills the kettle and",
            [" waits for it to boil.", " eats it.", " paints the roof of a distant house."],
            0,
        ),
        ("He ties his shoes and then he", [" melts.", " goes for a run.", " is the number seven."], 1),
    ],
}


def rows(task: str) -> list[dict]:
    return [
        {
            "item_id": f"{task}/{i:06d}",
            "task": task,
            "group": ("botany", "physics")[i % 2] if task == "arc_easy" else None,
            "query": query,
            "choices": choices,
            "gold": gold,
            "question": query,
            "answer": choices[gold],
            "other_forms": [],
            "revision": "0",
        }
        for i, (query, choices, gold) in enumerate(ITEMS[task])
    ]


LETTERS = ["The tide goes out at noon.", "A lake is a bowl of rain, wide and cold.", "Two and two are four. " * 9]
ALL = [row for task in ITEMS for row in rows(task)]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: None) -> Path:
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    section = {
        "seed": 1,
        "panels": {"small": ["arc_easy", "hellaswag"], "all": [*ITEMS]},
        "shots": 0,
        "harness": "own",
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "evaluate": section}))
    source = {"subset": None, "split": None, "revision": None, "text": "text", "limit": None}
    sets = {name: {"dataset": f"data/samples/heldout/{name}.jsonl", **source} for name in ("letters", "numbers")}
    profile = {"max_items": 3, "heldout": sets, "dtype": "float32", "batch_tokens": 600, "logits_mb": 1}
    (tmp_path / "profiles/tiny.yaml").write_text(yaml.safe_dump({"evaluate": profile}))
    for task in ITEMS:
        write_table(tmp_path / f"data/benchmarks/{task}.parquet", rows(task), BENCHMARK)
    write_documents(tmp_path / "data/samples/heldout/letters.jsonl", LETTERS)
    write_documents(tmp_path / "data/samples/heldout/numbers.jsonl", ["One, two, three.", "Four, five, six."])
    write_corpus(tmp_path / "data/tokenize_corpus")
    write_export(tmp_path / "models/export/seed-0", seed=0)
    return tmp_path


@pytest.fixture
def unrecorded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository, with no record in MLflow, which takes most of the time."""
    monkeypatch.setattr("stages.evaluate.__main__.record", lambda *_: None)
    return repository


def write_documents(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_corpus(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)
    (folder / "corpus.json").write_text(json.dumps({"token_bytes": 2}))
    for number, tokens in enumerate(([1, 2, 2, 5], [2, 0])):
        (folder / f"train/{number:03d}_train.ds").write_bytes(np.array(tokens, dtype="<u2").tobytes())


def write_export(folder: Path, seed: int) -> None:
    vocabulary = write_tokenizer(folder)
    write_model(folder, vocabulary, seed)
    write_training(folder, vocabulary)


def direct_logprobs(folder: Path, item: dict, before: tuple[int, ...] = ()) -> list[float]:
    """Log-probability of each choice as a continuation, one forward pass each: of the tokens of query and choice
    together that follow those of the query."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        Tokenizer.from_file(f"{folder}/tokenizer.json"),
    )
    logprobs = []
    for choice in item["choices"]:
        query, whole = (
            [*before, *tokenizer.encode(text, add_special_tokens=False).ids]
            for text in (item["query"], item["query"] + choice)
        )
        assert whole[: len(query)] == query
        with torch.no_grad():
            scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        logprobs.append(sum(scores[i - 1, whole[i]].item() for i in range(len(query), len(whole))))
    return logprobs


def scored(folder: Path, items: list[dict], **changes: int) -> list[list[float]]:
    """The log-probabilities that the stage computes."""
    encoded = encode_items(encoder_of(folder), items)
    scorer = Scorer(folder, "float32", **{"batch_tokens": 400, "logits_mb": 1} | changes)
    values = iter(scorer.logprobs([one for item in encoded for one in item.sequences], "choices"))
    return [[next(values) for _ in item.sequences] for item in encoded]


@pytest.mark.slow
def test_scores_are_those_of_a_direct_computation_on_the_weights_that_are_there(repository: Path):
    import torch

    by_seed = {}
    for seed in (0, 1):  # new weights at the same path: a cached answer would be the old model's
        write_export(repository / "models/export/seed-0", seed)
        main()
        details = read_table("data/evaluate/seed-0.parquet", DETAIL).to_pylist()
        metrics = json.loads(Path("metrics/evaluate.json").read_text())
        items = {row["item_id"]: row for row in ALL}
        assert [(t, sum(d["task"] == t for d in details)) for t in ITEMS] == [
            ("arc_easy", 3),
            ("boolq", 3),
            ("hellaswag", 2),
        ]
        for row in details:
            item = items[row["item_id"]]
            expected = direct_logprobs(repository / "models/export/seed-0", item)
            assert row["logprobs"] == pytest.approx(expected, abs=1e-4)
            assert row["correct"] == (best(expected) == item["gold"])
            assert row["correct_norm"] == (best(by_character(expected, item["choices"])) == item["gold"])
            assert row["group"] == item["group"] and row["bytes"] == [len(c.encode()) - 1 for c in item["choices"]]
        for task in ITEMS:
            mine = [item_scores(row) for row in details if row["task"] == task]
            for name, value in metrics["tasks"][task].items():
                if name in mine[0]:
                    assert value == pytest.approx(sum(r[name] for r in mine) / len(mine), rel=1e-4)
        by_seed[seed] = [row["logprobs"] for row in details]
    assert by_seed[0] != by_seed[1]
    assert torch.is_grad_enabled()

    with sqlite3.connect(repository / "mlflow.db") as database:
        finished = "select name, run_uuid from runs where status = 'FINISHED' order by name, end_time"
        runs = database.execute(finished).fetchall()
        assert [name for name, _ in runs] == ["no revision mean", "no revision seed 0", "no revision seed 0"]
        named = "select key, value from metrics where run_uuid = ? order by timestamp"
        recorded = dict(database.execute(named, (runs[0][1],)))  # of the means, twice: the newer ones count
        assert recorded["all_acc_norm"] == pytest.approx(metrics["panels"]["all"]["acc_norm"], rel=1e-3)
        assert recorded["heldout_bpb"] == pytest.approx(metrics["heldout"]["together"]["bpb"], rel=1e-3)
        seed = dict(database.execute(named, (runs[2][1],)))
        assert seed["heldout_bpb"] == pytest.approx(metrics["seeds"]["0"]["heldout"]["bpb"], rel=1e-3)
        assert seed.keys() == recorded.keys() and len(seed) == 1 + 2 * 2 + len(ITEMS)
        assert ("evaluate.max_items", "3") in database.execute("select key, value from params").fetchall()
        tags = dict(database.execute("select key, value from tags"))
        assert tags["dataset_hash"] == "d" * 64 and "git_revision" in tags


@pytest.mark.slow
def test_scores_and_log_probabilities_are_lightevals(repository: Path):
    model = repository / "models/export/seed-0"
    scores, logprobs = run_lighteval(model, {task: rows(task) for task in ITEMS}, "float32")
    ours = dict(zip((row["item_id"] for row in ALL), scored(model, ALL), strict=True))
    assert ours.keys() == logprobs.keys()
    for name, values in ours.items():
        assert values == pytest.approx(logprobs[name], abs=1e-4)
    for task in ITEMS:
        mine = [item_scores(detail(row, ours[row["item_id"]])) for row in rows(task)]
        for name in ("acc", "acc_norm"):
            assert sum(row[name] for row in mine) / len(mine) == pytest.approx(float(scores[task][name]))


@pytest.mark.slow
def test_lighteval_can_score_the_stage_itself(repository: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    main()
    ours = read_table("data/evaluate/seed-0.parquet", DETAIL).to_pylist()
    own = settings()
    monkeypatch.setattr("stages.evaluate.__main__.settings", lambda: own.model_copy(update={"harness": "lighteval"}))
    main()
    theirs = read_table("data/evaluate/seed-0.parquet", DETAIL).to_pylist()
    assert [row["item_id"] for row in theirs] == [row["item_id"] for row in ours]
    for row, other in zip(ours, theirs, strict=True):
        assert other["logprobs"] == pytest.approx(row["logprobs"], abs=1e-4)
    write_export(repository / "models/export/seed-0", 1)  # lighteval's cache would answer for the old weights
    main()
    changed = read_table("data/evaluate/seed-0.parquet", DETAIL).to_pylist()
    assert all(new["logprobs"] != old["logprobs"] for new, old in zip(changed, theirs, strict=True))
    assert torch.is_grad_enabled()


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_running_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    prefix = f"cosmopedia-lighteval-{socket.gethostname()}-"
    left, live, elsewhere = (
        tmp_path / name for name in (f"{prefix}{gone.pid}-x", f"{prefix}{os.getpid()}-y", "cosmopedia-lighteval-z")
    )
    for folder in (left, live, elsewhere):
        (folder / "datasets").mkdir(parents=True)
    with lighteval_run._scratch() as folder:
        assert not left.exists() and live.exists() and elsewhere.exists() and Path(folder).is_dir()
    assert not Path(folder).exists() and live.exists()


@pytest.mark.slow
def test_lighteval_scores_items_in_an_order_that_no_process_changes(repository: Path, monkeypatch: pytest.MonkeyPatch):
    from lighteval.pipeline import Pipeline

    orders = []
    monkeypatch.setattr(Pipeline, "evaluate", lambda self: orders.extend(self.sampling_docs.values()))
    for tasks in (list(ITEMS), list(reversed(ITEMS))):
        with pytest.raises(Exception):  # noqa: B017  (nothing was scored)
            run_lighteval(repository / "models/export/seed-0", {t: rows(t) for t in tasks}, "float32", 8)
    first, second = ([doc.specific["item_id"] for doc in docs] for docs in orders)
    assert first == second == sorted(first) and len(first) == sum(map(len, ITEMS.values()))


def detail(row: dict, logprobs: list[float]) -> dict:
    return row | {"logprobs": logprobs, "bytes": [len(choice.strip().encode()) for choice in row["choices"]]}


# Encoding


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.parametrize("own", [True, False])
def test_a_choice_has_the_tokens_of_the_whole_text_under_every_kind_of_tokenizer(kind: str, own: bool, tmp_path: Path):
    write_model(tmp_path, tokenizers.KINDS[kind](tmp_path))
    if own:
        write_training(tmp_path, 1)
    encoder = encoder_of(tmp_path)
    before = (1,) if kind == "sentencepiece BPE" and not own else ()  # its template has <s>, which training never had
    assert tuple(encoder.before_query) == before
    accents = [row | {"choices": [" naïve", " \N{SNOWMAN}"], "gold": 0} for row in rows("boolq")[:1]]
    for item, values in zip(ALL + accents, scored(tmp_path, ALL + accents), strict=True):
        assert values == pytest.approx(direct_logprobs(tmp_path, item, before), abs=1e-4)


def test_a_prepended_space_is_not_scored_twice(tmp_path: Path):
    from tokenizers import Tokenizer

    write_model(tmp_path, tokenizers.write_metaspace(tmp_path))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode(" light", add_special_tokens=False).tokens == ["▁", "▁light"]  # what lighteval would score
    (sequence,) = encoder_of(tmp_path).choices("What do plants take in?\nAnswer:", [" light"])
    assert [tokenizer.id_to_token(i) for i in sequence.ids[-sequence.scored :]] == ["▁light"]


def test_a_token_across_the_border_belongs_to_the_choice(tmp_path: Path):
    write_model(tmp_path, tokenizers.write_byte_level(tmp_path))
    (sequence,) = encoder_of(tmp_path).choices("It is ligh", ["ter than water"])
    whole = encoder_of(tmp_path).plain(["It is lighter than water"])[0]
    assert list(sequence.ids) == whole and sequence.scored == len(whole) - len(
        encoder_of(tmp_path).plain(["It is"])[0]
    )


def test_special_tokens_in_a_text_are_text(tmp_path: Path):
    write_model(tmp_path, tokenizers.write_byte_level(tmp_path))
    (ids,) = encoder_of(tmp_path).plain(["end</s>"])
    assert 2 not in ids and len(ids) > 4


def test_a_tokenizer_that_does_not_fit_the_model_and_a_missing_one_are_named(repository: Path):
    folder = repository / "models/export/seed-0"
    write_model(folder, 100)
    with pytest.raises(DataError, match=r"tokenizer\.json has the token id 256, but the model in .*seed-0 has 100"):
        main()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"seed-0 holds no tokenizer\.json"):
        main()
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"seed-0 holds no model"):
        main()


# Items


def test_the_drawn_items_do_not_depend_on_the_order_of_the_table(repository: Path):
    ids = [row["item_id"] for row in read_items("arc_easy", seed=1, max_items=2)]
    fewer = [row for row in rows("arc_easy") if row["item_id"] in ids]
    write_table("data/benchmarks/arc_easy.parquet", fewer, BENCHMARK)
    assert len(ids) == 2 and [row["item_id"] for row in read_items("arc_easy", 1, 2)] == ids


def test_a_benchmark_without_wrong_answers_cannot_be_scored(repository: Path):
    alone = [row | {"task": "gsm8k", "choices": row["choices"][:1], "gold": 0} for row in rows("arc_easy")]
    write_table("data/benchmarks/gsm8k.parquet", alone, BENCHMARK)
    with pytest.raises(ConfigError, match=r"evaluate\.panels: gsm8k cannot be scored"):
        read_items("gsm8k", seed=1, max_items=2)
    with pytest.raises(ConfigError, match=r"piqa\.parquet is missing; add piqa to benchmarks\.tasks"):
        read_items("piqa", seed=1, max_items=2)


def test_a_benchmark_of_another_name_is_refused(repository: Path):
    Path("data/benchmarks/arc_easy.parquet").rename("data/benchmarks/piqa.parquet")
    with pytest.raises(DataError, match=r"items\.task is 'arc_easy', but 'piqa' in the file's name, in row 0"):
        read_items("piqa", seed=1, max_items=2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"choices": [" light", "  "]}, "a choice without text"),
        ({"query": " \n"}, "a query without text"),
        ({"gold": 4}, "gold 4, wanted a position among its 4 choices"),
    ],
)
def test_an_item_that_cannot_be_scored_is_named_before_anything_is(repository: Path, change: dict, problem: str):
    first, *others = rows("arc_easy")
    write_table("data/benchmarks/arc_easy.parquet", [first | change, *others], BENCHMARK)
    with pytest.raises(DataError, match=rf"arc_easy\.parquet: arc_easy/000000 has {problem}"):
        main()
    assert not Path("data/evaluate").exists()


def test_a_choice_longer_than_the_model_is_named_and_a_longer_context_is_cut_and_counted(unrecorded: Path):
    first, *others = rows("arc_easy")
    long = [first | {"query": "The sea. " * 30 + first["query"]}, *others]
    write_table("data/benchmarks/arc_easy.parquet", long, BENCHMARK)
    assert "1 items are longer than the model and lost the beginning of their context" in main()
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    assert metrics["tasks"]["arc_easy"]["cut"] == 1 and metrics["tasks"]["boolq"]["cut"] == 0
    row = read_table("data/evaluate/seed-0.parquet", DETAIL).to_pylist()[0]
    tail = long[0]["query"][-(128 + 1 - len(" light")) :]  # one token per byte, and the last one is only predicted
    model = unrecorded / "models/export/seed-0"
    assert row["logprobs"][0] == pytest.approx(direct_logprobs(model, first | {"query": tail})[0], abs=1e-4)
    write_table("data/benchmarks/arc_easy.parquet", [first | {"choices": [" a", " b" * 70]}, *others], BENCHMARK)
    with pytest.raises(DataError, match=r"arc_easy/000000: the choice .* has 140 tokens, wanted 1 to 128"):
        main()


def test_examples_are_other_items_of_the_group_with_their_right_answers(repository: Path):
    plain = {row["item_id"]: row for row in read_items("arc_easy", 1, None)}
    for row in read_items("arc_easy", 1, None, shots=1):
        own = plain[row["item_id"]]
        (other,) = (one for one in plain.values() if one["group"] == own["group"] and one is not own)
        assert row["query"] == f"{other['query']}{other['choices'][other['gold']]}\n\n{own['query']}"
    with pytest.raises(ConfigError, match="arc_easy, botany, has 2 items, too few for 2 examples"):
        read_items("arc_easy", 1, None, shots=2)


# The scorer


def test_the_logits_of_a_batch_never_exceed_their_memory(repository: Path, monkeypatch: pytest.MonkeyPatch):
    model = repository / "models/export/seed-0"
    scorer, sizes = Scorer(model, "float32", batch_tokens=10_000, logits_mb=1), []
    scorer._head.register_forward_hook(lambda _, __, logits: sizes.append(logits.numel() * 4))
    (one,) = encoder_of(model).choices("Why?", [" a long answer" * 7])
    many = [Sequence((number, *one.ids), one.scored) for number in range(60)]
    scorer.logprobs(many, "choices")
    assert sum(sizes) == 60 * one.scored * 257 * 4 > 3 * max(sizes)
    assert max(sizes) <= 1_000_000 / 2  # and as much again while they are summed


def test_scores_do_not_depend_on_how_sequences_are_batched(repository: Path):
    model = repository / "models/export/seed-0"
    one, many = scored(model, ALL, batch_tokens=1), scored(model, ALL[::-1], batch_tokens=10_000)[::-1]
    for left, right in zip(one, many, strict=True):
        assert left == pytest.approx(right, abs=1e-5)
    rows = packs([Sequence((number, *range(length)), 1) for number, length in enumerate((3, 9, 5, 9, 2))])
    assert [[len(row.inputs()) for row in batch] for batch in batches(rows, 18)] == [[9, 9], [5, 3, 2]]


def test_the_choices_of_an_item_share_their_query(repository: Path):
    encoded = encode_items(encoder_of(repository / "models/export/seed-0"), ALL)
    sequences = [one for item in encoded for one in item.sequences]
    rows = packs(sequences)
    assert len(rows) == len(ALL)
    for row, item in zip(rows, encoded, strict=True):
        first = item.sequences[0]
        assert row.context == first.ids[: -first.scored]
        assert len(row.inputs()) == len(row.context) + sum(one.scored - 1 for one in item.sequences)
        for place, position in enumerate(row.positions()):
            owner = row.owners()[place]
            assert row.inputs()[place] == (item.sequences[owner - 1] if owner else first).ids[position]
    assert len(packs([Sequence((0, *range(9)), 9)] * 3)) == 3  # documents, which share only what stands before them
    assert len(packs([Sequence(tuple(range(1100)), 90)] * 3)) == 3  # longer than a row may be


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "phi", "gpt2", "gpt_neox"])
def test_branches_are_scored_as_if_alone_by_every_architecture(kind: str, tmp_path: Path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2} if kind == "gpt2" else shape
    grouped = {"num_key_value_heads": 1} if kind in ("mistral", "qwen2") else {}
    vocabulary = write_tokenizer(tmp_path)
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, initializer_range=0.5, **shape, **grouped)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert Scorer(tmp_path, "float32", 400, 1).shares
    for item, values in zip(ALL, scored(tmp_path, ALL), strict=True):
        assert values == pytest.approx(direct_logprobs(tmp_path, item), abs=1e-3, rel=1e-5)


def test_a_model_with_a_mask_of_its_own_scores_choices_one_by_one(repository: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers.models.llama.modeling_llama import LlamaModel

    forward = LlamaModel.forward

    def without_mask(self, input_ids=None, attention_mask=None, **options):
        return forward(self, input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", without_mask)
    folder = repository / "models/export/seed-0"
    assert not Scorer(folder, "float32", 400, 1).shares
    for item, values in zip(ALL, scored(folder, ALL), strict=True):
        assert values == pytest.approx(direct_logprobs(folder, item), abs=1e-4)


def test_a_model_that_caps_its_logits_is_refused(tmp_path: Path):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    shape |= {"head_dim": 8, "intermediate_size": 32, "vocab_size": 50, "initializer_range": 1}
    config = AutoConfig.for_model("gemma2", final_logit_softcapping=0.1, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="a model of type gemma2 scales or caps its logits"):
        Scorer(tmp_path, "float32", 400, 1)


# Held-out documents


def test_bits_per_byte_are_those_of_the_whole_documents_after_an_end_of_text_token(unrecorded: Path):
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    main()
    folder = unrecorded / "models/export/seed-0"
    documents = read_table("data/evaluate/heldout-seed-0.parquet", HELDOUT).to_pylist()
    assert [(row["document_id"], row["set"]) for row in documents] == [
        *((f"letters/{i:06d}", "letters") for i in range(3)),
        *((f"numbers/{i:06d}", "numbers") for i in range(2)),
    ]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        Tokenizer.from_file(f"{folder}/tokenizer.json"),
    )
    for row, text in zip(documents, map(str.strip, LETTERS), strict=False):
        ids = [0, *tokenizer.encode(text, add_special_tokens=False).ids]
        nats = 0.0
        for position in range(1, len(ids)):  # windows of 128 that begin every 64
            start = 0 if position <= 128 else -(-(position - 128) // 64) * 64
            with torch.no_grad():
                scores = model(torch.tensor([ids[start:position]])).logits[0, -1].log_softmax(-1)
            nats -= scores[ids[position]].item()
        assert row["nats"] == pytest.approx(nats, abs=1e-3)
        assert row["tokens"] == len(ids) - 1 and row["bytes"] == len(text.encode())
    bits = [sum(r["nats"] for r in documents if r["set"] == name) / math.log(2) for name in ("letters", "numbers")]
    sizes = [sum(r["bytes"] for r in documents if r["set"] == name) for name in ("letters", "numbers")]
    metrics = json.loads(Path("metrics/evaluate.json").read_text())["heldout"]
    assert metrics["letters"]["bpb"] == pytest.approx(bits[0] / sizes[0], rel=1e-5)
    assert metrics["together"]["bpb"] == pytest.approx((bits[0] / sizes[0] + bits[1] / sizes[1]) / 2, rel=1e-5)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 13, 14, 30, 31])
def test_windows_score_every_token_once_with_half_a_window_before_it(length: int):
    ids, positions, seen = list(range(length)), 8, []
    for window in windows(ids, positions):
        assert len(window.ids) <= positions + 1
        targets = window.ids[-window.scored :]
        assert window.ids[0] == 0 or len(window.ids) - window.scored >= positions // 2
        seen += targets
    assert seen == ids[1:]


def test_a_held_out_set_is_read_up_to_its_limit_and_a_wrong_column_is_named(repository: Path):
    write_documents(repository / "data/samples/heldout/gaps.jsonl", ["one", "  ", "two", "three"])
    names = {"subset": None, "split": None, "revision": None, "text": "text"}
    source = HeldoutSet(dataset="data/samples/heldout/gaps.jsonl", limit=2, **names)
    assert [(row["document_id"], row["text"]) for row in read_set("gaps", source)] == [
        ("gaps/000000", "one"),
        ("gaps/000001", "two"),
    ]
    with pytest.raises(DataError, match=r"gaps\.jsonl:1: column 'page' must be a text.* evaluate\.heldout\.gaps"):
        read_set("gaps", source.model_copy(update={"text": "page"}))


def test_the_samples_have_six_sets_of_documents_of_their_own():
    root = Path(__file__).parents[3]
    files = root.glob("data/samples/heldout/*.jsonl")
    sets = {path.stem: [json.loads(line)["text"] for line in path.open(encoding="utf-8")] for path in files}
    assert sorted(sets) == ["dialogue", "encyclopaedic", "howto", "maths", "stories", "textbook"]
    texts = [text for documents in sets.values() for text in documents]
    assert all(8 <= len(documents) <= 12 for documents in sets.values())
    assert all(120 <= len(text.split()) <= 250 for text in texts) and len(set(texts)) == len(texts)
    own = {ngram for text in texts for ngram in ngrams(text)}
    others = [path for path in root.glob("data/samples/*/*.json*") if path.parent.name not in ("heldout", "tokenizer")]
    assert len(others) > 20
    for path in [*others, *root.glob("prompts/*/*.txt")]:
        assert not own & ngrams(path.read_text(encoding="utf-8")), path


def ngrams(text: str, length: int = 8) -> set[tuple[str, ...]]:
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


# Floors


def test_the_floors_are_an_untrained_model_token_counts_and_the_longest_choice(unrecorded: Path):
    main()
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    assert metrics["floors"].keys() == {"untrained", "unigram", "longest"}
    task = metrics["tasks"]["hellaswag"]
    by_floor = {name: floor["hellaswag"] for name, floor in metrics["floors"].items()}
    assert task["floor"]["acc_norm"] == max(floor["acc_norm"] for floor in by_floor.values())
    assert task["floor"]["bpb"] == min(by_floor[name]["bpb"] for name in ("untrained", "unigram"))
    assert by_floor["longest"]["acc"] == 0.0  # both right answers are short ones
    assert metrics["panels"]["all"]["tasks"] == [*ITEMS]
    first = metrics["floors"]["untrained"]
    main()
    assert json.loads(Path("metrics/evaluate.json").read_text())["floors"]["untrained"] == first


def test_token_counts_give_a_choice_the_probability_of_its_tokens(repository: Path):
    logprobs = unigram_logprobs(Path("data/tokenize_corpus"), 10)
    assert np.exp(logprobs) == pytest.approx(np.array([2, 2, 4, 1, 1, 2, 1, 1, 1, 1]) / 16)
    assert by_unigrams(logprobs, [Sequence((7, 2, 5), 2)]) == pytest.approx([math.log(4 / 16 * 2 / 16)])
    with pytest.raises(DataError, match="has the token 5, but the exported model has 4 tokens"):
        unigram_logprobs(Path("data/tokenize_corpus"), 4)


def test_longest_choices_share_what_they_get():
    items = [{"choices": [" aaa", " bbb", " c"], "gold": 0}, {"choices": [" aa", " b"], "gold": 1}]
    assert longest_choice(items)["acc"] == longest_choice(items)["acc_norm"] == 0.25


def test_a_score_within_three_standard_errors_of_the_highest_floor_is_not_informative():
    def scores(acc: float, bpb: float, error: float | None) -> dict:
        names = {"acc": acc, "acc_norm": acc, "prob": acc, "prob_norm": acc, "margin": acc, "bpb": bpb}
        return names | {f"{name}_stderr": error for name in names}

    floor = highest_floor([scores(0.2, 3.0, 0.02), {"acc": 0.3, "acc_stderr": 0.05}, scores(0.25, 2.5, 0.02)])
    assert (floor["acc"], floor["acc_norm"], floor["bpb"]) == (0.3, 0.25, 2.5)
    judged = with_floor(scores(0.4, 2.45, 0.03), floor)
    assert judged["floor"] == {name: floor[name] for name in judged["floor"]}
    assert judged["informative"] == ["acc_norm", "prob", "prob_norm", "margin"]  # acc: within three times 0.05
    assert with_floor(scores(0.4, 2.3, 0.06), floor)["informative"] == ["bpb"]
    assert with_floor(scores(0.4, 2.3, None), scores(0.1, 3.0, None))["informative"] == []


# Averages


def answers(right: list[bool], group: str | None = None) -> list[dict]:
    """DETAIL rows of items with two choices of one letter."""
    return [
        {"logprobs": [-1.0, -2.0] if one else [-2.0, -1.0], "choices": [" a", " b"], "bytes": [1, 1], "gold": 0}
        | {"group": group}
        for one in right
    ]


def test_a_panel_counts_every_task_the_same():
    right = [True, False, False, False]
    large, small = summary(answers(right * 5)), summary(answers(right[:2]))
    assert (large["acc"], large["items"]) == (0.25, 20)
    assert large["acc_stderr"] == pytest.approx((0.25 * 0.75 / 19) ** 0.5)
    both = panel([large, small])
    assert both["acc"] == pytest.approx((0.25 + 0.5) / 2) and both["items"] == 22
    assert both["acc_stderr"] == pytest.approx((large["acc_stderr"] ** 2 + small["acc_stderr"] ** 2) ** 0.5 / 2)
    assert both["bpb"] == pytest.approx((1.75 + 1.5) / 2 / math.log(2))
    assert panel([summary(answers([True, True]))])["acc_norm_stderr"] == 0
    assert panel([large, summary(answers([True]))])["acc_stderr"] is None


def test_groups_are_scored_by_themselves():
    groups = by_group(answers([True, False], "law") + answers([True], "art") + answers([False]))
    assert {name: (one["acc"], one["items"]) for name, one in groups.items()} == {"art": (1.0, 1), "law": (0.5, 2)}


def test_a_set_is_one_text_and_sets_count_the_same():
    rows = [
        {"set": "a", "nats": 30 * math.log(2), "bytes": 10, "tokens": 4},
        {"set": "a", "nats": 50 * math.log(2), "bytes": 30, "tokens": 9},
        {"set": "b", "nats": 40 * math.log(2), "bytes": 40, "tokens": 9},
    ]
    scores = heldout(rows)
    assert scores["a"]["bpb"] == pytest.approx(2.0) and scores["together"]["bpb"] == pytest.approx(1.5)
    # of a ratio: deviations from 2 bits per byte are +10 and -10 bits, over 40 bytes
    assert scores["a"]["bpb_stderr"] == pytest.approx(math.sqrt(200 * 2) / 40)
    assert scores["b"]["bpb_stderr"] is None and scores["together"]["documents"] == 3


def test_scores_of_several_seeds_are_means_with_their_spread():
    def one(acc: float) -> dict:
        return {"all": {"acc": acc, "acc_stderr": 0.1, "acc_norm": acc + 0.1, "acc_norm_stderr": None, "items": 8}}

    mean = over_seeds({"1": one(0.2), "2": one(0.4)}, sd=True)["all"]
    assert mean["acc"] == pytest.approx(0.3) and mean["acc_sd"] == pytest.approx(0.02**0.5)
    assert mean["acc_stderr"] == pytest.approx(0.1) and mean["acc_norm_stderr"] is None and mean["items"] == 8
    assert "acc_sd" not in over_seeds({"1": one(0.2)}, sd=True)["all"]


def test_every_exported_seed_is_scored(unrecorded: Path):
    write_export(unrecorded / "models/export/seed-1", seed=1)
    line = main()
    assert line.startswith("2 model(s): held-out ") and "small (2 tasks, 5 items)" in line and "(floor " in line
    assert sorted(path.name for path in Path("data/evaluate").iterdir()) == [
        "heldout-seed-0.parquet",
        "heldout-seed-1.parquet",
        "seed-0.parquet",
        "seed-1.parquet",
    ]
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    assert set(metrics["seeds"]) == {"0", "1"} and "acc_norm_sd" in metrics["panels"]["small"]
    assert "bpb_sd" in metrics["heldout"]["together"]
    assert metrics["groups"]["arc_easy"].keys() == {"botany", "physics"}


def test_wrong_panels_are_found_with_the_settings(repository: Path):
    for panels, problem in (({"empty": []}, "panels.empty"), ({"twice": ["piqa", "piqa"]}, "panels.twice")):
        recipe = {"seed": 1, "panels": panels, "shots": 0, "harness": "own"}
        Path("params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "evaluate": recipe}))
        with pytest.raises(ConfigError, match=problem):
            settings()


@pytest.mark.slow
def test_a_seeds_score_is_the_mean_over_its_checkpoints(unrecorded: Path):
    write_export(unrecorded / "models/export/seed-1", 5)
    main()
    alone = [single(folder) for folder in ("seed-0", "seed-1")]
    (unrecorded / "models/export/seed-0/checkpoints").mkdir()
    (unrecorded / "models/export/seed-1").rename(unrecorded / "models/export/seed-0/checkpoints/step-9")
    main()
    names = {path.stem for path in Path("data/evaluate").iterdir()}
    assert names == {"seed-0", "seed-0-step-9", "heldout-seed-0", "heldout-seed-0-step-9"}
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    for name in ("small", "all"):
        values = [scores["panels"][name]["bpb"] for scores in alone]
        assert metrics["panels"][name]["bpb"] == pytest.approx(np.mean(values), rel=1e-5)
        spread = metrics["seeds"]["0"]["over_checkpoints"]
        assert spread["panels"][name]["bpb_sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-3)
        assert spread["checkpoints"] == 2 and spread["heldout"]["bpb_sd"] > 0


def single(folder: str) -> dict:
    """The panels of one model, from its answers."""
    rows_of = read_table(Path(f"data/evaluate/{folder}.parquet"), DETAIL).to_pylist()
    tasks = {task: summary([row for row in rows_of if row["task"] == task]) for task in ITEMS}
    panels = {"small": ["arc_easy", "hellaswag"], "all": [*ITEMS]}
    return {"panels": {name: panel(tasks[task] for task in members) for name, members in panels.items()}}
