"""What the cards of the corpus and of a model share: the hub's YAML head, tables, the section about licences.

Whatever comes from data is escaped: a format, an audience or a licence can end no table, open no tag, load no image.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from cosmopedia.core.text import without_controls
from cosmopedia.licences import Terms, licence, terms_of_model

MARKDOWN = re.compile(r"[\\`*\[\]<>|]")
# Of the hub, by the number of rows below which each one is.
SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"),
    (1e9, "100M<n<1B"),
    (1e10, "1B<n<10B"),
    (1e11, "10B<n<100B"),
    (1e12, "100B<n<1T"),
)
REVISION = "<!-- revision -->"  # before the sentence that `cosmo publish` replaces with the revision
LOCAL = re.compile(r"<!-- local -->\n.*?<!-- /local -->\n+", re.DOTALL)  # what is about the folder here alone


def head(fields: dict[str, Any]) -> str:
    """The YAML at the top of a card, without its fences; fields without a value are left out."""
    given = {name: value for name, value in fields.items() if value not in (None, [], {})}
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True)


def escaped(value: object) -> str:
    """A value of the data as text in Markdown, on one line."""
    text = " ".join(without_controls(str(value)).split())
    return MARKDOWN.sub(lambda match: "\\" + match[0], text.replace("&", "&amp;"))


def rows(values: Iterable[Sequence[object]]) -> str:
    """Lines of a table."""
    return "\n".join(f"| {' | '.join(escaped(value) for value in row)} |" for row in values)


def size_category(count: int) -> str:
    """The hub's name for a number of rows."""
    return next((name for limit, name in SIZES if count < limit), "n>1T")


def licence_text(terms: Terms) -> str:
    """In words what the whole comes under, and what whoever passes it on must do."""
    strictest = terms.strictest
    if strictest:
        lines = [f"As a whole: **{strictest.spdx}** ({strictest.url}), the strictest of those below."]
    else:
        lines = [
            f"No one licence fits the whole ({escaped(terms.why_other())}), so each row keeps that of its source."
        ]
    for one in terms.known:
        if one.share_alike:
            lines.append(
                f"{one.spdx} is share-alike: what is made from its texts is passed on under the same licence."
            )
        if one.non_commercial:
            lines.append(f"{one.spdx} allows no commercial use.")
        if one.conditions:
            lines.append(f"{one.spdx}: {one.conditions} ({one.url}).")
    if naming := [one.spdx for one in terms.known if one.attribution]:
        lines.append(f"Attribution, as in the table of sources, is required by {', '.join(naming)}.")
    return "\n".join(lines)


def source_rows(sources: Iterable[tuple[str, str, str, str]]) -> str:
    """Lines of the table of attribution, of (source, dataset, revision, licence)."""
    return rows(
        [source, dataset, revision, name or "none", _url(licence(name))] for source, dataset, revision, name in sources
    )


def model_rows(models: Iterable[tuple[str, str]]) -> str:
    """Lines of the table of generation models, of (model, revision)."""
    terms = [(model, revision, terms_of_model(model)) for model, revision in models]
    return rows([model, revision, one.spdx if one else "unknown", _url(one)] for model, revision, one in terms)


def _url(one: Any) -> str:
    return one.url if one else "–"


def published(card: str, revision: str, again: str = "") -> str:
    """A card as it leaves the repository: with the revision that made it, and how to make it `again` where the card
    does not say so; without what is about local files alone."""
    sentence = f"Made at git revision `{revision}`.{again}"
    return re.sub(rf"{REVISION}\n(?:.+\n)+", lambda _: f"{sentence}\n", LOCAL.sub("", card))
