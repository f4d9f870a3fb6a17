"""What coverage.outstanding rests on: which texts get a topic, and the right one, at several thresholds.

    python -m perf.coverage        # half a CPU minute

| texts | what they are |
|---|---|
| planted | the 54 texts of tests/stages/coverage/planted.jsonl that were written for a topic |
| pages | the sample pages of topics that the taxonomy has (data/samples/web_topics.json) |
| word salad | 30 words drawn from all pages |
| patchwork | six sentences, each from a page of another topic |
| elsewhere | the sample pages of gossip, gambling and promotions, which have no topic in the taxonomy |
| topic taken out | planted texts and pages, each assigned without the topic that it belongs to |

Of the first two the share that is right, of pages the share with any topic too; of the others the share without a
topic, which is what should happen. The sentence model and its settings are those of `embed`.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from cosmopedia.core.params import load, section
from cosmopedia.corpus.sentence_model import SentenceModel
from cosmopedia.corpus.taxonomy import leaves, read_taxonomy
from stages.coverage.assign import NONE, assign, encode, topic_vectors

PLANTED = Path("tests/stages/coverage/planted.jsonl")
PAGES, TOPICS_OF_PAGES = Path("data/samples/web/pages.jsonl"), Path("data/samples/web_topics.json")
# The taxonomy's topics for the names that the pages were written under; several where either is right.
SAME = {
    "literature": ["literature", "poetry"],
    "law_and_government": ["law", "government"],
    "home_repair": ["repairs", "household"],
    "astronomy": ["astronomy", "spaceflight"],
    "cooking": ["cooking"],
    "gardening": ["gardening", "water-soil"],
    "music": ["music"],
    "nutrition_and_health": ["nutrition", "health", "disease", "public-health", "fitness"],
    "cell_biology": ["cells", "genetics", "microbes"],
    "economics": ["economics"],
    "computer_programming": ["programming", "algorithms", "hardware", "databases"],
    "ancient_history": ["ancient-history", "archaeology"],
    "chemistry": ["chemistry", "bonding", "reactions", "solutions", "organic-chemistry"],
    "geology": ["geology"],
    "physics": ["physics", "mechanics", "thermodynamics", "electromagnetism", "waves", "modern-physics"],
}
MADE = 100  # texts of word salad, and of patchwork


def read_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def nonsense(pages: list[dict[str, str]], topics: dict[str, str]) -> tuple[list[str], list[str]]:
    """(word salad, patchwork)."""
    rng = np.random.default_rng(47)
    words = " ".join(page["text"] for page in pages).split()
    salad = [" ".join(rng.choice(words, 30)) for _ in range(MADE)]
    by_topic: dict[str, list[str]] = {}
    for page in pages:
        by_topic.setdefault(topics[page["id"]], []).extend(re.split(r"(?<=[.?!])\s+", page["text"]))
    names = sorted(by_topic)
    drawn = (rng.permutation(names)[:6] for _ in range(MADE))
    patchwork = [" ".join(str(rng.choice(by_topic[name])) for name in several) for several in drawn]
    return salad, patchwork


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = section("coverage")
    topics = leaves(read_taxonomy(str(params["taxonomy"]).partition("@")[0], None)[0])
    names = np.array([topic.id for topic in topics])
    planted = [(case["text"], [case["topic"]]) for case in read_lines(PLANTED) if case["topic"]]
    empty = [case["text"] for case in read_lines(PLANTED) if not case["topic"]]
    of_page = json.loads(TOPICS_OF_PAGES.read_text(encoding="utf-8"))
    pages = [page for page in read_lines(PAGES) if page["id"] in of_page]  # without planted overlaps and duplicates
    known = [(page["text"], SAME[of_page[page["id"]]]) for page in pages if of_page[page["id"]] in SAME]
    salad, patchwork = nonsense(pages, of_page)
    elsewhere = [page["text"] for page in pages if of_page[page["id"]] not in SAME]
    with load("embed", SentenceModel).find().encoder() as encoder:
        own = topic_vectors(topics, encoder)
        texts = [text for text, _ in [*planted, *known]]
        right, others = encode(encoder, texts), [encode(encoder, several) for several in (salad, patchwork, elsewhere)]
        others.insert(0, encode(encoder, empty))
    wanted = [set(several) for _, several in [*planted, *known]]
    first = len(planted)
    print(
        f"{len(planted)} planted texts, {len(known)} pages, {MADE} of each nonsense, {len(elsewhere)} pages elsewhere"
    )
    head = ("planted right", "pages right", "pages with any", "empty none", "salad none", "patchwork none")
    print(f"{'threshold':>9} " + " ".join(f"{name:>15}" for name in (*head, "elsewhere none", "taken out none")))
    for threshold in (2.3, 2.5, 2.7, 2.9, 3.1, 3.5):
        found = assign(right, own, threshold).topics
        hit = np.array([n != NONE and names[n] in several for n, several in zip(found, wanted, strict=True)])
        none = [float((assign(vectors, own, threshold).topics == NONE).mean()) for vectors in others]
        without = [
            assign(vector[None], own[~np.isin(names, [*several])], threshold).topics[0] == NONE
            for vector, several in zip(right, wanted, strict=True)
        ]
        shares = [hit[:first].mean(), hit[first:].mean(), (found[first:] != NONE).mean(), *none, np.mean(without)]
        print(f"{threshold:>9} " + " ".join(f"{share:>15.0%}" for share in shares))


if __name__ == "__main__":
    main()
