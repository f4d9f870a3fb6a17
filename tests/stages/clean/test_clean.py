"""Promises of the clean stage."""

from pathlib import Path

import pytest
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate

from cosmopedia.core.errors import ConfigError, DataError
from cosmopedia.core.params import check, read_yaml
from cosmopedia.corpus.chat import ChatPatterns
from cosmopedia.corpus.sentences import to_last_sentence
from cosmopedia.tables.contracts import DOCUMENT, REMOVED
from cosmopedia.tables.parquet import read_rows
from stages.clean.__main__ import main
from stages.clean.language import foreign
from stages.clean.repetition import TOKEN, RepetitionLimits, most_duplicate_characters, repetition
from stages.clean.rules import Cleaned, CleanParams, Removed, clean, clean_natural
from tests.support.documents import (
    ROOT,
    byte_tokenizer,
    bytes_of,
    document,
    natural_document,
    repository,
    write_documents,
)  # fmt: skip
from tests.support.stage_folders import files_of, on_scratch

PARAMS = CleanParams.model_validate(
    read_yaml(ROOT / "params.yaml")["clean"]
    | read_yaml(ROOT / "profiles/laptop.yaml")["clean"]
    | {"patterns": ChatPatterns.read(ROOT)}
)
PROSE = (
    "Bread rises because yeast feeds on sugar and gives off gas. The dough holds that gas in a net of gluten, which"
    " kneading makes stronger. In a warm kitchen an hour is enough; in a cold one, leave it overnight.\n\nBake it hot."
    " The crust sets late, so steam in the first minutes lets the loaf grow before it browns."
)

FORM = [
    "The water sings below;",
    "The heron stands alone;",
    "The wheel is green and slow;",
    "The lilies all have gone.",
]
OFF = RepetitionLimits.model_validate(
    dict.fromkeys(RepetitionLimits.model_fields, None) | {"top_ngram_characters": {}, "duplicate_ngram_characters": {}}
)


def words(text: str) -> int:
    return len(text.split())


def judge(text: str, finish_reason: str = "eos_token", tokens: int = 500, **changes: object) -> Cleaned | Removed:
    return clean(text, finish_reason, tokens, PARAMS.model_copy(update={"min_tokens": 3, **changes}), words)


def test_a_warning_in_the_middle_of_a_text_survives():
    text = (
        "Clean the sink with vinegar.\nWarning: do not mix acids with bleach. Open a window.\nHello is how we greet."
    )
    assert judge(text) == Cleaned(text, 500, ())


@pytest.mark.parametrize(
    ("opening", "name"),
    [
        ("Warning: this is long. ", "warning"),
        ("Hello dear readers! ", "hello"),
        ("My name is Zorg, and I will be your guide. ", "my_name_is"),
        ("**Welcome, dear students!**\n\n", "welcome"),
        ("Welcome, young scientists! ", "welcome"),
        ("You've just arrived on Earth. ", "just_arrived"),
        ("We're thrilled that you are here. ", "thrilled"),
        ("Here is a textbook section on bread:\n\n", "here_is"),
    ],
)
def test_an_opening_is_stripped_from_the_start_alone(opening: str, name: str):
    stripped = PARAMS.chat.strip_openings(opening + PROSE)
    assert (stripped.text, stripped.names) == (PROSE, (name,))
    assert PARAMS.chat.strip_openings(PROSE + "\n" + opening).names == ()


@pytest.mark.parametrize(
    ("opening", "names"),
    [
        ("Sure, here is a blog post about bread:\n\n", ("agreed_here",)),
        ("Certainly! Here’s the text.\n\n", ("agreed", "here_then")),
        ("Great question! Let's dive in.\n\n", ("praise", "lets_then")),
        ("**Of course! Here is the chapter:**\n\n---\n\n", ("agreed", "here_then")),
        ("<|assistant|>\nOkay, I'll write it.\n", ("chat_token", "agreed_and", "offer_then")),
    ],
)
def test_an_opening_of_several_parts_is_stripped_from_the_start_alone(opening: str, names: tuple[str, ...]):
    stripped = PARAMS.chat.strip_openings(opening + PROSE)
    assert (stripped.text, stripped.names) == (PROSE, names)
    assert PARAMS.chat.strip_openings(PROSE + "\n" + opening).names == ()


def test_chat_that_a_document_follows_on_the_same_line_needs_more_evidence():
    assert judge(f"Sure! {PROSE}") == Cleaned(f"Sure! {PROSE}", 500, ())
    assert judge(f"Sure!\n\n{PROSE}") == Cleaned(PROSE, words(PROSE), ("agreed",))


def test_openings_are_stripped_until_none_is_left():
    stripped = PARAMS.chat.strip_openings(f"\n Sure, here is it:\n\nHello reader! {PROSE}")
    assert (stripped.text, stripped.names) == (PROSE, ("agreed_and", "here_then_line", "hello"))


@pytest.mark.parametrize(
    ("closing", "name"),
    [
        ("\n\nI hope this helps! Good luck with your loaf.", "hope_this_helps"),
        (" I hope that this explanation was helpful.", "hope_this_helps"),
        ("\n\nPlease let me know if you have any questions!", "let_me_know"),
        (" Feel free to ask me if anything is unclear.", "let_me_know"),
        ("\n\nIf you have any further questions, please let me know.", "any_questions"),
        ("\n\nIs there anything else you'd like to know about bread?", "anything_else"),
        ("\n\n[Note: This text was written for college students.]", "note"),
        ("\n\n**Word count: 1,024**", "word_count"),
    ],
)
def test_a_closing_is_stripped_from_the_end_alone(closing: str, name: str):
    stripped = PARAMS.chat.strip_closings(PROSE + closing)
    assert (stripped.text, stripped.names) == (PROSE, (name,))
    assert PARAMS.chat.strip_closings(f"{closing.strip()}\n\n{PROSE}").names == ()


def test_closings_are_stripped_until_none_is_left_and_counted():
    text = f"{PROSE}\n\nI hope this helps!\n\nLet me know if you have any questions."
    assert judge(text) == Cleaned(PROSE, words(PROSE), ("let_me_know", "hope_this_helps"))
    assert judge("I hope this helps!") == Removed("empty", {"changes": ["hope_this_helps"]})


@pytest.mark.parametrize(
    "ending",
    [
        ' "Let me know if you need bread," she said.',
        " Nobody could say whether the letter would help.",
        "\n\nNote: flour keeps for a year.",
        "\n\nWhat would you like me to bake, asked Tom, and I hope this bread lasts.",
    ],
)
def test_an_ordinary_ending_stays(ending: str):
    assert judge(PROSE + ending) == Cleaned(PROSE + ending, 500, ())


FOREIGN = {
    "de": "Das Brot geht auf, weil die Hefe den Zucker frisst und dabei Gas abgibt. Der Teig hält das Gas in"
    " einem Netz aus Kleber fest, das durch das Kneten stärker wird. In einer warmen Küche reicht eine"
    " Stunde.",
    "fr": "Le pain lève parce que la levure se nourrit de sucre et dégage du gaz. La pâte retient ce gaz dans"
    " un réseau de gluten que le pétrissage renforce. Dans une cuisine chaude, une heure suffit.",
    "es": "El pan sube porque la levadura se alimenta de azúcar y desprende gas. La masa retiene ese gas en una"
    " red de gluten que el amasado hace más fuerte. En una cocina caliente basta una hora.",
    "pl": "Chleb rośnie, ponieważ drożdże żywią się cukrem i wydzielają gaz. Ciasto zatrzymuje ten gaz w siatce"
    " glutenu, którą wyrabianie wzmacnia. W ciepłej kuchni wystarczy godzina, aby ciasto było gotowe.",
    "sw": "Mkate huumuka kwa sababu chachu hula sukari na kutoa gesi. Unga huishikilia gesi hiyo katika mtandao"
    " wa gluteni ambao hukazwa kwa kukanda. Katika jiko lenye joto, saa moja inatosha.",
    "ru": "Хлеб поднимается, потому что дрожжи питаются сахаром и выделяют газ. Тесто удерживает этот газ в"
    " сетке клейковины, которую укрепляет замес. В тёплой кухне достаточно одного часа.",
    "zh": "面包会发酵，是因为酵母以糖为食并释放气体。面团用面筋网络把气体留住，揉面会使面筋更加坚韧。在温暖的厨"
    "房里一个小时就够了；在寒冷的厨房里，可以放置一夜。烘烤时温度要高，外皮凝固得晚，所以最初几分钟的蒸汽"
    "能让面包在变成褐色之前继续膨胀。",
    "ar": "يرتفع الخبز لأن الخميرة تتغذى على السكر وتطلق الغاز. يحتفظ العجين بهذا الغاز في شبكة من الغلوتين"
    " يزيدها العجن قوة. في مطبخ دافئ تكفي ساعة واحدة، وفي مطبخ بارد اتركه طوال الليل.",
    "hi": "रोटी फूलती है क्योंकि खमीर चीनी खाता है और गैस छोड़ता है। आटा उस गैस को ग्लूटेन के जाल में रोककर"
    " रखता है, जिसे गूँधना और मज़बूत बनाता है। गर्म रसोई में एक घंटा काफ़ी है, ठंडी रसोई में रात भर छोड़"
    " दें।",
}


@pytest.mark.parametrize("language", FOREIGN)
def test_a_text_in_another_language_is_removed(language: str):
    removed = judge(FOREIGN[language])
    assert isinstance(removed, Removed) and removed.reason == "language"
    assert judge(FOREIGN[language], language=None) == Cleaned(FOREIGN[language], 500, ())
    assert judge(f"{PROSE}\n\n{FOREIGN[language][:80]}").__class__ is Cleaned  # a quotation


@pytest.mark.parametrize("language", ["de", "fr", "es", "pl", "ru", "zh", "ar", "hi"])
def test_another_language_can_be_expected(language: str):
    assert PARAMS.language is not None
    rule = PARAMS.language.model_copy(update={"expected": language})
    assert foreign(FOREIGN[language], rule) is None and foreign(PROSE, rule) is not None


def test_code_and_formulae_are_not_foreign():
    code = (
        "```python\n"
        + "\n".join(f"for x{i} in range({i}): le_que(x{i}, und=der_die_das)" for i in range(40))
        + "\n```"
    )
    formula = r"$$\alpha \beta = \sum_{i} \gamma_i \delta^{i}$$ " * 20
    assert PARAMS.language is not None
    assert foreign(f"{PROSE}\n\n{code}\n\n{formula}", PARAMS.language) is None
    assert foreign(f"The loop:\n\n{code}", PARAMS.language) is None  # too little prose to say


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't write that.",
        "I cannot fulfill this request.",
        "As an AI language model, I have no opinions on bread.",
        "Thank you for asking. As an artificial intelligence, my knowledge of bread is second-hand.",
        "I'm sorry, I can't write that.",
        "I cannot help you with that.",
        "Sure, here is it:\n\nI apologize, but I won't.",
        "I cannot write this kind of story.",
        "I am unable to help with that particular request.",
        "I could not write that for you.",
    ],
)
def test_a_refusal_is_removed(text: str):
    removed = judge(text)
    assert isinstance(removed, Removed) and removed.reason == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "Sure, he was tired, but he went on walking.",
        "Here the road ends: only a path leads on.",
        "I'm sorry for the birds in winter, said Ann.",
        "I am sorry I forgot your birthday, wrote the baker.",
        "I can't help but smile when I think of that oven.",
        "She had worked as an AI researcher before she baked bread.",
        "Serving as an AI assistant, the program sorts loaves.",
        "As an aid to memory, rhymes work well.",
        "I could not write to her that winter.",
        "I could not find bread that day, nor this morning.",
        "I couldn't answer him that evening, and he left.",
    ],
)
def test_an_ordinary_beginning_stays(text: str):
    assert judge(text) == Cleaned(text, 500, ())


def test_a_text_of_exactly_the_minimum_stays():
    assert judge(PROSE, tokens=150, min_tokens=150) == Cleaned(PROSE, 150, ())
    assert judge(PROSE, tokens=149, min_tokens=150) == Removed("short", {"tokens": 149})


def test_a_truncated_text_is_cut_to_its_last_full_sentence_and_counted_again():
    assert judge(PROSE + " And then the", "length") == Cleaned(PROSE, words(PROSE), ("cut",))
    assert judge(PROSE, "length") == Cleaned(PROSE, 500, ())
    assert judge("no sentence ends here", "length") == Removed("truncated", {"tokens": 500})
    assert judge(PROSE, "length", truncated="drop") == Removed("truncated", {"tokens": 500})
    assert judge("no sentence ends here", "length", truncated="keep") == Cleaned("no sentence ends here", 500, ())


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ('She said "stop." And', 'She said "stop."'),
        ("It costs 3.50 in all. Then 4", "It costs 3.50 in all."),
        ("Two steps:\n1. Mix well.\n2. Ba", "Two steps:\n1. Mix well."),
        ("Nothing", ""),
    ],
)
def test_a_sentence_ends_at_its_mark(text: str, cut: str):
    assert to_last_sentence(text) == cut


@pytest.mark.parametrize(
    ("kept", "behind"),
    [
        ("It was named so.", " It was first seen by Dr. Marie"),
        ("It was named so.", " It was J. R. R. Tolkien of the U.S. Army who, e.g. in"),
        ("It was named so.", " I thought... well, I"),
        ("It was named so.", " A seat costs $3."),
        ("It was named so.", " The hall has 400 sq."),
        ("It was named so. All of them saw it on TV.", ""),
        ("It was named so. All of them saw it on TV.", " And"),
        ("It was named so.", "\n\n```python\nprint('Done. Next.')\nfor"),
        ("It was named so.\n\n```\nx = 1.\n```", "\n\nThen the"),
        ("It was named so.", "\n\n$$x = 1. y"),
        ("It was named so.\n\n$$\nx = 1\n$$", "\n\nThen the"),
        ("It was named so.", "\n\n| a | b |\n|---|---|\n| c. | d"),
        ("It was named so.", " **Bold. And"),
        ("It was named so.", " (See above. And"),
        ("It was named so.", "\n\n## The next"),
        ("The list:\n\n- flour\n- salt", "\n- wat"),
        ("the moon is thin\nthe road is white\na dog begins", "\nto ba"),
    ],
)
def test_a_cut_text_ends_outside_of_code_formulae_tables_and_brackets(kept: str, behind: str):
    assert to_last_sentence(kept + behind) == kept


def test_a_refusal_with_a_document_behind_it_stays():
    text = f"I'm sorry, but I can't write that. {PROSE} {PROSE} {PROSE}"
    assert judge(text, repetition=OFF) == Cleaned(text, 500, ())


def test_an_empty_or_broken_text_is_removed():
    assert judge(" \n ") == Removed("empty")
    assert judge("Hello! ") == Removed("empty", {"changes": ["hello"]})
    assert judge("text \ufffd\ufffd\ufffd more") == Removed("invalid", {"share": 0.2308})


def test_repetition_is_removed_and_prose_is_not():
    limits = PARAMS.repetition
    assert repetition(PROSE, limits) is None
    assert repetition("A short text that says each thing once.", limits) is None
    assert repetition("The cat sat.\n" * 9, limits) is not None
    found = repetition("the dough is warm and " * 20, limits)
    assert found is not None and found[0] == "top_2gram" and found[1] > 0.2


def test_a_rule_without_a_limit_is_off():
    assert repetition("again and " * 50, OFF) is None


def test_verse_and_exercises_may_repeat_a_form_and_a_loop_may_not():
    verse = "".join(f"The mill goes round, the mill goes round,\n{line}\n\n" for line in FORM)
    exercises = "".join(f"{n}. Find the area of a rectangle of {n} by {n + 3} cm.\n" for n in range(1, 9))
    assert repetition(verse, PARAMS.repetition) is None and repetition(exercises, PARAMS.repetition) is None
    as_prose = PARAMS.repetition.model_copy(update={"max_form_compression": None})
    assert repetition(verse, as_prose) is not None and repetition(exercises, as_prose) is not None
    assert repetition(verse + "The mill goes round.\n" * 30, PARAMS.repetition) is not None


def test_the_exact_counts_are_spared_only_where_they_cannot_matter():
    text = f"{PROSE} {PROSE[:150]} " + "the dough is warm and soft today. " * 2
    tokens = TOKEN.findall(text)
    at_most = most_duplicate_characters(tokens, [5, 7, 10])
    assert all(find_all_duplicate(tokens, n) <= at_most[n] for n in at_most)
    assert at_most[10] > 0 and most_duplicate_characters(TOKEN.findall(PROSE), [5]) == {5: 0}


@pytest.mark.parametrize("pattern", ["^Warning: .*", r"\A(?m:^x)|\A", "(?m)^Hello", r"\AHello.*["])
def test_a_pattern_that_is_not_anchored_is_refused(pattern: str):
    values = PARAMS.patterns.model_dump() | {"openings": {"bad": {"pattern": pattern, "ends": "line", "first": True}}}
    with pytest.raises(ConfigError, match=r"chat\.yaml\.openings\.bad"):
        check(values, ChatPatterns, "chat.yaml")


@pytest.mark.parametrize("pattern", ["hope$", r"\Ahope", r"(?m)^hope\Z", r"\s*\Z", r"hope[\Z"])
def test_a_closing_that_is_not_anchored_to_the_end_is_refused(pattern: str):
    values = PARAMS.patterns.model_dump() | {"closings": {"bad": {"pattern": pattern, "begins": "line"}}}
    with pytest.raises(ConfigError, match=r"chat\.yaml\.closings\.bad"):
        check(values, ChatPatterns, "chat.yaml")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PROSE, Cleaned(PROSE, words(PROSE), ())),
        ("Sure, I can help with that! Bread rises.", Cleaned("Sure, I can help with that! Bread rises.", 8, ())),
        ("I'm sorry, but I can't write that.", Cleaned("I'm sorry, but I can't write that.", 7, ())),
        ("It ends without a full", Cleaned("It ends without a full", 5, ())),
        ("\x00" + PROSE, Cleaned(PROSE, words(PROSE), ("control_characters",))),
        (" \n", Removed("empty")),
        ("\ufffd" * 9, Removed("invalid", {"share": 1.0})),
        ("Two words", Removed("short", {"tokens": 2})),
    ],
)
def test_natural_text_is_no_answer_to_anybody(text: str, found: Cleaned | Removed):
    natural = PARAMS.natural.model_copy(update={"min_tokens": 5})
    assert clean_natural(text, PARAMS.model_copy(update={"natural": natural}), words) == found


def test_natural_text_has_thresholds_of_its_own():
    menu = "\n".join(f"{name} Home Contact" for name in ("Bread", "Water", "Stone", "Glass")) + "\n"
    assert judge(menu, repetition=OFF) == Cleaned(menu, 500, ())
    found = clean_natural(
        menu, PARAMS.model_copy(update={"natural": PARAMS.natural.model_copy(update={"min_tokens": 3})}), words
    )
    assert isinstance(found, Removed) and found.reason == "repetition"
    russian = "\u041f\u0440\u0438\u0432\u0435\u0442 " * 60
    assert clean_natural(russian, PARAMS, words) == Removed("language", {"script": "Latin", "share": 0.0})


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMO_COMPUTE", raising=False)
    byte_tokenizer(tmp_path / "models/generator")
    good = [document(text=f"{PROSE} Number {i}.", text_token_length=90) for i in range(4)]
    cut = document(text=f"{PROSE} And then", text_token_length=91, finish_reason="length")
    opened = document(text=f"Hello there! {PROSE}", text_token_length=95)
    write_documents(tmp_path / "data/generate/web-blogpost.parquet", [*good[:2], cut])
    write_documents(tmp_path / "data/generate/wikihow-article.parquet", [*good[2:], opened, document(text=" ")])
    write_documents(tmp_path / "data/generate/stanford-textbook.parquet", [])
    return tmp_path


def test_rows_in_are_rows_kept_and_rows_removed_by_reason(generated: Path):
    repository(generated, "clean")
    assert main() == "6 of 7 documents kept; removed: 1 empty"
    metrics = read_yaml(generated / "metrics/clean.json")
    assert (metrics["rows_in"], metrics["rows_kept"], metrics["removed"]) == (7, 6, {"empty": 1})
    assert metrics["cells"]["wikihow-article"]["removed"] == {"empty": 1}
    assert metrics["cells"]["stanford-textbook"]["rows_in"] == 0
    assert (metrics["changed"]["hello"], metrics["changed"]["cut"]) == (1, 1)
    (example,) = metrics["patterns"].pop("hello")["examples"]
    assert example["matched"] == "Hello there!" and metrics["patterns"] == {}
    assert [row["reason"] for row in read_rows(["data/clean/removed/removed.parquet"], REMOVED)] == ["empty"]
    assert sorted(p.name for p in Path("data/clean").iterdir()) == [
        "removed",
        "stanford-textbook.parquet",
        "web-blogpost.parquet",
        "wikihow-article.parquet",
    ]


def test_natural_text_is_cleaned_in_the_same_run_and_counted_apart(generated: Path):
    repository(generated, "clean")
    alone = main()
    before, metrics = bytes_of(generated / "data/clean"), read_yaml(generated / "metrics/clean.json")
    assert not any("natural" in name for name in before)
    pages = [natural_document(f"{PROSE} Page\x1b {i}.", text_token_length=0) for i in range(2)]
    write_documents(generated / "data/natural/web-natural.parquet", [*pages, natural_document("\x00")])
    assert main() == f"{alone}; web-natural 2 of 3"
    after = bytes_of(generated / "data/clean")
    assert {name: after[name] for name in before if "removed" not in name}.items() <= before.items()
    counts = read_yaml(generated / "metrics/clean.json")
    assert counts["cells"].pop("web-natural")["removed"] == {"invalid": 1}
    assert counts == metrics  # the totals are the completions'
    rows = [*read_rows(["data/clean/web-natural.parquet"], DOCUMENT)]
    assert {row["text_token_length"] for row in rows} == {len(f"{PROSE} Page 0.".encode())}


@pytest.mark.slow
def test_personal_data_is_counted_by_kind_and_source_and_masked_or_removed(generated: Path):
    """Mails of example.org are nobody's; so are addresses of a home network."""
    texts = ["jane.doe@uni-koeln.de at 8.8.8.8", "jane@example.org at 192.168.1.1"]
    rows = [document(text=f"{PROSE} Write to {text}.", text_token_length=99) for text in texts]
    write_documents(generated / "data/generate/web-textbook.parquet", rows)
    counts = {"email": {"web": 1}, "ip": {"web": 1}}
    kept: dict[str, list[str]] = {}
    for action in ("flag", "mask", "drop"):
        repository(generated, "clean", personal_data=action)
        main()
        metrics = read_yaml(generated / "metrics/clean.json")
        assert metrics["personal_data"] == {"action": action, "documents": counts} and metrics["language"] == "en"
        assert metrics["removed"].get("personal_data", 0) == (action == "drop")
        written = read_rows(["data/clean/web-textbook.parquet"], DOCUMENT)
        kept[action] = sorted(row["text"].removeprefix(f"{PROSE} Write to ") for row in written)
    assert kept["flag"] == sorted(f"{text}." for text in texts)
    assert kept["mask"] == ["email@example.com at 192.0.2.1.", f"{texts[1]}."]
    assert kept["drop"] == [f"{texts[1]}."]


def test_a_style_cannot_take_the_name_of_natural_text(generated: Path):
    repository(generated, "clean")
    write_documents(generated / "data/generate/web-natural.parquet", [document(text=PROSE)])
    with pytest.raises(DataError, match=r"data/generate/web-natural.parquet: no style may be named 'natural'"):
        main()


def test_an_id_of_natural_text_that_a_completion_has_is_refused(generated: Path):
    repository(generated, "clean")
    taken = document(text=f"{PROSE} Number 0.")["completion_id"]
    write_documents(generated / "data/natural/web-natural.parquet", [natural_document(PROSE, completion_id=taken)])
    with pytest.raises(DataError, match="is in more than one file"):
        main()


def test_control_characters_go_and_are_counted_and_words_stay_apart(generated: Path):
    broken = PROSE.replace(" gas.", "\x0cgas\x1b.", 1)
    write_documents(generated / "data/generate/web-blogpost.parquet", [document(text=broken, text_token_length=90)])
    for choice, text, tokens in (("remove", PROSE, len(PROSE.encode())), ("keep", broken, 90)):
        repository(generated, "clean", control_characters=choice)
        main()
        (row,) = read_rows(["data/clean/web-blogpost.parquet"], DOCUMENT)
        assert (row["text"], row["text_token_length"]) == (text, tokens)
        assert read_yaml(generated / "metrics/clean.json")["control_characters"] == 1
    assert judge("\x00" + PROSE) == Cleaned(PROSE, words(PROSE), ("control_characters",))
    assert judge("Hello!\x0c" + PROSE).changes == ("control_characters", "hello")
    assert judge("\x00" * 9 + PROSE) == Removed("invalid", {"share": 0.0283})


def test_the_servers_count_stays_unless_the_text_was_changed(generated: Path):
    repository(generated, "clean")
    main()
    rows = [*read_rows(sorted(Path("data/clean").glob("*.parquet")), DOCUMENT)]
    assert {row["text_token_length"] for row in rows if row["text"] == PROSE} == {len(PROSE.encode())}
    assert {row["text_token_length"] for row in rows if row["text"] != PROSE} == {90}


def test_a_folder_on_another_disk_holds_this_run_alone(generated: Path):
    scratch = on_scratch(Path("data/clean"))
    repository(generated, "clean")
    main()
    assert Path("data/clean").is_symlink()
    cells = [f"{cell}.parquet" for cell in ("stanford-textbook", "web-blogpost", "wikihow-article")]
    assert files_of(scratch) == ["removed/removed.parquet", *cells]


def test_the_bytes_do_not_depend_on_tasks(generated: Path, monkeypatch: pytest.MonkeyPatch):
    repository(generated, "clean")
    main()
    alone = bytes_of(generated / "data/clean")
    monkeypatch.setattr("cosmopedia.corpus.pipeline.WORTH_SECONDS", 0)
    repository(generated, "clean", cluster_tasks=3)
    main()
    assert bytes_of(generated / "data/clean") == alone


def test_a_missing_input_is_named(generated: Path):
    repository(generated, "clean")
    (generated / "models/generator/tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"models/generator/tokenizer\.json is missing"):
        main()


def test_a_torn_input_is_named_before_anything_is_written(generated: Path):
    repository(generated, "clean")
    cell = generated / "data/generate/web-blogpost.parquet"
    cell.write_bytes(cell.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"web-blogpost\.parquet: not a whole parquet file"):
        main()
    assert not (generated / "data/clean").exists()
