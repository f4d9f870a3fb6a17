"""label: what the model is shown, which answers count, and what replaces an answer that does not."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from string import Template

import pytest
import yaml

from cosmopedia.core.errors import ClusterError, ConfigError, DataError
from cosmopedia.core.lineage import hash_files
from cosmopedia.corpus.keywords import keywords, words
from cosmopedia.generation.requests import Failure
from cosmopedia.tables.contracts import ASSIGNMENT, LABEL, SOURCE
from cosmopedia.tables.parquet import read_table, write_table
from stages.label import __main__ as label
from stages.label.answers import (
    GRAMMAR,
    Answer,
    excerpt,
    expected_answer,
    labelling_prompt,
    parse_answer,
    read_label_template,
)
from stages.label.labels import check_results, make_unique, without_invented_words
from tests.support.fake_tgi import FakeTgi
from tests.support.own_params import OWN_PARAMS, own_params
from tests.support.prompt_rows import ROOT, write_model, write_settings

LABELS = Path("data/label/labels.parquet")
TEXTS = {
    0: "Telescope number {n} shows the moon and a planet, and the planet has a small moon.",
    1: "Simmer the sauce for {n} minutes, then add butter and salt to the sauce.",
    -1: "Nothing {n} here belongs anywhere.",
}


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    write_model(empty_folder)
    write_inputs({0: 14, 1: 6, -1: 2})
    (empty_folder / "curation").mkdir()
    (empty_folder / "curation/label.txt").write_bytes((ROOT / "curation/label.txt").read_bytes())
    return empty_folder


def write_inputs(sizes: dict[int, int]) -> None:
    sources, assignments = [], []
    fixed = {"source": "web", "title": "", "context": "{}", "url": None, "licence": "CC0-1.0", "revision": "r"}
    for cluster, size in sizes.items():
        for n in range(size):
            row_id = f"web/{n:02d}-{cluster}"
            text = TEXTS[cluster].format(n=f"{n}{cluster}")
            sources.append({"row_id": row_id, "original_id": row_id, "text": text, **fixed})
            place = {"similarity": 0.5, "in_sample": False, "x": None, "y": None}
            assignments.append({"row_id": row_id, "cluster": cluster, **place})
    write_table("data/sources/web.parquet", sources, SOURCE)
    write_table("data/cluster/assignments.parquet", assignments, ASSIGNMENT)


def write_label_settings(folder: Path, endpoints: list[str], **changes: object) -> None:
    write_settings(folder, endpoints)
    for name in OWN_PARAMS:
        content = yaml.safe_load((folder / name).read_text())
        content["label"] = own_params(name)["label"]
        content["label"] |= {key: value for key, value in changes.items() if key in content["label"]}
        (folder / name).write_text(yaml.safe_dump(content))


def answer(monkeypatch: pytest.MonkeyPatch, about_moons: str, about_sauce: str) -> None:
    """What the fake server's model says about either cluster."""
    monkeypatch.setattr(
        "tests.support.fake_tgi.text_of", lambda prompt, seed: about_sauce if "Simmer" in prompt else about_moons
    )


@pytest.mark.slow
def test_an_answer_names_the_cluster_and_keywords_stand_in_for_one_that_does_not_parse(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, expected_answer("Astronomy", 9), "These texts are about food.")
    with FakeTgi() as server:
        write_label_settings(folder, [server.url])
        assert label.main() == "1 clusters named by fake-1b, 1 by their keywords"
        prompts = list(server.asked)
    moons, sauce = read_table(LABELS, LABEL).to_pylist()
    assert (moons["cluster"], moons["size"], moons["label"]) == (0, 14, "Astronomy")
    assert (moons["label_source"], moons["educational_score"]) == ("model", 9)
    assert sauce["label"] == ", ".join(sauce["keywords"][:3]) and sauce["answer"] == "These texts are about food."
    assert (sauce["label_source"], sauce["educational_score"]) == ("keywords", None)
    assert {"sauce", "butter", "salt"} <= set(sauce["keywords"]) and not {"the", "moon"} & set(sauce["keywords"])
    metrics = json.loads(Path("metrics/label.json").read_text())
    assert (metrics["labelled_by_model"], metrics["labelled_by_keywords"], metrics["scores"]) == (1, 1, {"9": 1})

    assert [len(row["examples"]) for row in (moons, sauce)] == [10, 6]  # without replacement
    assert all(row_id.endswith("-0") for row_id in set(moons["examples"])) and len(set(moons["examples"])) == 10
    shown = next(prompt for prompt in prompts if "Telescope" in prompt)
    assert shown.count("Telescope number") == 10 and "Nothing" not in shown

    first = hash_files([LABELS])
    assert label.main() == "1 clusters named by fake-1b, 1 by their keywords"  # from the store: the server is gone
    shutil.rmtree(".store")
    assert label.main() == "1 clusters named by fake-1b, 1 by their keywords"  # from data/label/completions.parquet
    assert hash_files([LABELS]) == first


@pytest.mark.slow
def test_examples_do_not_depend_on_the_other_clusters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, expected_answer("Astronomy", 9), expected_answer("Cooking", 6))
    with FakeTgi() as server:
        write_label_settings(folder, [server.url])
        label.main()
        before = read_table(LABELS, LABEL).to_pylist()[0]["examples"]
        write_inputs({0: 14, 1: 20})
        label.main()
    after = read_table(LABELS, LABEL).to_pylist()
    assert after[0]["examples"] == before and len(after[1]["examples"]) == 10


@pytest.mark.slow
def test_a_cluster_without_a_usable_answer_is_shown_again_with_other_examples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def text(prompt: str, seed: int) -> str:
        if "Simmer" in prompt:
            return "I cannot say."
        shown.append(prompt)
        return "Topic: Stars. Educational value rating: 7-8." if len(shown) == 1 else expected_answer("Astronomy", 9)

    monkeypatch.setattr("tests.support.fake_tgi.text_of", text)
    with FakeTgi() as server:
        write_label_settings(folder, [server.url])
        label.main()
    moons, sauce = read_table(LABELS, LABEL).to_pylist()
    assert (moons["label"], moons["draws"], moons["scores"]) == ("Astronomy", 2, [9]) and len(set(shown)) == 2
    assert (sauce["label_source"], sauce["draws"], sauce["scores"]) == ("keywords", 3, [])
    metrics = json.loads(Path("metrics/label.json").read_text())
    assert (metrics["draws"], metrics["unusable_answers"], metrics["labelled_by_keywords"]) == (5, 4, 1)


def test_several_draws_give_the_commonest_name_and_the_spread_of_the_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([("Space", 4), ("Astronomy", 9), ("astronomy", 7)])
    monkeypatch.setattr("tests.support.fake_tgi.text_of", lambda prompt, seed: expected_answer(*next(said)))
    write_inputs({0: 14})
    with FakeTgi() as server:
        write_label_settings(folder, [server.url], draws=3)
        label.main()
    (moons,) = read_table(LABELS, LABEL).to_pylist()
    assert sorted(moons["scores"]) == [4, 7, 9] and moons["educational_score"] == 7
    assert moons["label"].casefold() == "astronomy" and moons["draws"] == 3
    assert json.loads(Path("metrics/label.json").read_text())["mean_score_spread"] == 5


def test_words_that_no_page_has_are_cut_off_a_topic() -> None:
    stems = frozenset({"ancie", "civil", "music", "astro"})
    for said, kept in {
        "Ancient Civilizations and Theirbolics": "Ancient Civilizations",
        "Music and Their Impactfulwork": "Music",
        "Music and Music Projects": "Music",
        "Astrobiology": "Astrobiology",
        "Ofslots": "Ofslots",
        "Music and Musicology": "Music and Musicology",
        "Law of the Sea": "Law of the Sea",
        "Music A": "Music A",
        "Civil Music and Music": "Civil Music and Music",
    }.items():
        assert without_invented_words(said, stems) == kept


def test_labels_are_unique_and_say_what_tells_namesakes_apart() -> None:
    words = [["atoms", "acid"], ["acid", "kitchen", "atoms"], ["acid", "atoms"], ["dose"], ["acid"]]
    names = ["Chemistry", "chemistry", "Chemistry", "Medicine", "Chemistry (kitchen)"]
    rows = [{"label": name, "keywords": keywords} for name, keywords in zip(names, words, strict=True)]
    make_unique(rows)
    labels = [row["label"] for row in rows]
    assert labels == ["Chemistry", "chemistry (group 2)", "Chemistry (group 3)", "Medicine", "Chemistry (kitchen)"]


def test_a_server_that_fails_stops_the_stage_and_writes_nothing(folder: Path) -> None:
    with FakeTgi(lambda prompt, n: 500 if "Simmer" in prompt else "ok") as server:
        write_label_settings(folder, [server.url])
        with pytest.raises(ClusterError):
            label.main()
    assert not LABELS.exists()


def test_a_prompt_that_the_model_cannot_take_falls_back_and_a_timeout_does_not(folder: Path) -> None:
    check_results([Failure("k", "too_long", "", 0), Failure("k", "validation", "", 1)], True)
    with pytest.raises(
        ClusterError, match=r"1 of 2 prompts got no answer from the servers \(the last: timeout, 300 s\)"
    ):
        check_results([Failure("k", "empty", "", 1), Failure("k", "timeout", "300 s", 3)], True)


def test_prompts_that_are_all_too_long_are_an_error_that_names_the_parameter() -> None:
    with pytest.raises(ConfigError, match=r"not one of 2 labelling prompts fits the model; lower label.example_chars"):
        check_results([Failure("k", "too_long", "", 0)] * 2, True)


def test_servers_that_refuse_every_grammar_are_an_error_that_names_the_parameter() -> None:
    refused = [Failure("k", "validation", "grammar is not supported", 1)] * 2
    with pytest.raises(ConfigError, match=r"refuse every .*grammar is not supported.*label.grammar to false"):
        check_results(refused, True)
    check_results(refused, False)


def test_a_row_without_its_text_is_named(folder: Path) -> None:
    write_label_settings(folder, ["http://127.0.0.1:9"])
    rows = read_table("data/sources/web.parquet", SOURCE)
    write_table("data/sources/web.parquet", rows.slice(20), SOURCE)
    with pytest.raises(DataError, match=r"web.parquet lacks the row 'web/00-0'"):
        label.main()


def test_the_prompt_shows_each_text_on_one_line_cut_at_a_word() -> None:
    template = Template("$count texts:\n$examples\nName them.")
    prompt = labelling_prompt(["one two\nthree four", "$examples and 5"], [], template, example_chars=13, grammar=True)
    assert prompt == "2 texts:\n1. one two three\n2. $examples and\nName them."
    assert excerpt("abcdefgh", 5) == "abcde" and excerpt("ab cd", 5) == "ab cd" and excerpt("ab cde", 5) == "ab"


def test_the_shipped_template_asks_for_the_form_that_is_parsed() -> None:
    prompt = labelling_prompt(
        ["A text."], ["word"], read_label_template(ROOT / "curation/label.txt"), 100, grammar=False
    )
    assert prompt.startswith("1. A text.\n") and "commonest words are word." in prompt
    assert prompt.endswith(expected_answer("the_topic", 0).replace(" 0.", " score."))
    assert parse_answer(expected_answer("Home Repair", 7)) == Answer("Home Repair", 7)
    assert re.fullmatch(GRAMMAR, expected_answer("Law and Government", 10))
    for topic in ("The World", "How To Cook", "What Is Law", "AUDI", "law"):
        assert not re.fullmatch(GRAMMAR, expected_answer(topic, 7))


@pytest.mark.parametrize("text", ["Rate $score: $examples", "No slot", "$ $examples"])
def test_a_template_with_a_wrong_slot_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "label.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"label.txt: wanted \$examples"):
        read_label_template(tmp_path / "label.txt")


ANSWERS = [
    ("Topic: Astronomy. Educational value rating: 9.", "Astronomy", 9),
    (
        "**Topic:** Cell Biology (cells)\n**Educational value rating:** 8/10\n\nThe texts ...",
        "Cell Biology (cells)",
        8,
    ),
    ("**Topic**: Astronomy\n\n**Educational value rating**: **9**", "Astronomy", 9),
    ("topic - home_repair, Educational Score: 7 out of 10", "home repair", 7),
    ("The topic is: Cooking. The educational value rating is 6.", "Cooking", 6),
    ("Topic: C#. Educational value rating: 9.", "C#", 9),
    ("Topic: .NET Programming. Educational value rating: 9.", ".NET Programming", 9),
    ("Topic: C++. Educational value rating: 10.", "C++", 10),
    ("Topic: U.S. Law. Educational value: 1", "U.S. Law", 1),
    ("Topic: Law (U.S.). Educational value rating: 8.", "Law (U.S.)", 8),
    ("Topic: Constitutional Law (U.S). Educational value rating: 8.", "Constitutional Law (U.S)", 8),
    ("Topic: Law in the U.S. Educational value rating: 8.", "Law in the U.S.", 8),
    ("Topic: Ast\x00ronomy\x1b[31m and\x0cLaw. Educational value rating: 5.", "Astronomy[31m and Law", 5),
    ('{"topic": "Astronomy", "educational_value_rating": 9}', "Astronomy", 9),
    ('Here it is:\n```json\n{\n  "topic": "Cell Biology",\n  "score": "8/10"\n}\n```', "Cell Biology", 8),
    ('{"Topic": "Astronomy", "educationalValueRating": 9, "reason": "Stars."}', "Astronomy", 9),
    ("{'topic': 'Astronomy', 'rating': 9}", "Astronomy", 9),
    ("Topic: Astronomy\nRating: 8", "Astronomy", 8),
    ("Topic: Astronomy. Rating: 8/10.", "Astronomy", 8),
    ("Topic: Astronomy. 8/10", "Astronomy", 8),
    ("Topic: Astronomy (8/10)", "Astronomy", 8),
    ("Astronomy: 8/10", "Astronomy", 8),
    ("Astronomy - 8 out of 10.", "Astronomy", 8),
    ("| Topic | Educational value rating |\n|---|---|\n| Astronomy | 9 |", "Astronomy", 9),
    ("| Topic | Astronomy |\n|-------|-----------|\n| Educational value rating | 9/10 |", "Astronomy", 9),
    ("主题：天文学。教育价值评分：9。", "天文学", 9),
    ("Topic：Astronomy。Educational value rating：9。", "Astronomy", 9),
    ("主题: Astronomy\n教育价值评分: 九", "Astronomy", 9),
    ("Topic: Astronomy. Educational value rating: eight.", "Astronomy", 8),
    ("Topic: Astronomy. Educational value rating: Nine out of ten.", "Astronomy", 9),
    (
        "<think>Topic: Gossip. Educational value rating: 2.</think>Topic: Astronomy. Educational value rating: 9.",
        "Astronomy",
        9,
    ),
    (
        "Topic: Law. Educational value rating: 3.\n</think>\n\nTopic: Astronomy. Educational value rating: 9.",
        "Astronomy",
        9,
    ),
    ("<topic>Astronomy</topic>\n<score>9</score>", "Astronomy", 9),
    ("topic: Astronomy\neducational_value_rating: 9", "Astronomy", 9),
    ("1. Topic: Astronomy\n2. Educational value rating: 9", "Astronomy", 9),
    ("- Topic: Astronomy\n- Educational value rating: 9 (high)", "Astronomy", 9),
    ("Topic: Astronomy\nEducational value rating (1-10): 9", "Astronomy", 9),
    ("Topic: Astronomy. Educational value rating: 9 on a scale from 1 to 10.", "Astronomy", 9),
    ("Topic: Astronomy. On a scale of 1 to 10, the educational value is 9.", "Astronomy", 9),
    ("Topic:\nAstronomy\n\nEducational value rating:\n9", "Astronomy", 9),
    ('Sure! Topic: "Astronomy". Educational value rating: 9. The texts are about stars.', "Astronomy", 9),
    ("Topic: Astronomy. The texts are about stars. Educational value rating: 9.", "Astronomy", 9),
    ("Topic: St. Louis History. Educational value rating: 7.", "St. Louis History", 7),
    ("Topic: Food & Drink, Educational value rating = 5", "Food & Drink", 5),
    ("Topic: Astronomy; Score: about 8", "Astronomy", 8),
    ("Topic: 3D Printing. Educational value rating: 7.", "3D Printing", 7),
    ("Topic: Astronomy. Educational value rating: 9. Topic: Astronomy. Educational value rating: 9.", "Astronomy", 9),
    ("Topic: Teaching Scores. Educational value rating: 9.", "Teaching Scores", 9),
    ("Topic: Ratings Agencies. Educational value rating: 4.", "Ratings Agencies", 4),
    ("Subject: Astronomy\nEducational rating: 9", "Astronomy", 9),
    ("Topic: Health and Medicine. Educational value rating: 8. 10 texts are about it.", "Health and Medicine", 8),
    ("Topic: Human Rights and Human Dignity. Educational value rating: 8.", "Human Rights and Human Dignity", 8),
    ("Topic: Gardening and Gardening Projects. Educational value rating: 1.", "Gardening and Gardening Projects", 1),
    ("Topic: Vitamin C. Educational value rating: 8.", "Vitamin C", 8),
    ("Topic: Vitamin D-3. Educational value rating: 8 - very educational.", "Vitamin D-3", 8),
    ("Topic: Astronomy, with a score of 9", "Astronomy", 9),
    ("Topic: Astronomy. Educational value rating: [9]", "Astronomy", 9),
    ("Topic: [Astronomy]. Educational value rating: [9].", "Astronomy", 9),
]
NO_ANSWERS = [
    "",
    "Astronomy, 9",
    "Topic: Astronomy.",
    "Educational value rating: 9.",
    "Topic: Astronomy. Educational value rating: high.",
    "Topic: Astronomy. Educational value rating: 0.",
    "Topic: Astronomy. Educational value rating: 11.",
    "Topic: Astronomy. Educational value rating: 100.",
    "Topic: Astronomy. Educational value rating: 8.5.",
    "Topic: Astronomy. Educational value rating: 4/5.",
    "Topic: the_topic. Educational value rating: 5.",
    "Topic: 1234. Educational value rating: 5.",
    "Topic: Astronomy. Educational value rating: 7-8.",
    "Topic: Astronomy. Educational value rating: 7–8/10.",
    "Topic: Astronomy. Educational value rating: 7 to 8.",
    "Topic: Astronomy. Educational value rating: seven or eight.",
    "Topic: Astronomy. Educational value rating: between 7 and 8.",
    "Topic: Astronomy. Educational value rating: 80/100.",
    "Topic: Astronomy. Educational value rating: 80%.",
    "Topic: Astronomy. Educational value rating: 1-10.",
    "Topic: Astronomy. Educational value rating: 4. Topic: Law. Educational value rating: 9.",
    "<think>Topic: Gossip. Educational value rating: 2.",
    "<think>Topic: Gossip. Educational value rating: 2.</think> I cannot say.",
    "Topic: Astronomy. Educational value rating: 9. No, educational value rating: 7.",
    '{"topic": "A", "score": 3} {"topic": "Law", "score": 4}',
    "Topic 1: Astronomy. Topic 2: Law. Educational value rating: 9.",
    "| Topic | Rating |\n|---|---|\n| Astronomy | 9 |\n| Law | 3 |",
    "Topic: none. Educational value rating: 5.",
    "Topic: Various topics. Educational value rating: 5.",
    "Topic: Anecdotes of Anecdotes of Anecdotes. Educational value rating: 1.",
    "Topic: Science and Science. Educational value rating: 1.",
    "Topic: Music Music Theory. Educational value rating: 1.",
    "Topic: Title Title Title. Educational value rating: 1.",
    "Topic: The texts share no topic at all. Educational value rating: 3.",
    "Topic: Astronomy. Educational value rating: -3.",
    "Topic: Astronomy. 7-8/10",
    "Topic: Astronomy. Educational value rating: 8+",
    "Topic: Astronomy. Educational value rating: 8, 9.",
    "# Topic\nAstronomy\n# Rating\n9",
    "Topic: Astronomy. Educational value rating: 9.5.",
    f"Topic: {'very ' * 30}long. Educational value rating: 5.",
]


@pytest.mark.parametrize(("text", "topic", "score"), ANSWERS)
def test_an_answer_is_read_in_every_shape_that_models_give_it(text: str, topic: str, score: int) -> None:
    assert parse_answer(text) == Answer(topic, score)


@pytest.mark.parametrize("text", NO_ANSWERS)
def test_what_is_missing_or_could_mean_two_things_is_no_answer(text: str) -> None:
    assert parse_answer(text) is None


def test_keywords_are_words_that_set_a_cluster_apart() -> None:
    assert words("The Moon's orbit; moon, don't x2 well-known", {"the"}) == {"moon", "orbit", "well-known"}
    counts = {
        0: Counter({"moon": 5, "orbit": 3, "day": 6, "rare": 1}),
        1: Counter({"sauce": 5, "butter": 3, "day": 6, "odd": 1}),
    }
    assert keywords(counts, {0: 6, 1: 6}, 3) == {0: ["moon", "orbit", "day"], 1: ["sauce", "butter", "day"]}
