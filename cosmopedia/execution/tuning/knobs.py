"""What can be set of an engine, in two tiers, and how a setting gets into the compute file.

A setting is a key of `serving` (`batch_size`) or an option of the engine (`--max-num-seqs`), and its value; an option
with true or false is `--name` or `--no-name`. None of the first tier changes what a request's text is; what may is
marked.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cosmopedia import yaml_editing
from cosmopedia.core.errors import ConfigError
from cosmopedia.execution.compute import CpuJobs, ExternalServing, GpuJobs, LocalServing, Serving

Settings = Mapping[str, Any]
BATCHES = ("batch_size", "--max-batch-size")  # sequences that a server decodes together
SLOTS = (*BATCHES, "concurrency")  # what a trial must fill with requests
QUANTISATION = "quantisation"  # no key of the compute file: a param, generator.quantisation
NGRAMS = (
    '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}'  # copied from the prompt: no 2nd model
)


class Knob(NamedTuple):
    """One thing to set, and what to try."""

    name: str
    values: tuple[Any, ...]
    tier: int
    changes_text: bool = False  # another value may give other texts, so that it is tried only where that is allowed


def knobs(serving: Serving) -> list[Knob]:
    """What is tried with an engine, in this order. `ConfigError` for servers that are not ours to start."""
    if isinstance(serving, ExternalServing):
        raise ConfigError("serving.engine is external: its servers are started by others, so there is nothing to tune")
    if isinstance(serving, LocalServing):
        cores = os.cpu_count() or 1
        instances = tuple(n for n in (1, 2, 4, 8) if n <= cores)
        return [Knob("batch_size", (8, 16, 32, 64), 1), Knob("instances", instances, 1)]
    if isinstance(serving, CpuJobs):
        return [Knob("batch_size", (8, 16, 32, 64), 1)]
    parallel = tuple(sorted({max(serving.gpus // 2, 1), serving.gpus, serving.gpus * 2}))
    if serving.engine == "vllm":
        return [
            Knob("gpus", parallel, 1),
            Knob("concurrency", (128, 256, 512, 1024), 1),  # the server gets it as --max-num-seqs
            Knob("--max-num-batched-tokens", (2048, 8192, 16384), 1),
            Knob("--enable-prefix-caching", (True, False), 2),
            Knob("--speculative-config", (NGRAMS,), 2, changes_text=True),
            Knob(QUANTISATION, ("fp8",), 2, changes_text=True),
        ]
    return [
        Knob("gpus", parallel, 1),
        Knob("--max-batch-size", (128, 256, 512), 1),
        Knob("--max-batch-prefill-tokens", (4096, 8192, 16384), 1),
        Knob("--speculate", (2,), 2, changes_text=True),
        Knob(QUANTISATION, ("fp8",), 2, changes_text=True),
    ]


def fillable(tried: Sequence[Knob], requests: int) -> tuple[list[Knob], list[str]]:
    """The knobs with the values that so many requests can tell apart; sentences about the others.

    A batch of 64 is one of 32 where there are 32 requests: what it wins by would be noise.
    """
    kept, sentences = [], []
    for knob in tried:
        beyond = [value for value in knob.values if knob.name in SLOTS and value > requests]
        kept.append(knob._replace(values=tuple(value for value in knob.values if value not in beyond)))
        if beyond:
            values = ", ".join(map(str, beyond))
            sentences.append(f"{knob.name} {values}: not tried with {requests} requests; --requests takes more")
    return kept, sentences


def current(serving: Serving, knob: Knob) -> Any:
    """The value that the compute file has; None: it leaves it to the engine."""
    if not knob.name.startswith("--"):
        return getattr(serving, knob.name, None)
    for option in getattr(serving, "arguments", []):
        name, _, value = option.partition("=")
        if name == knob.name:
            return _typed(value) if value else True
        if name == _negated(knob.name):
            return False
    return None


def _typed(value: str) -> Any:
    return int(value) if value.isdecimal() else value


def _negated(name: str) -> str:
    return f"--no-{name.removeprefix('--')}"


def option(name: str, value: Any) -> str:
    """An option as the engine's command line has it."""
    if isinstance(value, bool):
        return name if value else _negated(name)
    return f"{name}={value}"


def changed_keys(serving: Serving, settings: Settings) -> dict[str, Any]:
    """The keys of `serving` that settings change, by their dotted names; options are one key, `arguments`.

    There are always some more requests in flight than a server decodes together.
    """
    keys = {name: value for name, value in settings.items() if not name.startswith("--") and name != QUANTISATION}
    if isinstance(serving, GpuJobs) and "gpus" in keys:
        keys["slurm.gpus"] = keys["gpus"]
    together = max((value for name, value in settings.items() if name in BATCHES), default=0)
    if together and serving.concurrency < math.ceil(1.25 * together):
        keys["concurrency"] = math.ceil(1.25 * together)
    options = {name: value for name, value in settings.items() if name.startswith("--")}
    if options:
        keys["arguments"] = _with_options(list(getattr(serving, "arguments", [])), options)
    return keys


def _with_options(arguments: list[str], options: Settings) -> list[str]:
    """Arguments with some options set: one that is there is changed in its place."""
    for name, value in options.items():
        places = [n for n, one in enumerate(arguments) if one.partition("=")[0] in (name, _negated(name))]
        if places:
            arguments[places[0]] = option(name, value)
        else:
            arguments.append(option(name, value))
    return arguments


def with_settings(serving: Serving, settings: Settings, one: bool = True) -> Serving:
    """The servers with some settings; `one` instance where they are jobs, as a trial has."""
    content = serving.model_dump()
    for key, value in changed_keys(serving, settings).items():
        *parents, leaf = key.split(".")
        node = content
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    if one and not isinstance(serving, LocalServing):
        content["instances"] = 1
    return type(serving).model_validate(content)


def write(path: Path, serving: Serving, settings: Settings) -> dict[str, Any]:
    """Write settings into a compute file, whose comments stay; the keys that changed and their values."""
    content = yaml_editing.load(path)
    changed = {}
    for key, value in changed_keys(serving, settings).items():
        node: Any = content["serving"]
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node[parent]
        if node.get(leaf) == value:
            continue
        if isinstance(node.get(leaf), list):
            present = {str(item): item for item in node[leaf]}  # with their quotes
            node[leaf][:] = [present.get(item, item) for item in value]
        else:
            node[leaf] = value
        changed[f"serving.{key}"] = value
    if changed:
        yaml_editing.dump(path, content)
    return changed
