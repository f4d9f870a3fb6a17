"""Corpora with planted faults, and small models trained on them: what `perf.decide` compares.

A corpus is a draw of documents; a fault changes a share of them and leaves the number of tokens that are trained on as
it is. Every model is scored on the same held-out documents and cloze items, and leaves what the evaluate stage leaves:
`<folder>/<arm>/data/evaluate/{seed-<n>,heldout-seed-<n>}.parquet`, which `cosmo compare` reads as well.
"""

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional

from cosmopedia.core.files import write_text
from cosmopedia.core.params import read_yaml
from cosmopedia.evaluation.item_scores import best, by_character, without_space
from cosmopedia.records.reading import read_records
from cosmopedia.tables.contracts import DETAIL, HELDOUT
from cosmopedia.tables.parquet import write_table
from stages.benchmarks.__main__ import items_of
from stages.train.init_weights import new_model
from stages.train.recipe import Recipe, learning_rate
from stages.train.windows import WindowOrder

SAMPLES = Path("data/samples")
TASKS = ("arc_easy", "arc_challenge", "mmlu", "hellaswag", "piqa", "commonsense_qa", "openbookqa")
END = "<|endoftext|>"
BOILERPLATE = (
    "Welcome to our website. We use cookies to give you the best experience. By continuing to browse this site you"
    " agree to our terms and conditions. Please read our privacy policy to learn how we use your data. Sign up for our"
    " newsletter to receive the latest offers. Share this page with your friends. All rights reserved."
)


@dataclass(frozen=True)
class Settings:
    """What the models and their scores depend on."""

    texts: str  # a file with the column `text`, and `group` or `label`; "samples": data/samples
    documents: int = 400  # of a corpus
    vocabulary: int = 1024
    layers: int = 2
    width: int = 64
    heads: int = 2
    sequence: int = 64
    batch: int = 8
    steps: int = 200
    rate: float = 4e-3
    held_out: int = 16  # documents per set
    held_out_tokens: int = 256  # of each
    continuations: int = 150  # cloze items made from held-out documents

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of every seed, with the values of params.yaml for what is not in here."""
        train = read_yaml(Path("params.yaml"))["train"]
        shared = ("final_rate_share", "betas", "epsilon", "weight_decay", "gradient_clip")
        shape = {"vocabulary": self.vocabulary, "layers": self.layers, "heads": self.heads, "kv_heads": self.heads}
        shape |= {"width": self.width, "intermediate": self.width * 8 // 3 // 8 * 8, "max_positions": 1024}
        return {name: train[name] for name in shared} | {
            "backend": "transformers",
            "preset": None,
            "architecture": shape | {"rope_theta": 10000, "tied_embeddings": True},
            "sequence": self.sequence,
            "batch": self.batch,
            "micro_batch": self.batch,
            "steps": self.steps,
            "learning_rate": self.rate,
            "warmup_steps": self.steps // 8,
            "precision": "fp32",
            "cpu_threads": 1,
        }


@dataclass(frozen=True)
class Document:
    """A text and what it is about."""

    text: str
    topic: str
    set: str  # the held-out set that it would be in


def words_shuffled(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def sentences_shuffled(text: str, rng: random.Random) -> str:
    sentences = [sentence for sentence in text.replace("\n", " ").split(". ") if sentence.strip()]
    rng.shuffle(sentences)
    return ". ".join(sentences)


def boilerplate(text: str, _: random.Random) -> str:
    """Half of the text, behind as much boilerplate."""
    half = len(text) // 2
    return (BOILERPLATE + " ") * (half // len(BOILERPLATE)) + BOILERPLATE[: half % len(BOILERPLATE)] + text[half:]


def one_repeated(documents: list[Document], changed: list[int], _: list[Document], rng: random.Random) -> list[str]:
    """The changed documents are copies of a single one, as long as the median."""
    ordered = sorted(documents, key=lambda document: len(document.text))
    return [ordered[len(ordered) // 2].text] * len(changed)


def topics_missing(
    documents: list[Document], changed: list[int], spare: list[Document], rng: random.Random
) -> list[str]:
    """Of the changed documents, those with one of half of the topics are others with a topic of the other half."""
    topics = sorted({document.topic for document in documents})
    missing = set(random.Random(0).sample(topics, len(topics) // 2))
    others = [document.text for document in spare if document.topic not in missing]
    others = others or [document.text for document in documents if document.topic not in missing]
    return [rng.choice(others) if documents[i].topic in missing else documents[i].text for i in changed]


def each(change: Callable[[str, random.Random], str]) -> Callable[..., list[str]]:
    """A fault that changes documents one by one."""
    return lambda documents, changed, _, rng: [change(documents[i].text, rng) for i in changed]


FAULTS: dict[str, Callable[..., list[str]]] = {
    "words": each(words_shuffled),
    "sentences": each(sentences_shuffled),
    "repeated": one_repeated,
    "boilerplate": each(boilerplate),
    "topics": topics_missing,
}


def planted(documents: list[Document], spare: list[Document], fault: str, share: float) -> list[str]:
    """The corpus with a fault in a share of its documents, drawn; a larger share holds the smaller one."""
    rng = random.Random(f"{fault}")
    order = rng.sample(range(len(documents)), len(documents))
    changed = sorted(order[: round(share * len(documents))])
    texts = [document.text for document in documents]
    for i, text in zip(changed, FAULTS[fault](documents, changed, spare, rng), strict=True):
        texts[i] = text
    return texts


def sample_documents() -> list[Document]:
    """The web pages of data/samples, with their topics; the held-out set is the topic's first letters."""
    topics = json.loads((SAMPLES / "web_topics.json").read_text(encoding="utf-8"))
    lines = (SAMPLES / "web/pages.jsonl").read_text(encoding="utf-8").splitlines()
    pages = [json.loads(line) for line in lines]
    return [Document(page["text"], topics[page["id"]], "web") for page in pages if page["id"] in topics]


def file_documents(path: Path) -> list[Document]:
    """A parquet file's texts; `label` is the topic and `group` the held-out set, where they exist."""
    rows = pq.read_table(path).to_pylist()
    return [Document(row["text"], str(row.get("label")), str(row.get("group") or "all")) for row in rows]


@dataclass
class Texts:
    """A draw of the texts: what is trained on, what replaces some of it, what is held out, and the cloze items."""

    corpus: list[Document]
    spare: list[Document]
    held_out: list[Document]
    items: list[dict[str, Any]]


def draw(settings: Settings) -> Texts:
    """The same for every arm and seed."""
    documents = sample_documents() if settings.texts == "samples" else file_documents(Path(settings.texts))
    random.Random(1).shuffle(documents)
    held_out: list[Document] = []
    for name in sorted({document.set for document in documents}):
        held_out += [document for document in documents if document.set == name][: settings.held_out]
    taken = set(map(id, held_out))
    rest = [document for document in documents if id(document) not in taken]
    corpus, spare = rest[: settings.documents], rest[settings.documents : 3 * settings.documents]
    return Texts(corpus, spare, held_out, continuations(held_out, settings.continuations) + benchmark_items())


def benchmark_items() -> list[dict[str, Any]]:
    """The benchmark samples of the panel's tasks, in the forms of the benchmarks stage."""
    rows = []
    for task in TASKS:
        records, revision = read_records(str(SAMPLES / f"benchmarks/{task}.jsonl"), None, None, None)
        for row in items_of(task, records, revision):
            rows.append({name: row[name] for name in ("item_id", "task", "query", "choices", "gold")})
    return rows


def continuations(documents: list[Document], count: int) -> list[dict[str, Any]]:
    """Items that ask which words go on a held-out document; the wrong ones are from other places of held-out texts."""
    rng, rows = random.Random(2), []
    words = [document.text.split() for document in documents]
    usable = [number for number, text in enumerate(words) if len(text) > 80]
    for item in range(count):
        spans = []
        for number in [usable[item % len(usable)], *rng.sample(usable, 3)]:
            at = rng.randrange(40, len(words[number]) - 12)
            spans.append((words[number][at - 40 : at], " " + " ".join(words[number][at : at + 12])))
        choices = [text for _, text in spans]
        order = rng.sample(range(4), 4)
        rows.append(
            {
                "item_id": f"continuation/{item:06d}",
                "task": "continuation",
                "query": " ".join(spans[0][0]),
                "choices": [choices[i] for i in order],
                "gold": order.index(0),
            }
        )
    return rows


def tokenizer_of(texts: Texts, settings: Settings, path: Path) -> Tokenizer:
    """A byte-level BPE learnt from the healthy corpus, once for all arms."""
    if path.is_file():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in texts.corpus), trainer)
    write_text(path, tokenizer.to_str())
    return tokenizer


def train(settings: Settings, tokens: np.ndarray, seed: int) -> torch.nn.Module:
    """A model of one seed: initial weights and the order of the windows are its, as in the train stage."""
    recipe = Recipe(seed=seed, **settings.recipe)
    model = new_model(recipe, 0).train()
    windows = (len(tokens) - 1) // settings.sequence
    order = WindowOrder(windows, seed)
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    for step in range(settings.steps):
        starts = [order[step * settings.batch + i] * settings.sequence for i in range(settings.batch)]
        block = torch.from_numpy(np.stack([tokens[at : at + settings.sequence + 1] for at in starts]))
        for group in adam.param_groups:
            group["lr"] = learning_rate(recipe, step + 1)
        logits = model(input_ids=block[:, :-1]).logits
        functional.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        adam.step()
        adam.zero_grad()
    return model.eval()


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, rows: list[tuple[list[int], int]]) -> list[float]:
    """For each (tokens, start): the sum of the log-probabilities of the tokens from `start` on, in nats."""
    sums = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for first in range(0, len(order), 32):
        batch = order[first : first + 32]
        longest = max(len(rows[i][0]) for i in batch)
        block = torch.zeros(len(batch), longest, dtype=torch.long)
        for line, i in enumerate(batch):
            block[line, : len(rows[i][0])] = torch.tensor(rows[i][0])
        logits = model(input_ids=block[:, :-1]).logits
        losses = functional.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten(), reduction="none")
        losses = losses.view(len(batch), -1)
        for line, i in enumerate(batch):
            tokens, start = rows[i]
            sums[i] = -float(losses[line, start - 1 : len(tokens) - 1].sum())
    return sums


def score_items(model: torch.nn.Module, tokenizer: Tokenizer, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """DETAIL rows of the cloze items."""
    rows = []
    for item in items:
        context = [0, *tokenizer.encode(item["query"]).ids]
        rows += [(context + tokenizer.encode(choice).ids, len(context)) for choice in item["choices"]]
    sums, details, first = log_probabilities(model, rows), [], 0
    for item in items:
        logprobs = sums[first : first + len(item["choices"])]
        first += len(item["choices"])
        plain, normed = best(logprobs), best(by_character(logprobs, item["choices"]))
        details.append(
            {name: item[name] for name in ("item_id", "task", "gold", "choices")}
            | {"predicted": plain, "predicted_norm": normed, "logprobs": logprobs, "group": None}
            | {"correct": plain == item["gold"], "correct_norm": normed == item["gold"]}
            | {"bytes": [len(without_space(choice).encode()) for choice in item["choices"]]}
        )
    return details


def score_held_out(
    model: torch.nn.Module, tokenizer: Tokenizer, documents: list[Document], limit: int
) -> list[dict[str, Any]]:
    """HELDOUT rows of the held-out documents."""
    tokens = [tokenizer.encode(document.text).ids[:limit] for document in documents]
    sums = log_probabilities(model, [([0, *ids], 1) for ids in tokens])
    return [
        {
            "set": document.set,
            "document_id": f"{document.set}/{number:04d}",
            "nats": -total,
            "tokens": len(ids),
            "bytes": len(tokenizer.decode(ids).encode()),
        }
        for number, (document, ids, total) in enumerate(zip(documents, tokens, sums, strict=True))
    ]


class Campaign:
    """Trainings in a folder; each is done once, so that a killed campaign goes on where it was."""

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        path = folder / "settings.json"
        ours = json.dumps(asdict(settings), indent=2) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") != ours:
            raise SystemExit(f"{path} is of other settings; give another --folder, or the settings in it")
        write_text(path, ours)
        torch.set_num_threads(1)
        self.texts = draw(settings)
        self.tokenizer = tokenizer_of(self.texts, settings, folder / "tokenizer.json")

    def run(self, arm: str, seed: int) -> float:
        """Train and score one model, unless it is there; CPU seconds. `arm` is "equal" or "<fault>-<percent>"."""
        out = self.folder / arm / "data/evaluate"
        if (out / f"seed-{seed}.parquet").is_file():
            return 0.0
        started = time.process_time()
        documents = self.texts.corpus
        fault, _, percent = arm.partition("-")
        texts = [document.text for document in documents]
        if percent:
            texts = planted(documents, self.texts.spare, fault, int(percent) / 100)
        ids = [[*encoding.ids, 0] for encoding in self.tokenizer.encode_batch(texts)]
        tokens = np.concatenate([np.array(part, dtype=np.int64) for part in ids])
        model = train(self.settings, tokens, seed)
        held_out = score_held_out(model, self.tokenizer, self.texts.held_out, self.settings.held_out_tokens)
        details = score_items(model, self.tokenizer, self.texts.items)
        write_table(out / f"heldout-seed-{seed}.parquet", held_out, HELDOUT)
        write_table(out / f"seed-{seed}.parquet", details, DETAIL)
        nats, size = sum(row["nats"] for row in held_out), sum(row["bytes"] for row in held_out)
        spent = time.process_time() - started
        epochs = self.settings.steps * self.settings.batch * self.settings.sequence / len(tokens)
        accuracy = np.mean([row["correct_norm"] for row in details])
        print(
            f"{arm} seed {seed}: {nats / math.log(2) / size:.4f} bits per byte, acc_norm {accuracy:.3f},"
            f" {epochs:.2f} epochs, {spent:.1f} CPU s",
            flush=True,
        )
        return spent
