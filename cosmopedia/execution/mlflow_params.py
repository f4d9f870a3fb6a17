"""What MLflow shows of a run's settings: its name, and the params that a person compares by.

params.yaml and a profile have about 750 leaves. MLflow gets at most `MOST` of them: those that differ from the
baseline first, then those that an ablation usually varies. All of them are the artifact params.yaml of each run.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cosmopedia.core.lineage import hash_files
from cosmopedia.core.params import SafeLoader, profile_path, read_yaml
from cosmopedia.execution.revision import branch, file_at, git_revision

MOST = 60
CHANGED_CHARS = 500
# Names, or beginnings of names with a dot at the end, in the order in which MLflow gets them.
MATTER = (
    "profile",
    "prompts.presets",
    "prompts.topic_probability",
    "prompts.extract_chars",
    "prompts.per_cell",
    "prompts.near_duplicate",
    "prompts.seed",
    "topics.min_score",
    "generator.model",
    "generator.revision",
    "generator.quantisation",
    "generate.samples_per_prompt",
    "generate.seed",
    "generate.sampling.",
    "clean.min_tokens",
    "dedup.n_grams",
    "dedup.min_jaccard",
    "mix.preset",
    "mix.tokens",
    "mix.seed",
    "tokenize_corpus.tokenizer",
    "train.backend",
    "train.preset",
    "train.steps",
    "train.batch",
    "train.sequence",
    "train.learning_rate",
    "train.warmup_steps",
    "train.precision",
    "evaluate.max_items",
    "evaluate.shots",
    "evaluate.harness",
    "evaluate.dtype",
    "train.architecture.",
)
# They change no result of a seed.
SPENDING = ("generate.max_gpu_hours", "generate.max_tokens", "generate.max_money", "train.seeds")


def all_params() -> dict[str, str]:
    """Every leaf of params.yaml and of the chosen profile, under its dotted name."""
    profile = profile_path()
    return _leaves(read_yaml(profile.parent.parent / "params.yaml"), read_yaml(profile))


def changed_params(now: dict[str, str]) -> dict[str, str]:
    """The params that differ from those of the commit that this work is based on: an experiment's baseline, else HEAD.

    Empty outside a git repository, and where the baseline has no such files.
    """
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or "HEAD"
    texts = [file_at(commit, path) for path in ("params.yaml", profile_path().as_posix())]
    try:
        before = _leaves(*(yaml.load(text, SafeLoader) or {} for text in texts)) if all(texts) else {}
    except (yaml.YAMLError, AttributeError):
        before = {}
    return {name: value for name, value in now.items() if before and before.get(name) != value}


def params_that_matter(own: dict[str, str]) -> dict[str, str]:
    """At most `MOST` params: `own`, what changed, the templates' hash, then `MATTER`."""
    everything = all_params()
    changed = {name: value for name, value in changed_params(everything).items() if name not in SPENDING}
    chosen = dict(own)
    if changed:
        chosen["changed"] = ", ".join(f"{name}={value}" for name, value in changed.items())[:CHANGED_CHARS]
    templates = sorted(Path("prompts").glob("*/*.txt"))
    if templates:
        chosen["prompts.templates"] = hash_files(templates)[:8]
    usual = {name: value for wanted in MATTER for name, value in everything.items() if _is(name, wanted)}
    for name, value in (changed | usual).items():
        if len(chosen) < MOST:
            chosen.setdefault(name, value)
    return chosen


def arm() -> str:
    """What a person calls this line of work: the DVC experiment's name, else "<branch>@<short revision>"."""
    if experiment := os.environ.get("DVC_EXP_NAME"):
        return experiment
    revision = git_revision()
    if revision == "unknown":
        return "no revision"
    commit, _, dirty = revision.partition("-")
    return f"{branch()}@{commit[:7]}{'-' + dirty if dirty else ''}".removeprefix("@")


def as_yaml() -> str:
    """All params, for the artifact."""
    return yaml.safe_dump(all_params(), sort_keys=False, allow_unicode=True, width=1000)


def _is(name: str, wanted: str) -> bool:
    return name.startswith(wanted) if wanted.endswith(".") else name == wanted


def _leaves(*contents: dict[str, Any]) -> dict[str, str]:
    return {name: value for content in contents for name, value in flatten(content)}


def flatten(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The values of nested settings with their dotted names."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flatten(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(node)[:6000]
