"""One client in a process of its own, so that its CPU seconds and memory can be measured.

In: a task (JSON file). Out: its measurements (JSON file). The client is `complete()` of this repository, or one of two
for comparison: `chunked`, the published script's order of requests, and `bare`, a loop over one aiohttp session that
keeps nothing, which is what HTTP itself costs.
Run: by perf/generation.py.
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from cosmopedia.core.files import write_text
from perf.reference_chunks import run as run_chunks
from perf.stub_server import MAX_TOKENS, corpus

SEED = 1
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": None, "repetition_penalty": None}


@dataclass
class Prompts:
    """(id, text) of prompts, any number of times: made-up ones, or a file's column `prompt`.

    A file that has too few is read again from its start, with the round's number before the text.
    """

    count: int
    first: int = 0
    characters: int = 1000
    file: str | None = None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if self.file is None:
            yield from self._made()
            return
        number, last = 0, self.first + self.count
        while number < last:
            start = number
            prefix = f"({number}) " if number else ""
            for text in self._read():
                if number >= last:
                    break
                if number >= self.first:
                    yield f"file-{number}", f"{prefix}{text}"
                number += 1
            if number == start:
                raise SystemExit(f"{self.file} holds no prompts in a column `prompt`")

    def _made(self) -> Iterator[tuple[str, str]]:
        words = corpus()
        for number in range(self.first, self.first + self.count):
            start = number * 7919 % (len(words) - self.characters)
            extract = words[start : start + self.characters]
            yield f"made-{number}", f"Write part {number} of a textbook for students, inspired by: {extract}"

    def _read(self) -> Iterator[str]:
        assert self.file is not None
        if self.file.endswith((".jsonl", ".json")):
            with Path(self.file).open(encoding="utf-8") as stream:
                for line in stream:
                    yield json.loads(line)["prompt"]
        else:
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.file, pre_buffer=False) as table:
                for batch in table.iter_batches(1000, columns=["prompt"], use_threads=False):
                    yield from batch.column("prompt").to_pylist()


@dataclass
class Task:
    """What one client process does. `connections` is for the two comparisons; ours reads the compute file."""

    client: str  # ours | chunked | bare
    prompts: Prompts
    model: str  # folder of models/generator
    result: str  # where the measurements go
    urls: list[str] = field(default_factory=list)
    connections: int = 0
    cpu: int | None = None
    max_tokens: int = MAX_TOKENS

    def write(self, path: Path) -> None:
        """As JSON, for `read`."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Task":
        """From what `write` wrote."""
        content = json.loads(path.read_text())
        return cls(**{**content, "prompts": Prompts(**content["prompts"])})


def make_model(folder: Path, model_id: str) -> Path:
    """models/generator as the stages find it, with a byte-level BPE tokenizer and no weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    manifest = {"model": model_id, "revision": "r1", "weights": "none", "quantisation": None, "max_length": 32768}
    (folder / "generator.json").write_text(json.dumps(manifest))
    return folder


def memory_mb(pid: int | str = "self") -> tuple[float, float]:
    """(resident memory of a process now, its peak so far), in MB of 10**6 bytes; zeros when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {
        name: int(value.split()[0]) * 1024 / 1e6
        for name, _, value in (line.partition(":") for line in lines)
        if name in ("VmRSS", "VmHWM")
    }
    return sizes.get("VmRSS", 0.0), sizes.get("VmHWM", 0.0)


def cpu_seconds() -> float:
    """User and system seconds of this process so far, threads included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bodies(requests: Any, max_tokens: int) -> Iterator[dict[str, Any]]:
    """What is posted to /generate for each request."""
    parameters = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": max_tokens, "details": True}
    for request in requests:
        yield {"inputs": request.prompt, "parameters": {**parameters, "seed": request.seed}}


async def run_bare(url: str, posts: list[dict[str, Any]], connections: int) -> int:
    """Every request through one session, the answers parsed and dropped; returns how many texts arrived."""
    left, texts = iter(posts), 0
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as http:

        async def work() -> None:
            nonlocal texts
            for body in left:
                async with http.post(f"{url}/generate", json=body) as answer:
                    texts += bool(json.loads(await answer.read())["generated_text"])

        await asyncio.gather(*(work() for _ in range(connections)))
    return texts


def run(task: Task) -> dict[str, Any]:
    """Do the task; measurements by name. CPU and wall cover the client's work, not imports or the tokenizer's load."""
    from cosmopedia.core.errors import ClusterError
    from cosmopedia.execution.sending import Send
    from cosmopedia.generation.complete import PromptRequests, complete
    from cosmopedia.generation.model import GenerationModel
    from cosmopedia.generation.requests import Failure, Sampling
    from cosmopedia.store.store import CompletionStore

    measured: dict[str, Any] = {"rss_imports": memory_mb()[0], "error": None}
    model = GenerationModel.read(task.model)
    requests = PromptRequests(task.prompts, model, SEED, 1)
    for _ in PromptRequests(Prompts(1), model, SEED, 1):
        model.count_tokens(["warm"])
    measured["rss_tokenizer"] = memory_mb()[0]
    measured["cpu_before"] = cpu_seconds()
    posts = list(bodies(requests, task.max_tokens)) if task.client == "bare" else []
    before, started = cpu_seconds(), time.monotonic()
    results: Any = ()
    try:
        if task.client == "ours":
            sampling = Sampling(**SAMPLING, max_new_tokens=task.max_tokens)
            with CompletionStore() as store:
                done = complete("bench", requests, model, sampling, store, Send())
            measured |= {"sent": done.sent, "new": done.new, "cached": done.cached, "failed": done.failed}
            measured["retries"] = done.record().get("retries", {})
            results = done.results if done.failed else ()
        elif task.client == "chunked":
            out = Path(task.result).parent / f"chunks-{os.getpid()}"
            out.mkdir()
            posts_of = bodies(requests, task.max_tokens)
            measured["new"] = asyncio.run(run_chunks(task.urls[0], posts_of, task.connections, out))
        else:
            measured["new"] = asyncio.run(run_bare(task.urls[0], posts, task.connections))
    except ClusterError as error:
        measured["error"] = str(error)
    except KeyboardInterrupt:
        measured["error"] = "interrupted"
    measured |= {"wall": time.monotonic() - started, "cpu": cpu_seconds() - before}
    measured |= {"peak": memory_mb()[1]}  # ru_maxrss would begin with the memory of the process that forked us
    measured["failures"] = [[result.key, result.reason] for _, result in results if isinstance(result, Failure)]
    return measured


def main() -> None:
    """python -m perf.client_process TASK"""
    task = Task.read(Path(sys.argv[1]))
    if task.cpu is not None:
        os.sched_setaffinity(0, {task.cpu})
    measured = run(task)
    write_text(Path(task.result), json.dumps(measured))


if __name__ == "__main__":
    main()
