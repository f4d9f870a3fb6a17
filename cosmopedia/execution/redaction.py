"""Secrets in text: what looks like one, and text with them taken out.

Compute files refuse what looks like a secret. Whatever this repository prints, logs or stores of others' words goes
through `redact` first: an address may hold a password, and a server may repeat the token that it was sent.
"""

import logging
import os
import re
import sys
import traceback
from functools import cache
from types import TracebackType
from typing import Any

REDACTED = "[redacted]"
# A name whose value is a secret: HF_TOKEN, --api-key, AWS_SECRET_ACCESS_KEY; not --max-total-tokens, token_env
SECRET_NAME = re.compile(
    r"(?:TOKEN(?![a-z])|SECRET|PASSW(?:OR)?D|PASSPHRASE|CREDENTIALS?"
    r"|(?:API|ACCESS|AUTH|PRIVATE|SIGNING|ENCRYPTION|SSH|SERVING)[_-]?KEY(?![a-z])|AUTHORI[SZ]ATION)"
    r"(?![\w-]*(?:[_-](?:PATH|FILE|DIR|ENV|IDS?|URL|NAME|LENGTH|LIMIT|COUNT)$|S$))",
    re.IGNORECASE,
)
# A name whose value is a secret if it also looks random: MY_KEY, DB_AUTH.
SUSPICIOUS_NAME = re.compile(r"(?:KEY|AUTH|PASS|CRED|PWD|SIGNATURE|TOKEN|SECRET)", re.IGNORECASE)
RANDOM = re.compile(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9+/_=.-]{20,}")
# Values whose form gives them away: bearer and basic authorisation, tokens of Hugging Face, GitHub, GitLab, Docker,
# OpenAI and its like, AWS, Google, NVIDIA and Slack, JSON web tokens, private keys.
SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"[Bb]earer\s+[\w.~+/=-]{8,}|Basic\s+[A-Za-z0-9+/]{12,}={0,2}"
    r"|hf_[A-Za-z0-9]{12,}|github_pat_\w{16,}|gh[pousr]_\w{16,}|glpat-[\w-]{16,}|dckr_pat_[\w-]{16,}"
    r"|sk-[\w-]{16,}|A[KS]IA[0-9A-Z]{12,}|AIza[\w-]{30,}|nvapi-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r")"
)
# The part of an address before its host, also where a password holds a slash (a port is not a password).
USER_PART = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#@:]*:(?!\d+(?:[/?#\s]|$))[^\s@]{0,200}@)")
# name=value, "name": "value", name: Some("value"), --name value, the words "token value": names that may be secrets
PAIR = re.compile(
    rf"(?<![\w-])(?P<name>[\w-]{{0,40}}{SUSPICIOUS_NAME.pattern}[\w-]{{0,40}})(?![\w-])"
    r"(?P<sign>[\"']?\s*[=:]\s*(?:Some\()?[\"']?|\s+[\"']?)(?P<value>[^\s\"'&,;)]+)",
    re.IGNORECASE,
)
MIN_LENGTH = 6  # of a secret that is searched for by its value: a shorter one would be found in ordinary words
_remembered: set[str] = set()


def remember(secret: str) -> str:
    """The secret, which `redact` takes out of every text from now on."""
    if len(secret) >= MIN_LENGTH:
        _remembered.add(secret)
    return secret


def redact(text: str) -> str:
    """The text without secrets: users and passwords of addresses, tokens by form or by name, and the values of this
    process's secret environment variables and of what it `remember`s, wherever they appear."""
    known = {value for name, value in os.environ.items() if len(value) >= MIN_LENGTH and SECRET_NAME.search(name)}
    for secret in sorted(known | _remembered, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    text = USER_PART.sub(f"{REDACTED}@", text)
    text = SECRET_VALUE.sub(REDACTED, text)
    for pair in reversed(list(PAIR.finditer(text))):
        if SECRET_NAME.search(pair["name"]) and _is_its_value(pair):
            text = text[: pair.start("value")] + REDACTED + text[pair.end("value") :]
    return text


def _is_its_value(pair: re.Match[str]) -> bool:
    """Whether the value of a secret's name is a secret, and not the next word ("the password: is it right?")."""
    value, sign = pair["value"], pair["sign"]
    if RANDOM.fullmatch(value):
        return True
    if re.search("token", pair["name"], re.IGNORECASE):  # such as eos_token=</s>
        return False
    return "=" in sign or sign[-1] in "\"'" or (":" in sign and bool(re.search(r"\d", value)))


def secret_in(text: str, name: str = "") -> str | None:
    """What in a setting's value looks like a secret, in words without the secret; None when nothing does.

    `name` is the setting's own, where its value alone would be the secret.
    """
    if name and (SECRET_NAME.search(name) or (SUSPICIOUS_NAME.search(name) and RANDOM.fullmatch(text))):
        return name
    for pair in PAIR.finditer(text):
        given = "=" in pair["sign"] or pair["name"].startswith("--")
        if pair["value"][0] in "$`":  # a reference, as it should be
            continue
        random = SUSPICIOUS_NAME.search(pair["name"]) and RANDOM.fullmatch(pair["value"])
        if random or (given and SECRET_NAME.search(pair["name"])):
            return pair["name"]
    if SECRET_VALUE.search(text):
        return "a value of the form of a token"
    has_password = any(":" in part[0] for part in USER_PART.finditer(text))
    return "an address with a password" if has_password else None


def say(text: str) -> None:
    """A line for people on stderr, without secrets."""
    print(redact(text), file=sys.stderr, flush=True)


@cache
def guard_output() -> None:
    """From now on, log records of all libraries and the traceback that ends this process are redacted."""
    make = logging.getLogRecordFactory()

    def without_secrets(*arguments: Any, **others: Any) -> logging.LogRecord:
        record = make(*arguments, **others)
        try:
            record.msg, record.args = redact(record.getMessage()), ()
        except (TypeError, ValueError):  # a library's own mistake, which logging reports
            return record
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        return record

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        say("".join(traceback.format_exception(kind, error, trace)).rstrip())

    logging.setLogRecordFactory(without_secrets)
    sys.excepthook = report
