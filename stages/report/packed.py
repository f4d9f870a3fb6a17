"""Pages with a script and data of their own: one file that loads nothing and runs nothing but its script.

Data is JSON, deflated, in base64 (a page that is opened as a file cannot fetch another file); pages.js unpacks it. The
policy allows the page's own script by its hash, and no text that is turned into markup.
"""

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cosmopedia.pages import page_template

HERE = Path(__file__).parent


def packed(value: Any) -> str:
    """`value` as JSON, deflated, in base64: characters that end no element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def script_page(name: str, blocks: dict[str, str], **values: Any) -> str:
    """<name>.html.j2 with pages.js and <name>.js in it, and the `blocks` of packed data by name."""
    script = "".join((HERE / part).read_text(encoding="utf-8") for part in ("pages.js", f"{name}.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    policy += "; require-trusted-types-for 'script'; trusted-types 'none'; base-uri 'none'; form-action 'none'"
    # The script is this repository's, the blocks are base64: neither is text from a model or the web.
    data = Markup("\n").join(
        Markup('<script type="text/plain" id="data-{}">{}</script>').format(name, Markup(block))
        for name, block in blocks.items()
    )
    return page_template(HERE, f"{name}.html.j2").render(policy=policy, script=Markup(script), data=data, **values)
