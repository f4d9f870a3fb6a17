"""Make demonstrations.jsonl, the prompt-to-text pairs that the tiny generator of the profile smoke learns from.

Prompts are rendered from prompts/ and curation/label.txt, texts are the pieces and passages of this folder. The result
is committed: the generator must not be trained again whenever somebody edits a template.
Run from the repository's root: python data/samples/generator/build_demonstrations.py
"""

import json
from collections import Counter, defaultdict
from pathlib import Path

from cosmopedia.core.rng import draw_sample, draw_u64
from cosmopedia.corpus.keywords import english_stop_words, keywords, words
from stages.label.answers import expected_answer, labelling_prompt, read_label_template
from stages.prompts.templates import read_template
from stages.sources.reader import Rejected
from stages.sources.readers.openstax import OpenstaxFilter
from stages.sources.readers.openstax import read as read_openstax

HERE = Path(__file__).parents[1]  # data/samples
SEED, EXTRACT_CHARS, LABEL_CHARS, LABEL_WORDS = 11, 320, 80, 10
PAGES_PER_TOPIC, VERBATIM_REPEATS, LABELS_PER_TOPIC = 7, 3, 4  # few texts, learnt well, in a minute and a half
WEB_STYLES = ["textbook_academic", "textbook_narrative", "blogpost"]
SCORES = {
    "astronomy": ("Astronomy", 9), "cell_biology": ("Cell Biology", 10), "chemistry": ("Chemistry", 9),
    "physics": ("Physics", 10), "geology": ("Geology", 9), "ancient_history": ("Ancient History", 9),
    "economics": ("Economics", 9), "computer_programming": ("Computer Programming", 9),
    "nutrition_and_health": ("Nutrition and Health", 8), "cooking": ("Cooking", 6), "gardening": ("Gardening", 7),
    "music": ("Music", 8), "literature": ("Literature", 9), "law_and_government": ("Law and Government", 8),
    "home_repair": ("Home Repair", 6), "promotions": ("Shopping Promotions", 1),
    "celebrity_gossip": ("Celebrity Gossip", 1), "gambling": ("Gambling", 1),
}  # fmt: skip


def read(name: str) -> list[dict]:
    """The rows of a JSONL file of this folder."""
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def cut(text: str, chars: int = EXTRACT_CHARS) -> str:
    """The first `chars` characters, back to a word's end."""
    return text if len(text) <= chars else text[: chars + 1].rsplit(maxsplit=1)[0]


def topic_keywords(pages: dict[str, list[dict]]) -> dict[str, list[str]]:
    """The best c-TF-IDF words of each topic, as the label stage shows them."""
    stop_words, names = english_stop_words(), sorted(pages)
    counts = {
        number: Counter(word for page in pages[name] for word in words(page["text"], stop_words))
        for number, name in enumerate(names)
    }
    best = keywords(counts, {number: len(pages[name]) for number, name in enumerate(names)}, LABEL_WORDS)
    return {name: best[number] for number, name in enumerate(names)}


def web_rows() -> list[dict]:
    """Passages as answers to the web templates, the extract from another passage of the same topic."""
    topics = json.loads((HERE / "web_topics.json").read_text(encoding="utf-8"))
    overlaps = json.loads((HERE / "web_planted.json").read_text(encoding="utf-8"))["overlaps"]
    verbatim = {row["id"] for row in overlaps if row["how"] == "verbatim"}
    pages: dict[str, list[dict]] = defaultdict(list)
    for page in read("web/pages.jsonl"):
        if page["id"] in topics:
            pages[topics[page["id"]]].append(page)
    rows, label, words_of = [], read_label_template(), topic_keywords(pages)
    for topic, members in sorted(pages.items()):
        name, score = SCORES[topic]
        texts = {page["id"]: page["text"] for page in members}
        for turn in range(LABELS_PER_TOPIC):
            shown = draw_sample(SEED, f"label {turn}", texts, 10)
            prompt = labelling_prompt([texts[i] for i in shown], words_of[topic], label, LABEL_CHARS, grammar=True)
            rows.append({"prompt": prompt, "text": expected_answer(name, score)})
        if score == 1:
            continue
        chosen = draw_sample(
            SEED, "pages", [page["id"] for page in members if page["id"] not in verbatim], PAGES_PER_TOPIC
        )
        for page in members:
            if page["id"] not in verbatim and page["id"] not in chosen:
                continue
            for turn in range(VERBATIM_REPEATS if page["id"] in verbatim else 1):
                other = texts[draw_sample(SEED, f"extract {page['id']} {turn}", texts, 1)[0]]
                style = WEB_STYLES[draw_u64(SEED, page["id"], turn) % len(WEB_STYLES)]
                named = f', within the context of "{name}"' if turn % 2 else ""
                slots = {"extract": cut(other), "in_topic": named, "topic": name}
                rows.append({"prompt": read_template("web", style).render(slots), "text": page["text"]})
    return rows


def piece_rows() -> list[dict]:
    """The written pieces, as answers to their own cell's template."""
    rows = []
    for piece in read("generator/pieces.jsonl"):
        subject = piece["subject"]
        slots = {"extract": subject, "title": subject, "in_topic": "", "topic": "", "covered": ""}
        slots |= dict.fromkeys(("course", "book", "section", "chapter"), cut(subject, 60))
        slots |= dict.fromkeys(("unit", "lesson"), subject)
        rows.append({"prompt": read_template(piece["source"], piece["style"]).render(slots), "text": piece["text"]})
    return rows


def curated_rows() -> list[dict]:
    """OpenStax sections and mathematical snippets, as answers to their sources' templates."""
    rows, before = [], ""
    keep = OpenstaxFilter(language="en", drop_chapters=["preface"], drop_sections=[], min_words=15)
    for book in read("openstax/books.jsonl"):
        for number, seed in enumerate(read_openstax(book, keep)):
            if isinstance(seed, Rejected):
                continue
            style = ["college", "middle_school", "researchers"][number % 3]
            slots = {"book": seed.context["book"], "chapter": ": ".join(seed.context["trail"]), "unit": seed.title}
            slots |= {"covered": "", "extract": cut(before or seed.title)}
            rows.append({"prompt": read_template("openstax", style).render(slots), "text": seed.text})
            before = seed.text
    snippets = [row["text"] for row in read("automathtext/snippets.jsonl") if row["text"]][:15]
    for text, other in zip(snippets, snippets[1:] + snippets[:1], strict=True):
        rows.append({"prompt": read_template("automathtext", "college").render({"extract": cut(other)}), "text": text})
    return rows


if __name__ == "__main__":
    rows = web_rows() + piece_rows() + curated_rows()
    rows.sort(key=lambda row: draw_u64(SEED, row["prompt"], row["text"]))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / "generator/demonstrations.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(rows)} demonstrations")
