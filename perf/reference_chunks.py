"""The published script's client, restated: chunks of prompts with a barrier after each.

In: requests and one server. Out: a JSON file per chunk, written when the whole chunk has been answered.
The rules are the published ones: a chunk of 1,000 is requested at once, a semaphore limits the outstanding requests,
the next chunk starts after the last answer of this one, and a failed request has an empty completion. The connections
are not: it uses the same pooled session as ours, so that only the order of the requests is compared.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp

CHUNK = 1000
TIMEOUT_S = 600.0


def chunks(requests: Iterable[dict[str, Any]], size: int = CHUNK) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` requests; the last may be shorter."""
    iterator = iter(requests)
    while chunk := list(islice(iterator, size)):
        yield chunk


async def run(url: str, requests: Iterable[dict[str, Any]], concurrency: int, out: Path) -> int:
    """Post bodies to /generate chunk by chunk; returns how many texts came back."""
    allowed = asyncio.Semaphore(concurrency)
    texts = 0
    connector, deadline = aiohttp.TCPConnector(limit=concurrency), aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=deadline, trust_env=False) as http:

        async def post(body: dict[str, Any]) -> str:
            async with allowed:
                try:
                    async with http.post(f"{url}/generate", json=body) as answer:
                        answer.raise_for_status()
                        return (await answer.json())["generated_text"]
                except (aiohttp.ClientError, TimeoutError, KeyError):
                    return ""

        for number, chunk in enumerate(chunks(requests)):
            completions = await asyncio.gather(*(post(body) for body in chunk))
            texts += sum(bool(text) for text in completions)
            rows = [
                {"prompt": body["inputs"], "completion": text} for body, text in zip(chunk, completions, strict=True)
            ]
            (out / f"checkpoint_{number}.json").write_text(json.dumps(rows))
    return texts
