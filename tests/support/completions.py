"""Completions for tests of the store, and processes that write them."""

import subprocess
import sys
from pathlib import Path

from cosmopedia.core.rng import content_hash
from cosmopedia.generation.requests import Completion

ROOT = Path(__file__).parents[2]


def completion(number: int, words: int = 20) -> Completion:
    key = content_hash("store test", number)
    return Completion(key, f"text of {number} " + f"w{number} " * words, "eos_token", words, 7, "fake/1")


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
