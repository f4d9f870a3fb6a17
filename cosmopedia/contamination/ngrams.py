"""A table of the benchmark items' n-grams, by their hashes, in which many documents are looked up at once."""

from dataclasses import dataclass, replace

import numpy as np

from cosmopedia.corpus.word_hashes import BloomFilter, WordHashes

NOT_COUNTED = -1  # in place of an n-gram's number: an item found by all its words


@dataclass(frozen=True)
class NgramTable:
    """N-grams of items by the hash of their first `size` words."""

    size: int
    hashes: np.ndarray  # different ones, ascending
    first: np.ndarray  # the first entry that has each of them,
    count: np.ndarray  # and how many have it
    items: np.ndarray  # of an entry, as what follows
    places: np.ndarray
    ngrams: np.ndarray  # numbers of the different ones, or NOT_COUNTED
    whole: np.ndarray | None  # hashes of all `sizes` words; None: these are the first `size`
    sizes: np.ndarray | None
    filter: BloomFilter

    @classmethod
    def of(
        cls,
        words: WordHashes,
        size: int,
        hashes: np.ndarray,
        items: np.ndarray,
        places: np.ndarray,
        sizes: np.ndarray | None = None,
    ) -> "NgramTable":
        """The table of n-grams with these `hashes` of their first words, in `items` from `places` on.

        They have `sizes` words (default: `size`).
        """
        order = np.argsort(hashes, kind="stable")
        hashes, items, places = hashes[order], items[order], places[order]
        first = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
        count = np.diff(np.append(first, len(hashes)))
        if sizes is None:
            numbers, whole = np.repeat(np.arange(len(first)), count), None
        else:
            sizes = sizes[order]
            numbers, whole = np.full(len(order), NOT_COUNTED), words.runs(words.bounds[items] + places, sizes)
        different = hashes[first]
        items, places, numbers = (column.astype(np.int32) for column in (items, places, numbers))
        return cls(size, different, first, count, items, places, numbers, whole, sizes, BloomFilter.of(different))

    def of_at_most(self, entries: int) -> "NgramTable":
        """Without the n-grams that more entries have."""
        few = self.count <= entries
        hashes = self.hashes[few]
        return replace(
            self, hashes=hashes, first=self.first[few], count=self.count[few], filter=BloomFilter.of(hashes)
        )

    def matches(self, words: WordHashes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(text, place in it, item, place in the item, n-gram) of every equal hash that lies within one text."""
        at, wanted = words.ngrams(self.size, self.filter)
        number = np.searchsorted(self.hashes, wanted)
        equal = self.hashes[np.minimum(number, len(self.hashes) - 1)] == wanted if len(self.hashes) else []
        at, number = at[equal], number[equal]
        if not len(at):
            none = np.zeros(0, dtype=np.int64)
            return none, none, none, none, none
        # one row per n-gram of the texts and entry of the table that has it
        count = self.count[number]
        before = np.cumsum(count) - count
        entries = np.arange(int(count.sum())) + np.repeat(self.first[number] - before, count)
        at = np.repeat(at, count)
        text = np.searchsorted(words.bounds, at, "right") - 1
        if self.sizes is not None and self.whole is not None:
            sizes = self.sizes[entries]
            inside = np.flatnonzero(at + sizes <= words.bounds[text + 1])
            equal = inside[words.runs(at[inside], sizes[inside]) == self.whole[entries[inside]]]
            at, text, entries = at[equal], text[equal], entries[equal]
        return text, at - words.bounds[text], self.items[entries], self.places[entries], self.ngrams[entries]
