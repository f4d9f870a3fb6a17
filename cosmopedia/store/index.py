"""Which frames may hold a key: an index in memory of 8 bytes per key, 240 MB for 30 million.

It is one sorted array of 64-bit numbers: the first 40 bits of a key, and in the other 24 the number of the frame that
may hold it. A frame is what is read at once: a frame of a segment, a row group of a parquet file. The frame's own keys
decide.
"""

import mmap
from collections.abc import Iterable

import numpy as np

FRAME_BITS = 24
FRAME_MASK = (1 << FRAME_BITS) - 1
MAP_BYTES = 8 << 20  # room for a million more; what is not used yet takes no memory
PENDING_PARTS = 1024  # arrays that wait to be copied into the index
RECENT_ROWS = 100_000  # keys in the dictionary before they are merged into the sorted array


class KeyIndex:
    """Keys of 16 bytes -> numbers of frames. What `add` takes is found after `sort`; `recent` at once, and exactly."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, MAP_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones cannot grow
        self._entries = np.frombuffer(self._memory, np.uint64, 0)
        self._pending: list[np.ndarray] = []
        self.recent: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, keys: bytes, frames: int | np.ndarray) -> None:
        """Keys that follow one another, with the frame of all or of each."""
        self._pending.append(_prefixes(keys) | np.asarray(frames, np.uint64))
        if len(self._pending) >= PENDING_PARTS:
            self.flush()

    def flush(self) -> None:
        """Append what was added to the array. Its memory is a map of its own, and grows without a copy."""
        if not self._pending:
            return
        new = np.concatenate(self._pending)
        self._pending = []
        size = len(self._entries)
        needed = 8 * (size + len(new))
        if needed > len(self._memory):
            del self._entries  # a map with a view on it cannot grow
            self._memory.resize(needed + MAP_BYTES)
        self._entries = np.frombuffer(self._memory, np.uint64, needed // 8)
        self._entries[size:] = new

    def sort(self) -> None:
        """Make what was added findable; in place."""
        self.flush()
        self._entries.sort()

    def add_recent(self, key: bytes, frame: int) -> None:
        """A key that was just stored."""
        self.recent.setdefault(key, frame)

    def merge_recent(self) -> None:
        """Move the recent keys into the array."""
        self.add(b"".join(self.recent), np.fromiter(self.recent.values(), np.uint64, len(self.recent)))
        self.flush()
        self._entries.sort(kind="stable")  # two sorted runs, nearly: a merge
        self.recent.clear()

    def possible(self, keys: list[bytes]) -> Iterable[int]:
        """Positions of the keys that some frame in the array may hold, frame by frame as they are on disk."""
        if not len(self._entries) or not keys:
            return []
        prefixes = _prefixes(b"".join(keys))
        nearest = self._entries[np.minimum(np.searchsorted(self._entries, prefixes), len(self._entries) - 1)]
        hits = np.flatnonzero(_prefix_bits(nearest) == prefixes)
        return hits[np.argsort(nearest[hits] & np.uint64(FRAME_MASK))].tolist()

    def frames(self, key: bytes) -> list[int]:
        """The frames that may hold a key."""
        if key in self.recent:
            return [self.recent[key]]
        prefix = _prefixes(key)[0]
        low = int(np.searchsorted(self._entries, prefix))
        high = int(np.searchsorted(self._entries, prefix | np.uint64(FRAME_MASK), "right"))
        return [int(entry) & FRAME_MASK for entry in self._entries[low:high]]

    def ambiguous(self) -> tuple[int, set[int], list[int]]:
        """(entries whose first 40 bits are not theirs alone, these bits, the frames that may hold them)."""
        prefixes = _prefix_bits(self._entries)
        equal = np.flatnonzero(prefixes[1:] == prefixes[:-1])
        entries = self._entries[np.unique(np.concatenate([equal, equal + 1]))]
        frames = np.unique(entries & np.uint64(FRAME_MASK))
        return len(entries), set(_prefix_bits(entries).tolist()), frames.tolist()


def _prefixes(keys: bytes) -> np.ndarray:
    """The first 40 bits of each key, in the upper bits of a uint64."""
    return _prefix_bits(np.frombuffer(keys, ">u8")[::2].astype(np.uint64))


def _prefix_bits(entries: np.ndarray) -> np.ndarray:
    return entries & ~np.uint64(FRAME_MASK)


def prefix(key: bytes) -> int:
    """The first 40 bits of a key, as `ambiguous` gives them."""
    return int.from_bytes(key[:8], "big") & ~FRAME_MASK
