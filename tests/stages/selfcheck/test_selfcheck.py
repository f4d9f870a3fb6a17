"""selfcheck: who contradicts himself more has higher scores; nothing is paid twice; off it costs nothing."""

import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.lineage import hash_files
from cosmopedia.generation.complete import PromptRequests
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Request, Sampling, completion_key
from cosmopedia.tables.contracts import COMPLETION, DOCUMENT, SELFCHECK
from cosmopedia.tables.parquet import read_table
from stages.selfcheck import __main__ as selfcheck
from stages.selfcheck.nli import Nli, NliParams
from stages.selfcheck.requests import Checked, Questions, checked_sentences, draw_documents, read_question
from stages.selfcheck.scores import Unigram, UnigramModel, asked_score
from tests.support.documents import ROOT, document, write_documents
from tests.support.fake_tgi import FakeTgi
from tests.support.own_params import OWN_PARAMS, own_params
from tests.support.prompt_rows import write_model, write_settings

SENTENCES = Path("data/selfcheck/sentences.parquet")
RATES = [0.0, 0.2, 0.5, 0.9]  # with which a statement is another one than the first time


def scripted(rate: float, dice: random.Random) -> str:
    """What a generator writes that contradicts itself at a rate: eight statements, each with a town."""
    towns = [f"Town{dice.randrange(500)}" if dice.random() < rate else "Sarn" for _ in range(8)]
    return " ".join(f"Ship {name} sailed to {town}." for name, town in zip("abcdefgh", towns, strict=True))


def scripted_answer(question: str) -> str:
    """Yes where the context has the sentence."""
    context, sentence = re.findall(r"(?:Context|Sentence): (.*)", question)
    return "Yes" if sentence.split(" [")[0] in context else "No"


def test_a_unigram_score_is_the_surprise_of_the_words_in_all_texts():
    model = UnigramModel("Red fish swim.", ["Red birds fly.", "red fish"])
    assert model.score("Red fish swim.") == Unigram(
        pytest.approx((math.log(8 / 3) + math.log(8 / 2) + math.log(8)) / 3), pytest.approx(math.log(8))
    )
    assert model.score("...") == Unigram(0.0, 0.0)
    assert asked_score(["yes", "no", "", "no"]) == 0.625 and asked_score([]) is None


def test_generators_that_contradict_themselves_more_have_higher_scores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    dice, scores = random.Random(3), []
    for rate in RATES:
        checked, answers = [], []
        for number in range(12):
            row = document(text=scripted(rate, dice), completion_id=f"{rate}-{number:02d}", topic="Ships")
            spans = checked_sentences(str(row["text"]), 12)
            checked.append(Checked(row, spans, [scripted(rate, dice) for _ in range(4)]))
        for name, question in Questions(checked, read_question()):
            answers.append((Request(name, question, 1, 0), Completion("", scripted_answer(question), "", 1, 1, "")))
        rows = selfcheck.scored(checked, answers, None)
        assert len(rows) == 12 * 8 and all(len(row["answers"]) == row["samples"] == 4 for row in rows)
        scores.append(selfcheck.summary(rows)["styles"]["web-blogpost"])
    for method in ("unigram_mean", "unigram_max", "asked"):
        values = [score[method]["value"] for score in scores]
        assert values == sorted(set(values)), method
        low, high = scores[1][method]["interval"]
        assert values[0] < low < values[1] < high < values[3], method
    assert scores[0]["asked"]["value"] == 0 and "nli" not in scores[0]


def test_a_grounded_style_is_checked_on_the_rows_of_its_plain_one(empty_folder: Path):
    for style in ("blogpost", "grounded_blogpost"):
        rows = [
            document(completion_id=f"{style}{n}-0", prompt_id=f"{style}{n}", seed_id=f"web/{n}", style=style)
            for n in range(9)
        ]
        write_documents(empty_folder / f"data/generate/web-{style}.parquet", rows)
    plain, grounded = (
        {
            row["prompt_id"].removeprefix(style)
            for row in draw_documents([Path(f"data/generate/web-{style}.parquet")], 47, 3)
        }
        for style in ("blogpost", "grounded_blogpost")
    )
    assert plain == grounded and len(plain) == 3


def write_repository(folder: Path, endpoints: list[str], **changes: object) -> None:
    """The repository's own params of the stage, enabled, with a compute file."""
    write_settings(folder, endpoints)
    values: dict[str, object] = {"enabled": True, **changes}
    for name in OWN_PARAMS:
        content, section = yaml.safe_load((folder / name).read_text()), own_params(name)["selfcheck"]
        content["selfcheck"] = section | {key: values.pop(key) for key in list(values) if key in section}
        (folder / name).write_text(yaml.safe_dump(content))
    assert not values
    (folder / "curation").mkdir(exist_ok=True)
    shutil.copy(ROOT / "curation/selfcheck.txt", folder / "curation")


@pytest.mark.slow
def test_samples_have_generates_keys_and_nothing_is_paid_twice(empty_folder: Path):
    write_model(empty_folder)
    for cell in ("web-blogpost", "web-wikihow"):
        rows = [
            document(text=scripted(0.0, random.Random(1)) + f" Part {cell} {n}.", prompt=f"{cell} {n}")
            for n in range(3)
        ]
        write_documents(empty_folder / f"data/generate/{cell}.parquet", rows)

    def answer(prompt: str, n: int) -> dict[str, object]:
        asked = "Is the sentence supported" in prompt
        return {
            "text": scripted_answer(prompt) if asked else scripted(0.5, random.Random(f"{prompt}{n}")),
            "tokens": 9,
        }

    with FakeTgi(answer) as server:
        write_repository(empty_folder, [server.url], per_cell=2, samples=2, temperature=None, max_sentences=3)
        assert selfcheck.main() == "12 sentences of 4 documents checked against 2 further samples each"
        grammars = [one.get("grammar") for one in server.parameters]
        assert grammars.count(None) == 4 * 2 and len(grammars) == 4 * 2 + 12 * 2
    rows = read_table(SENTENCES, SELFCHECK).to_pylist()
    assert all(0 <= row["asked"] <= 1 and row["unigram_max"] >= row["unigram_mean"] > 0 for row in rows)
    metrics = json.loads(Path("metrics/selfcheck.json").read_text())
    assert set(metrics["styles"]) == {"web-blogpost", "web-wikihow"} and metrics["sentences"] == 12

    generation, model = selfcheck.settings()[1], GenerationModel.read()
    document_row = next(row for row in rows if row["style"] == "blogpost")
    source = read_table("data/generate/web-blogpost.parquet", DOCUMENT).to_pylist()
    prompt = next(row for row in source if row["completion_id"] == document_row["completion_id"])
    wanted = {
        completion_key(request, model.identity, generation.sampling)
        for request in PromptRequests([(prompt["prompt_id"], prompt["prompt"])], model, generation.seed, 3)
        if request.sample_index
    }
    stored = set(read_table("data/selfcheck/completions.parquet", COMPLETION)["key"].to_pylist())
    assert len(wanted) == 2 and wanted < stored

    first = hash_files([SENTENCES])
    selfcheck.main()  # from the store: the server is gone
    assert hash_files([SENTENCES]) == first


@pytest.mark.slow
def test_samples_of_a_style_with_a_form_are_asked_for_in_that_form(empty_folder: Path):
    write_model(empty_folder)
    for cell in ("web-blogpost", "web-wikihow"):
        write_documents(
            empty_folder / f"data/generate/{cell}.parquet",
            [
                document(
                    text=f"{scripted(0.0, random.Random(1))} Part {cell}.",
                    prompt=cell,
                    style=cell.removeprefix("web-"),
                )
            ],
        )
    with FakeTgi() as server:
        write_repository(empty_folder, [server.url], per_cell=1, samples=2, ask=False)
        content = yaml.safe_load(Path("params.yaml").read_text())
        content["generate"]["forms"] = {"wikihow": {"regex": "(?s).+"}}
        Path("params.yaml").write_text(yaml.safe_dump(content))
        selfcheck.main()
    asked = [one.get("grammar") for one in server.parameters]
    assert asked.count(None) == 2 and asked.count({"type": "regex", "value": "(?s).+"}) == 2


def test_off_it_writes_empty_tables_and_starts_nothing(empty_folder: Path):
    write_repository(empty_folder, ["http://127.0.0.1:9"], enabled=False)
    assert selfcheck.main().startswith("off")
    assert read_table(SENTENCES, SELFCHECK).num_rows == 0
    assert json.loads(Path("metrics/selfcheck.json").read_text()) == {"enabled": False}


def write_nli(folder: Path, labels: list[str]) -> NliParams:
    """A tiny BERT with random weights that classifies pairs."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ship", "sailed", "to", "sarn", "brenn", "."]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), id2label=dict(enumerate(labels)), **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    return NliParams(model=str(folder), revision=None, max_tokens=32)


@pytest.mark.slow
def test_a_model_for_inference_gives_the_share_of_contradiction_against_entailment(tmp_path: Path):
    import torch

    params = write_nli(tmp_path / "nli", ["entailment", "neutral", "CONTRADICTION"])
    nli = Nli(params)
    sentences, samples = ["ship sailed to sarn.", "ship sailed to brenn."], ["ship sailed to sarn."] * 2 + ["to " * 60]
    scores = nli.scores(sentences, samples)
    assert len(scores) == 2 and all(0 < score < 1 for score in scores)
    with torch.inference_mode():
        encoded = nli.tokenizer(samples[0], sentences[1], return_tensors="pt")
        entailed, _, contradicted = nli.model(**encoded).logits[0].tolist()
    alone = nli.scores([sentences[1]], samples[:1])[0]
    assert alone == pytest.approx(1 / (1 + math.exp(entailed - contradicted)), abs=1e-5)

    with pytest.raises(ConfigError, match="one class that begins with 'contradict'"):
        Nli(write_nli(tmp_path / "other", ["entailment", "neutral", "bad"]))
    with pytest.raises(ConfigError, match="no model that can be loaded"):
        Nli(NliParams(model=str(tmp_path), revision=None, max_tokens=32))


def test_the_repositorys_answers_are_the_likelier_of_yes_and_no():
    sampling = Sampling.model_validate(own_params("params.yaml")["selfcheck"]["answer"])
    assert sampling.top_k == 1 and sampling.grammar is None
