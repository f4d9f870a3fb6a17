"""Promises of cosmopedia.corpus.words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmopedia.corpus.word_hashes import word_hashes
from cosmopedia.corpus.words import plain_words, words

# A sentence per script, its number of words, and another spelling of it that a reader does not tell apart.
SCRIPTS = {
    "Latin": ("The café's ﬁlm is naïve.", 6, "The _cafe\u0301_'s fi\u00adlm is \uff4e\uff41i\u0308ve."),
    "Cyrillic": ("Мой кот любит рыбу.", 4, "**Мо\u0438\u0306** кот лю\u200bбит __рыбу__."),
    "Arabic": ("كِتَابٌ جديد على الطاولة", 4, "كتاب جديد على الطا\u200cولة"),
    "Devanagari": ("किताब पढ़ना अच्छा है।", 4, "किता\u200bब प\u0922\u093cना अच्छा है"),
    "Han": ("月亮绕着地球转。", 7, "月亮 绕着\u200b地球，**转**"),
    "Kana": ("ガラスのコップがある", 10, "ｶﾞﾗｽのコップか\u3099ある"),
    "Thai": ("ดวงจันทร์โคจรรอบโลก", 17, "ดวงจันทร์\u200bโคจร รอบโลก"),
    "Hangul": ("달은 지구를 돈다.", 3, "\u1103\u1161\u11af은 지구를 돈다"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_the_same_in_every_spelling_and_script(script: str):
    text, size, other = SCRIPTS[script]
    assert len(words(text)) == size and words(other) == words(text)
    first, second = word_hashes([text, other]), word_hashes([other, text])
    assert np.diff(first.bounds).tolist() == [size, size]
    assert first.words.tolist() == second.words.tolist()


@pytest.mark.parametrize("script", ["Han", "Kana", "Thai"])
def test_a_clause_of_a_script_without_spaces_is_found_inside_another(script: str):
    text, size, _ = SCRIPTS[script]
    context = "以下" if script == "Han" else "以下の" if script == "Kana" else "และ"
    found = word_hashes([text, f"{context}{text}{context}"])
    grams = [set(hashes.tolist()) for hashes in np.split(*split_ngrams(found, 5))]
    assert len(grams[0]) > size - 7 and grams[0] <= grams[1]
    assert len(plain_words(text)) <= 2


def split_ngrams(hashes, size: int):
    at, grams = hashes.ngrams(size)
    return grams, [int(np.searchsorted(at, hashes.bounds[1]))]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_the_words_of_words_are_the_words(text: str):
    assert words(" ".join(words(text))) == words(text)
