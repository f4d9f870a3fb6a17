"""Personal data by form: what counts, what is nobody's, and no text on which the search takes for ever."""

import time

import pytest
from datatrove.pipeline.formatters.pii import PIIFormatter

from cosmopedia.corpus.personal_data import EMAIL, find, masked


def test_addresses_that_are_nobodys_are_not_found_and_a_mask_is_found_no_second_time():
    text = "From jane.doe+x@uni-koeln.de (8.8.8.8), not bob@mail.example.com, a@b.test or 10.0.0.1."
    assert find(text) == {"email": ["jane.doe+x@uni-koeln.de"], "ip": ["8.8.8.8"]}
    assert masked(text) == text.replace("jane.doe+x@uni-koeln.de", "email@example.com").replace("8.8.8.8", "192.0.2.1")
    assert find(masked(text)) == {}


def test_the_bounded_pattern_is_datatroves_for_addresses_that_mail_can_have():
    own = PIIFormatter().emails_replacer.regex
    assert own.pattern != EMAIL.pattern
    for text in (
        "a.b.c@d.e",
        "o'neil@x.org.",
        "<x_y@sub.host-1.co.uk>",
        "x@[127.0.0.1]",
        "no@",
        "@no.de",
        "a..b@c.de",
    ):
        assert [m[0] for m in EMAIL.finditer(text)] == [m[0] for m in own.finditer(text)], text


@pytest.mark.parametrize("word", ["a-", "a.", "a@", "a@a-"])
def test_a_word_without_end_takes_time_in_proportion(word: str):
    def seconds(count: int) -> float:
        start = time.process_time()
        find(f"{word * count}@")
        return time.process_time() - start

    assert seconds(8000) < 0.02 + 40 * seconds(800)  # 100 times as much if it were quadratic
