"""Export: the folder loads as any Hugging Face model does, and its logits are the trained model's."""

import json
import subprocess
from pathlib import Path

import pytest

from cosmopedia.core.errors import DataError, InternalError
from stages.export import __main__ as export
from stages.export.card import model_card, texts
from tests.support.tiny_llama import write_model, write_tokenizer, write_training


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained model, its corpus's tokenizer with a chat template, and the generator's card; the current folder."""
    monkeypatch.chdir(tmp_path)
    vocabulary = write_tokenizer(tmp_path / "data/tokenize_corpus", chat_template="{{ messages }}")
    write_model(tmp_path / "models/train/seed-1", vocabulary)
    write_training(tmp_path / "models/train/seed-1", vocabulary)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/mix.json").write_text(json.dumps({"components": {"synthetic": {"share": 1.0}}}))
    (tmp_path / "models/generator").mkdir()
    (tmp_path / "models/generator/generator.json").write_text(json.dumps({"model": "teacher", "revision": "r1"}))
    return tmp_path


@pytest.mark.slow
def test_the_exported_folder_loads_plainly_and_gives_the_trained_logits(trained: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_model(Path("models/train/seed-1/checkpoints/step-9"), 257, seed=5)
    export.main()
    tokenizer = AutoTokenizer.from_pretrained("models/export/seed-1")
    inputs = tokenizer("Water boils at a lower temperature.", return_tensors="pt")
    with torch.no_grad():
        folders = ("models/export/seed-1", "models/train/seed-1")
        exported, original = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
        assert (exported(**inputs).logits - original(**inputs).logits).abs().max() < 1e-4
    earlier = [f"models/{stage}/seed-1/checkpoints/step-9" for stage in ("export", "train")]
    one, two = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in earlier)
    assert all(torch.equal(one[name], weight) for name, weight in two.items())
    assert not torch.equal(one["lm_head.weight"], exported.state_dict()["lm_head.weight"])
    assert Path(earlier[0], "training.json").is_file() and Path(earlier[0], "tokenizer.json").is_file()
    assert exported.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3
    assert tokenizer.chat_template is None and tokenizer.model_max_length == 128
    assert json.loads(Path("metrics/export.json").read_text())["logits_max_difference"] < 1e-4
    card = Path("models/export/seed-1/README.md").read_text()
    assert "**teacher** (revision `r1`)" in card and "d" * 64 in card and "r" * 32 in card and "| - , - |" not in card


@pytest.mark.slow
def test_the_same_model_is_exported_to_the_same_bytes_at_any_commit(trained: Path):
    folders = []
    for command in (
        ["init", "-q"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t", "--allow-empty"],
    ):
        export.main()
        folders.append({path.name: path.read_bytes() for path in Path("models/export/seed-1").iterdir()})
        subprocess.run(["git", *command], check=True)
    export.main()
    assert folders[0] == folders[1]
    assert folders[0] == {path.name: path.read_bytes() for path in Path("models/export/seed-1").iterdir()}


@pytest.mark.slow
def test_weights_that_changed_on_the_way_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch):
    from stages.export import logits

    plain = logits.logits

    def other(folder: Path, probe):
        return plain(folder, probe) + (1e-3 if folder.parent == export.OUT else 0)

    monkeypatch.setattr(logits, "logits", other)
    with pytest.raises(InternalError, match=r"a logit differs from models/train/seed-1's by 0\.001"):
        export.main()


@pytest.mark.slow
def test_a_tokenizer_of_another_vocabulary_is_refused(trained: Path):
    training = json.loads(Path("models/train/seed-1/training.json").read_text())
    Path("models/train/seed-1/training.json").write_text(json.dumps(training | {"vocabulary": 300}))
    with pytest.raises(DataError, match="the tokenizer has 257 tokens, but models/train was trained with 300"):
        export.main()


def test_the_card_says_what_else_the_model_was_trained_on():
    generator = {"model": "teacher", "revision": "r1"}
    alone = texts(generator, {"synthetic": 1.0})
    assert alone.startswith("a synthetic corpus: textbooks") and alone.endswith("**teacher** (revision `r1`) wrote")
    assert texts(generator, {"synthetic": 0.333, "web": 0.667}).startswith("web text (67%), a synthetic corpus (33%):")
    assert texts(generator, {"web": 1.0}) == "web text (100%)"


def test_the_cards_licence_follows_what_the_model_was_trained_on():
    from huggingface_hub import ModelCard

    recipe = {
        "architecture": {"layers": 2, "heads": 2, "kv_heads": 2, "width": 8, "vocabulary": 9},
        "sequence": 8,
        "seed": 1,
    }
    names = ("parameters", "tokens", "epochs", "steps", "backend", "precision", "train_loss", "validation_loss")
    names += ("validation_perplexity", "vocabulary", "documents", "corpus_tokens", "dataset_hash", "recipe_hash")
    training = dict.fromkeys(names, 1) | {"recipe": recipe}
    generator = {"model": "meta-llama/Llama-2-7b-chat-hf", "revision": "r1"}
    synthetic, web = {"share": 0.5, "licences": ["CC0-1.0"]}, {"share": 0.5, "licences": ["CC-BY-SA-4.0"]}

    def licence_of(components: dict) -> str:
        return str(ModelCard(model_card(training, generator, components)).data.license)

    assert licence_of({"synthetic": synthetic}) == "llama2"
    assert licence_of({"web": web}) == "cc-by-sa-4.0"  # the generator wrote none of it
    assert licence_of({"synthetic": synthetic, "web": web}) == "other"
    assert licence_of({"web": {"share": 1.0}}) == "other"  # by an older metrics/mix.json, which names none


def test_a_missing_model_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"models/train holds no trained model"):
        export.main()
