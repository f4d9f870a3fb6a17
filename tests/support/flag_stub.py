"""A server with TGI's API whose speed depends on its flags: with --batch-size 16 it writes the most tokens per second.

Takes the CPU server's arguments; with --batch-size 64 it does not start, as one that is out of memory.
"""

import asyncio
import sys

from tests.support import fake_tgi


def seconds_per_completion(batch_size: int) -> float:
    """8: 80, 16: 107, 32: 64 completions per second."""
    return {8: 0.1, 16: 0.15, 32: 0.5}[batch_size]


def main() -> None:
    batch_size = int(sys.argv[sys.argv.index("--batch-size") + 1])
    if batch_size == 64:
        raise SystemExit("out of memory")
    fake_tgi.os.environ |= {
        "FAKE_TGI_DELAY": str(seconds_per_completion(batch_size)),
        "FAKE_TGI_SLOTS": str(batch_size),
    }
    asyncio.run(fake_tgi.main())


if __name__ == "__main__":
    main()
