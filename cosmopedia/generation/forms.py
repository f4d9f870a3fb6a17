"""The form that a style's completions must have: JSON of a schema, or text that a regular expression matches whole.

Engines are made to write nothing else (apis.py), and what comes back is checked all the same: a server may not know
the parameter, and a text may end at max_new_tokens.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import regex
from pydantic import ConfigDict, field_validator, model_validator

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params
from cosmopedia.generation.requests import Sampling


class Form(Params):
    """Of one style: one of the two."""

    json_schema: dict[str, Any] | None = None  # an object with `properties`, as TGI wants it
    regex: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "Form":
        if (self.json_schema is None) == (self.regex is None):
            raise ValueError("give either json_schema or regex")
        return self

    @field_validator("json_schema")
    @classmethod
    def _schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        from jsonschema import Draft202012Validator, SchemaError

        if schema is not None and not isinstance(schema.get("properties"), dict):
            raise ValueError("a json_schema is an object with `properties`")
        try:
            if schema is not None:
                Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from None
        return schema

    @field_validator("regex")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            regex.compile(pattern or "")
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class SampledFrom(Params):
    """What a stage reads of generate's section whose requests are among generate's, with the same keys."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: int
    sampling: Sampling
    forms: dict[str, Form]


def samplings(
    forms: Mapping[str, Form], sampling: Sampling, styles: Iterable[str] | None = None
) -> dict[str, Sampling]:
    """Style -> its own sampling; styles without a form have none. `ConfigError` for one that is not in `styles`."""
    known = None if styles is None else sorted(styles)
    if known is not None and (unknown := sorted(set(forms) - set(known))):
        raise ConfigError(f"generate.forms.{unknown[0]} is no style; there are: {', '.join(known)}")
    return {style: _with_form(sampling, form) for style, form in forms.items()}


def _with_form(sampling: Sampling, form: Form) -> Sampling:
    schema = None if form.json_schema is None else json.dumps(form.json_schema, separators=(",", ":"))
    return sampling.model_copy(update={"grammar": form.regex, "json_schema": schema})


def fault(text: str, sampling: Sampling) -> str | None:
    """Why a text does not have the form that its sampling names; None when it has."""
    if sampling.json_schema is not None:
        try:
            error = next(_validator(sampling.json_schema).iter_errors(json.loads(text)), None)
        except (ValueError, RecursionError) as broken:
            return f"it is no JSON: {broken}"
        return error and f"{error.json_path}: {error.message[:200]}"
    if sampling.grammar is not None and not regex.fullmatch(sampling.grammar, text):
        return "the style's regular expression does not match it"
    return None


@cache
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))
