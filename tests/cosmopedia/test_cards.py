"""Cards: what comes from data stays in its cell."""

import pytest

from cosmopedia.cards import escaped, licence_text, published, rows, size_category
from cosmopedia.licences import terms


def test_a_value_of_the_data_opens_no_tag_loads_no_image_and_ends_no_cell():
    hostile = "a|b\n<img src=x> ![i](http://x) `c` *d* &amp; \x1b[0m"
    assert escaped(hostile) == r"a\|b \<img src=x\> !\[i\](http://x) \`c\` \*d\* &amp;amp; \[0m"
    assert rows([[hostile, 1]]).count("\n") == 0


@pytest.mark.parametrize(
    ("count", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (3 * 10**7, "10M<n<100M"), (10**12, "n>1T")]
)
def test_sizes_are_the_hubs(count: int, name: str):
    assert size_category(count) == name


def test_share_alike_attribution_and_conditions_are_said():
    text = licence_text(terms(["CC-BY-SA-4.0", "MIT"], ["Mixtral-8x7B"]))
    assert "As a whole: **CC-BY-SA-4.0**" in text and "CC-BY-SA-4.0 is share-alike" in text
    assert "is required by MIT, Apache-2.0, CC-BY-SA-4.0." in text
    mixed = licence_text(terms(["CC-BY-SA-4.0", "<b>"], ["Llama-3.1-8B"]))
    assert mixed.startswith("No one licence fits the whole (\\<b\\>: it is not known") and "Built with Llama" in mixed
    assert "CC-BY-SA-4.0 and Llama 3.1 Community License bind to different terms" in mixed


def test_a_published_card_has_its_revision_and_nothing_about_local_files():
    card = "A\n\n<!-- local -->\nlineage\n<!-- /local -->\n\n<!-- revision -->\nHow to find it,\nin git.\n\nB\n"
    assert published(card, "abc\\1") == "A\n\nMade at git revision `abc\\1`.\n\nB\n"
