"""Pages with a script and data of their own: one file that loads nothing and runs nothing but its script.

Data is JSON, deflated, in base64 (a page that is opened as a file cannot fetch another file); pages.js unpacks it. The
policy allows the page's own script by its hash, and no text that is turned into markup.
"""

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cosmopedia.pages import page_template

HERE = Path(__file__).parent
CHUNK = 400_000  # characters of whole texts in a block: some milliseconds to unpack


def packed(value: Any) -> str:
    """`value` as JSON, deflated, in base64: characters that end no element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def coded(values: Sequence[str | None]) -> dict[str, Any]:
    """A column as its different values, the most frequent first, and each row's place among them."""
    names = sorted((counts := Counter(value or "" for value in values)), key=lambda name: (-counts[name], name))
    places = {name: place for place, name in enumerate(names)}
    return {"names": names, "codes": [places[value or ""] for value in values]}


def text_blocks(
    rows: Sequence[dict[str, Any]], size: Callable[[dict[str, Any]], int], whole: Callable[[dict[str, Any]], Any]
) -> tuple[list[int], dict[str, str]]:
    """What `whole` makes of the rows, in blocks of about CHUNK characters: each one's first row, and them by name."""
    starts: list[int] = []
    filled = CHUNK
    for place, row in enumerate(rows):
        if filled >= CHUNK:
            starts.append(place)
            filled = 0
        filled += size(row)
    blocks = {
        f"texts-{a}": packed([whole(row) for row in rows[a:b]])
        for a, b in zip_longest(starts, starts[1:])  # None: to the end
    }
    return starts, blocks


def script_page(name: str, blocks: dict[str, str], browse: bool = False, **values: Any) -> str:
    """<name>.html.j2 with pages.js and <name>.js in it, and the `blocks` of packed data by name.

    `browse`: browse.js too, which needs the blocks that `text_blocks` makes, and one of columns, "rows".
    """
    scripts = ("pages.js", f"{name}.js", "browse.js")[: 3 if browse else 2]
    script = "".join((HERE / part).read_text(encoding="utf-8") for part in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    policy += "; require-trusted-types-for 'script'; trusted-types 'none'; base-uri 'none'; form-action 'none'"
    # The script is this repository's, the blocks are base64: neither is text from a model or the web.
    data = Markup("\n").join(
        Markup('<script type="text/plain" id="data-{}">{}</script>').format(name, Markup(block))
        for name, block in blocks.items()
    )
    return page_template(HERE, f"{name}.html.j2").render(policy=policy, script=Markup(script), data=data, **values)
