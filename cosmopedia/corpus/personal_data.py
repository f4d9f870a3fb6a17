"""E-mail and public IP addresses in texts: datatrove's patterns (FineWeb's), found, counted and masked.

Forms, and no judgement of whom they belong to: a model makes addresses up, and a number of four parts ("section
4.3.2.1", a version) has the form of an IP address. Names, phone numbers and postal addresses have no such form and are
not searched for.
"""

import re
from collections.abc import Callable, Iterable

from datatrove.pipeline.formatters.pii import PIIFormatter, public_ip_validator

# Reserved for documentation (RFC 2606, RFC 5737): nobody's, found no second time.
MASKS = {"email": "email@example.com", "ip": "192.0.2.1"}
NOBODYS = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|net|org)|[\w-]+\.(?:example|invalid|test))\Z", re.IGNORECASE)
_datatrove = PIIFormatter()
# datatrove's local part has no bound, which takes minutes on a "word" of a megabyte; RFC 5321 allows 64 characters.
_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
EMAIL = re.compile(
    _datatrove.emails_replacer.regex.pattern.replace(f"{_LOCAL}+", f"{_LOCAL}{{1,64}}").replace(")*@", "){0,31}@")
)
IP = _datatrove.ip_replacer.regex
FOUR_PARTS = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d")  # in every address, in hardly any text, and quickly looked for


def _is_personal(address: str) -> bool:
    return NOBODYS.search(address) is None


# By kind what every match has in it, its form, and a check of the match.
KINDS: dict[str, tuple[re.Pattern[str], re.Pattern[str], Callable[[str], bool]]] = {
    "email": (re.compile("@"), EMAIL, _is_personal),
    "ip": (FOUR_PARTS, IP, public_ip_validator),
}


def find(text: str, kinds: Iterable[str] = tuple(KINDS)) -> dict[str, list[str]]:
    """What has the form of personal data, by kind; kinds of which there is none are left out."""
    matches = {}
    for kind in kinds:
        sign, form, valid = KINDS[kind]
        if sign.search(text):
            matches[kind] = [match[0] for match in form.finditer(text) if valid(match[0])]
    return {kind: some for kind, some in matches.items() if some}


def masked(text: str, kinds: Iterable[str] = tuple(KINDS)) -> str:
    """The text with each of them replaced by an address of the same kind that is nobody's."""
    for kind in kinds:
        sign, form, valid = KINDS[kind]
        if sign.search(text):
            mask = MASKS[kind]
            text = form.sub(lambda match, mask=mask, valid=valid: mask if valid(match[0]) else match[0], text)
    return text
