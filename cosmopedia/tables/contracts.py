"""The contract of every table that one stage hands to another: schema, nullability, unique key.

A table is sorted by its key in ascending order, so uniqueness is a comparison of neighbours and a check needs constant
memory. Column names that the published dataset has (`prompt, text_token_length, text, seed_data, format, audience`)
are its names.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.errors import DataError


@dataclass(frozen=True)
class Contract:
    """Schema, nullability and key of a table."""

    name: str
    schema: pa.Schema
    key: str

    def conform(self, table: pa.Table, where: str, first: int = 0) -> pa.Table:
        """`table` with this contract's columns, order and types.

        Raises `DataError` naming the column for a missing or extra column, and also the row for a value that does not
        fit, text that is not UTF-8, or a null where none may be. `where` (a file, or a stage's words for its input)
        begins the message; `first` is the number of the table's first row in it.
        """
        columns, wanted = set(table.column_names), set(self.schema.names)
        if missing := sorted(wanted - columns):
            raise DataError(
                f"{where}: {self.name} lacks the column(s) {', '.join(missing)}; found {sorted(columns)};"
                " run the stage that writes it again"
            )
        if extra := sorted(columns - wanted):
            raise DataError(f"{where}: {self.name} has unexpected column(s) {', '.join(extra)}; drop them")
        conformed = []
        for field in self.schema:
            column = table.column(field.name)
            try:
                column = column if column.type == field.type else column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{where}: {self.name}.{field.name} must be {field.type}, found {column.type}: {error}"
                ) from None
            if not field.nullable and column.null_count:
                row = pc.index(pc.is_null(column), True).as_py()  # type: ignore[attr-defined]
                raise DataError(
                    f"{where}: {self.name}.{field.name} is null in {column.null_count} row(s), first in row"
                    f" {self._row(table, row, first)}; give the rows a value or set them aside"
                )
            if field.type == pa.string() and (row := _no_text(column)) is not None:
                raise DataError(
                    f"{where}: {self.name}.{field.name} is not UTF-8 in row {self._row(table, row, first)};"
                    " fix the row or set it aside"
                )
            conformed.append(column)
        return pa.Table.from_arrays(conformed, schema=self.schema)

    def _row(self, table: pa.Table, row: int, first: int) -> str:
        """A row in words: its number, and its key where that can be read."""
        key = table.column(self.key)[row : row + 1] if self.key in table.column_names else None
        if key is None or key.null_count or _no_text(key) is not None:
            return str(first + row)
        return f"{first + row} ({key[0].as_py()!r})"

    def check_order(self, keys: pa.ChunkedArray, previous: object, where: str) -> object:
        """Check that `keys` ascend strictly after `previous` (None at the start); returns the last key."""
        if not len(keys):
            return previous
        first, flat = keys[0].as_py(), keys.combine_chunks()
        if previous is not None and not previous < first:
            raise self._disorder(previous, first, where)
        rising = pc.less(flat[:-1], flat[1:])  # type: ignore[attr-defined]
        if (row := pc.index(rising, False).as_py()) >= 0:  # type: ignore[attr-defined]
            raise self._disorder(flat[row].as_py(), flat[row + 1].as_py(), where)
        return flat[-1].as_py()

    def _disorder(self, previous: object, key: object, where: str) -> DataError:
        problem = "occurs twice" if previous == key else f"comes after {previous!r}"
        return DataError(f"{where}: {self.name}.{self.key} {key!r} {problem}; keys must be unique and sorted")


def _no_text(column: pa.ChunkedArray) -> int | None:
    """The first row of a string column whose bytes are not UTF-8, which a parquet file does not rule out."""
    try:
        column.validate(full=True)
        return None
    except pa.ArrowInvalid:
        for row, value in enumerate(column.cast(pa.binary()).to_pylist() if column.type == pa.string() else []):
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                return row
        raise


def _schema(**fields: object) -> pa.Schema:
    """Columns by name; a one-element tuple marks a nullable column."""
    return pa.schema(
        [pa.field(n, t[0], True) if isinstance(t, tuple) else pa.field(n, t, False) for n, t in fields.items()]
    )


_s, _i32, _i64, _f32, _f64 = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64()

SOURCE = Contract(
    "source rows",
    _schema(
        row_id=_s,  # "<source>/<original id>"
        source=_s,
        original_id=_s,
        title=_s,  # "" where the source has none
        text=_s,  # what an extract is cut from; "" for sources that are titles only
        context=_s,  # JSON object with the source's own slots (course, unit, covered, ...)
        url=(_s,),
        licence=_s,
        revision=_s,  # commit of the hub dataset, or the content hash of a local file
    ),
    "row_id",
)

# Rows that a stage removed, kept with the reason. `row` is the row as JSON, as far as it could be read.
REJECTED = Contract("rejected rows", _schema(row_id=_s, reason=_s, detail=_s, row=_s), "row_id")

EMBEDDING = Contract("embeddings", _schema(row_id=_s, embedding=pa.list_(_f32)), "row_id")

ASSIGNMENT = Contract(
    "cluster assignments",
    _schema(
        row_id=_s,
        cluster=_i32,  # -1: noise, or too far from every centroid
        similarity=_f32,  # cosine with the centroid of `cluster`; 0 for noise
        in_sample=pa.bool_(),  # clustered by HDBSCAN itself, or assigned afterwards
        x=(_f32,),  # the 2-D map, for rows of the sample
        y=(_f32,),
    ),
    "row_id",
)

CENTROID = Contract("cluster centroids", _schema(cluster=_i32, size=_i32, centroid=pa.list_(_f32)), "cluster")

LABEL = Contract(
    "cluster labels",
    _schema(
        cluster=_i32,
        size=_i32,
        label=_s,
        label_source=_s,  # "model" | "keywords": the answer did not parse, so the c-TF-IDF keywords are used
        educational_score=(pa.int8(),),  # 1-10, null when the answer did not parse
        keywords=pa.list_(_s),  # c-TF-IDF, best first
        examples=pa.list_(_s),  # row ids shown to the model
        answer=_s,  # the model's words
    ),
    "cluster",
)

TOPIC = Contract(
    "topics",
    _schema(
        cluster=_i32,
        topic=_s,
        decision=_s,  # "keep" | "drop"
        reason=_s,
        decided_by=_s,  # "label" | "keywords" (curation/topics.yaml) | "score" (no reviewed entry matched)
        size=_i32,
        educational_score=(pa.int8(),),
    ),
    "cluster",
)

TOPIC_OF_ROW = Contract("web rows with topics", _schema(row_id=_s, cluster=_i32, topic=_s), "row_id")

_PROMPT_FIELDS: dict[str, object] = {
    "prompt_id": _s,  # content_hash(row_id, style, audience): stable under edits of the template
    "prompt": _s,
    "source": _s,
    "style": _s,
    "format": _s,
    "audience": _s,
    "topic": (_s,),  # the row's topic; null for sources that are not clustered
    "topic_named": pa.bool_(),  # whether the prompt names it
    "seed_id": _s,  # row_id of the source row
    "seed_data": _s,  # the extract or title that the prompt quotes
    "seed_revision": _s,
    "seed_licence": _s,
    "template": _s,  # prompts/<source>/<style>.txt
    "template_hash": _s,
}

PROMPT = Contract("prompts", _schema(**_PROMPT_FIELDS), "prompt_id")

_DOCUMENT_FIELDS: dict[str, object] = {
    "completion_id": _s,  # "<prompt_id>-<sample index>"
    "prompt": _s,
    "text_token_length": _i32,  # tokens that the model wrote, as the server counted them; without a thought's
    "text": _s,
    "seed_data": _s,
    "format": _s,
    "audience": _s,
    **{n: t for n, t in _PROMPT_FIELDS.items() if n not in ("prompt", "seed_data", "format", "audience")},
    "key": _s,  # the completion store's key
    "sample_index": _i32,
    "finish_reason": _s,  # "eos_token" | "length" | "stop_sequence", TGI's words
    "prompt_tokens": _i32,
    "model": _s,
    "model_revision": _s,
    "sampling": _s,  # JSON
    "sampling_seed": _i64,
    "engine": _s,
}

# What generate, clean, dedup and decontaminate hand on: the published dataset's six columns first, then the lineage.
DOCUMENT = Contract("documents", _schema(**_DOCUMENT_FIELDS), "completion_id")

# What a model wrote, by the completion store's key: what is needed to fill a store. DOCUMENT has these columns too.
COMPLETION = Contract(
    "completions",
    _schema(**{"key": _s, **{n: _DOCUMENT_FIELDS[n] for n in (
        "text", "finish_reason", "text_token_length", "prompt_tokens", "engine")}}),
    "key",
)  # fmt: skip

# What a reasoning model thought before it wrote a document.
THOUGHT = Contract("thoughts", _schema(completion_id=_s, thought=_s, thought_tokens=_i32), "completion_id")

FAILED = Contract(
    "failed completions",
    _schema(completion_id=_s, prompt_id=_s, key=_s, reason=_s, detail=_s, attempts=_i32),
    "completion_id",
)

# A document that a stage removed, with the whole evidence as JSON.
REMOVED = Contract(
    "removed documents",
    _schema(completion_id=_s, source=_s, style=_s, reason=_s, evidence=_s, text=_s),
    "completion_id",
)

# A document with a passage that is near to a benchmark item, and what the generation model says about it.
PARAPHRASE = Contract(
    "paraphrase candidates",
    _schema(
        pair_id=_s,  # "<completion_id> <item_id>"
        completion_id=_s,
        source=_s,
        task=_s,
        item_id=_s,
        start=_i32,  # of the passage in the document's text, in characters
        end=_i32,
        passage=_s,
        cosine=_f64,  # of the passage and the item, to four digits
        verdict=(_s,),  # "yes" | "no"; null where the model gave no such answer
        answer=(_s,),  # the model's words
        failure=(_s,),  # why there is no answer
        key=(_s,),  # the completion store's
    ),
    "pair_id",
)

# Every evaluation set in one shape; evaluation reads query, choices and gold, decontamination the rest and choices.
BENCHMARK = Contract(
    "benchmark items",
    _schema(
        item_id=_s,  # "<task>/<6-digit position>"
        task=_s,
        query=_s,  # the cloze prompt, as evaluated
        choices=pa.list_(_s),  # continuations, as scored (with their leading space)
        gold=_i32,  # position in choices
        question=_s,  # the bare question or context, as decontamination matches it
        answer=_s,  # the right answer's text
        other_forms=pa.list_(pa.struct([("form", _s), ("text", _s)])),  # texts of the item that leak without the rest
        revision=_s,
    ),
    "item_id",
)
