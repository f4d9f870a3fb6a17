"""A small repository for the stages that use a model: prompts, a tokenizer without weights, a compute file."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cosmopedia.core.rng import content_hash
from cosmopedia.tables.contracts import PROMPT
from cosmopedia.tables.parquet import write_table
from tests.support.own_params import OWN_PARAMS, copy_chat_patterns, own_params

ROOT = Path(__file__).parents[2]
MODEL = "fake-1b"
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} [assistant]{% endif %}"
)


def prompt_row(source: str, style: str, number: int, text: str | None = None) -> dict:
    """A PROMPT row; its id does not depend on its text."""
    return {
        "prompt_id": content_hash(source, style, number),
        "prompt": text or f"Write about {source} fact {number}.",
        "source": source,
        "style": style,
        "format": style,
        "audience": "general",
        "topic": None,
        "topic_named": False,
        "seed_id": f"{source}/{number}",
        "seed_data": f"fact {number}",
        "seed_revision": "sha256:0",
        "seed_licence": "CC0-1.0",
        "template": f"prompts/{source}/{style}.txt",
        "template_hash": "0",
    }


def write_prompts(folder: Path, cells: Mapping[str, int | list[dict]]) -> None:
    """`<folder>/data/prompts/<cell>.parquet` with the given rows, or as many prompts as the number says."""
    for cell, rows in cells.items():
        source, _, style = cell.partition("-")
        content = [prompt_row(source, style, n) for n in range(rows)] if isinstance(rows, int) else rows
        write_table(folder / "data/prompts" / f"{cell}.parquet", content, PROMPT)


def write_model(folder: Path, max_length: int = 400) -> None:
    """models/generator: one token per word, a chat template, no weights."""
    target = folder / "models/generator"
    target.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
    tokenizer.save(str(target / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "<unk>"}
    (target / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT}))
    manifest = {"model": MODEL, "revision": "r1", "weights": "local", "quantisation": None, "max_length": max_length}
    (target / "generator.json").write_text(json.dumps(manifest))


def write_settings(folder: Path, endpoints: list[str], **changes: object) -> None:
    """The repository's own params of pilot, clean and generate; `changes` replace leaves by dotted name.

    With endpoints the compute file has an external engine; without, it starts servers itself.
    """
    left = dict(changes)
    for name in OWN_PARAMS:
        content = own_params(name)
        kept = {key: content[key] for key in ("profile", "pilot", "clean", "faithful", "generate") if key in content}
        for dotted in list(left):
            *path, leaf = dotted.split(".")
            node = kept
            for part in path:
                node = node.get(part, {})
            if leaf in node:
                node[leaf] = left.pop(dotted)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(kept), encoding="utf-8")
    name = "endpoints" if endpoints else "local"
    compute = yaml.safe_load((ROOT / f"compute/{name}.yaml").read_text(encoding="utf-8"))
    compute["serving"] |= {"endpoints": endpoints, "gpus": 0} if endpoints else {}
    compute["serving"] |= {"concurrency": 8, "startup_timeout_s": 10, "request_timeout_s": 10}
    compute["serving"] |= {key.removeprefix("serving."): left.pop(key) for key in list(left) if key[:8] == "serving."}
    (folder / "compute").mkdir(exist_ok=True)
    (folder / "compute/local.yaml").write_text(yaml.safe_dump(compute), encoding="utf-8")
    copy_chat_patterns(folder)
    assert not left, f"no such parameter(s): {sorted(left)}"
