"""The contract of every table that one stage hands to another: schema, nullability, unique key.

A table is sorted by its key in ascending order, so uniqueness is a comparison of neighbours and a check needs constant
memory. Column names that the published dataset has (`prompt, text_token_length, text, seed_data, format, audience`)
are its names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.core.errors import DataError


@dataclass(frozen=True)
class Contract:
    """Schema, nullability and key of a table, and what its values must be."""

    name: str
    schema: pa.Schema
    key: str
    least: Mapping[str, int] = field(default_factory=dict)  # column of whole numbers -> its smallest value
    in_name: tuple[str, ...] = ()  # columns that repeat a part of the file's name (cell_files.in_name)

    def narrow(self, columns: Iterable[str]) -> "Contract":
        """The contract of some columns."""
        return replace(self, schema=pa.schema([self.schema.field(name) for name in columns]))

    def conform(self, table: pa.Table, where: str, first: int = 0) -> pa.Table:
        """`table` with this contract's columns, order and types.

        A column may differ in how its values are stored (a dictionary, wider numbers), not in what they are: numbers
        are no text. Raises `DataError` naming the column for a missing, extra or repeated column or one of another
        type, and also the row for a value that does not fit, text that is not UTF-8, or a null where none may be.
        `where` (a file, or a stage's words for its input) begins the message; `first` is the number of the table's
        first row in it.
        """
        self._check_columns(table.column_names, where)
        columns = []
        for wanted in self.schema:
            raw = table.column(wanted.name)
            column = raw if raw.type == wanted.type else self._cast(table, wanted, where, first)
            problem = _problem(column, wanted, self.least.get(wanted.name))
            if problem is not None:
                raise self._refusal(table, wanted.name, problem, where, first)
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=self.schema)

    def check_name(self, table: pa.Table, values: Mapping[str, str], where: str, first: int = 0) -> None:
        """`DataError` when a column of `in_name` differs from the file's name, whose parts are `values`."""
        for name in self.in_name:
            if name not in table.column_names:
                continue
            row = pc.index(pc.equal(table[name], values[name]), False).as_py()  # type: ignore[attr-defined]
            if row >= 0:
                what = f"is {table[name][row].as_py()!r}, but {values[name]!r} in the file's name,"
                problem = Problem(row, what, "correct the row, or rename the file")
                raise self._refusal(table, name, problem, where, first)

    def _check_columns(self, names: list[str], where: str) -> None:
        columns, wanted = set(names), set(self.schema.names)
        if missing := sorted(wanted - columns):
            raise DataError(
                f"{where}: {self.name} lacks the column(s) {', '.join(missing)}; found {sorted(columns)};"
                " run the stage that writes it again"
            )
        if extra := sorted(columns - wanted):
            raise DataError(f"{where}: {self.name} has unexpected column(s) {', '.join(extra)}; drop them")
        if len(names) > len(columns):
            repeated = sorted(name for name in columns if names.count(name) > 1)
            raise DataError(f"{where}: {self.name} has the column(s) {', '.join(repeated)} more than once; drop one")

    def _cast(self, table: pa.Table, wanted: pa.Field, where: str, first: int) -> pa.ChunkedArray:
        """A column as the type that the contract wants; `DataError` when its values are something else."""
        column = table.column(wanted.name)
        if not _same_kind(column.type, wanted.type):
            raise DataError(
                f"{where}: {self.name}.{wanted.name} must be {wanted.type}, found {column.type}; give the column that"
                " type, or run the stage that writes the file again"
            )
        options = pc.CastOptions(wanted.type, allow_invalid_utf8=True)  # `_problem` looks for that, and finds the row
        try:
            return column.cast(options=options)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            row = next((row for row in range(len(column)) if not _casts(column[row : row + 1], options)), 0)
            problem = Problem(row, f"must be {wanted.type}, found {column.type}: {error},", "correct the value")
            raise self._refusal(table, wanted.name, problem, where, first) from None

    def _refusal(self, table: pa.Table, column: str, problem: "Problem", where: str, first: int) -> DataError:
        place = self._row(table, problem.row, first)
        return DataError(f"{where}: {self.name}.{column} {problem.what} in row {place}; {problem.action}")

    def _row(self, table: pa.Table, row: int, first: int) -> str:
        """A row in words: its number, and its key where that can be read."""
        try:
            key = table.column(self.key)[row].as_py() if self.key in table.column_names else None
        except UnicodeDecodeError:
            key = None
        return str(first + row) if key is None else f"{first + row} ({key!r})"

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
        return DataError(
            f"{where}: {self.name}.{self.key} {key!r} {problem}; keys must be unique and sorted: run the stage that"
            " writes the file again"
        )


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type are values of the other, stored in another way. A column of nulls fits any type."""
    if pa.types.is_dictionary(found):
        return _same_kind(found.value_type, wanted)
    if pa.types.is_null(found):
        return True
    if _is_list(found) and _is_list(wanted):
        return _same_kind(found.value_type, wanted.value_type)
    if pa.types.is_struct(found) and pa.types.is_struct(wanted):
        names = [[field.name for field in kind] for kind in (found, wanted)]
        return names[0] == names[1] and all(map(_same_kind, *([f.type for f in kind] for kind in (found, wanted))))
    return any(all(map(of_kind, (found, wanted))) for of_kind in (_is_text, _is_number, pa.types.is_boolean))


def _is_list(kind: pa.DataType) -> bool:
    return any(of_kind(kind) for of_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _casts(values: pa.ChunkedArray, options: pc.CastOptions) -> bool:
    try:
        values.cast(options=options)
    except pa.ArrowInvalid:
        return False
    return True


class Problem(NamedTuple):
    """The first row whose value may not be, what is wrong with it, and what to do."""

    row: int
    what: str
    action: str


def _problem(column: pa.ChunkedArray, wanted: pa.Field, least: int | None) -> Problem | None:
    """What is wrong with a column of the right type; None when nothing is."""
    if not wanted.nullable and column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()  # type: ignore[attr-defined]
        return Problem(row, f"is null in {column.null_count} row(s), first", "give the rows a value or set them aside")
    if least is not None:
        row = pc.index(pc.less(column, least), True).as_py()  # type: ignore[attr-defined]
        if row >= 0:
            what = f"is {column[row].as_py()}, wanted {least} or more,"
            return Problem(row, what, "correct the row or set it aside")
    if pa.types.is_string(column.type):
        wrong = _no_text(column)
        if wrong is not None:
            return Problem(wrong[0], "is not UTF-8", f"fix the row or set it aside ({wrong[1]})")
    if pa.types.is_list(column.type):
        return _problem_in_list(column)
    return None


def _problem_in_list(column: pa.ChunkedArray) -> Problem | None:
    """`_problem` among the elements of lists, and the fields of structs in them: none may be null."""
    parts = [pc.list_flatten(column)]  # type: ignore[attr-defined]
    if pa.types.is_struct(parts[0].type):
        parts += parts[0].flatten()
    for part in parts:
        problem = _problem(part, pa.field("", part.type, nullable=False), None)
        if problem is not None:
            row = pc.list_parent_indices(column)[problem.row].as_py()  # type: ignore[attr-defined]
            return problem._replace(row=row, what=f"has an element that {problem.what}")
    return None


def _no_text(column: pa.ChunkedArray) -> tuple[int, str] | None:
    """(the first row of a string column whose bytes are not UTF-8, why); a parquet file does not rule that out."""
    try:
        column.validate(full=True)
        return None
    except pa.ArrowInvalid:
        for row, value in enumerate(column.cast(pa.binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                return row, _why(value, error)
        raise


def _why(value: bytes, error: UnicodeDecodeError) -> str:
    """What is wrong where UTF-8 ends: half a surrogate pair, as JavaScript and Java can write it, or another byte."""
    wrong = value[error.start : error.start + 3]
    try:
        return f"half of a surrogate pair, U+{ord(wrong.decode('utf-8', 'surrogatepass')):04X}, at byte {error.start}"
    except (UnicodeDecodeError, TypeError):
        return f"{error.reason} at byte {error.start}"


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
    in_name=("source",),
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
    {"cluster": -1},
)

CENTROID = Contract(
    "cluster centroids",
    _schema(cluster=_i32, size=_i32, centroid=pa.list_(_f32)),
    "cluster",
    {"cluster": 0, "size": 0},
)

LABEL = Contract(
    "cluster labels",
    _schema(
        cluster=_i32,
        size=_i32,
        label=_s,  # unique: a name that two clusters share has a keyword behind it in the smaller one
        label_source=_s,  # "model" | "keywords": no answer was usable, so the c-TF-IDF keywords are used
        topic=(_s,),  # the name as the model gave it, null without one
        educational_score=(pa.int8(),),  # 1-10, the median of `scores`; null when no answer was usable
        scores=pa.list_(pa.int8()),  # of the usable answers, in the order of the draws
        draws=_i32,  # times that the model was shown examples
        keywords=pa.list_(_s),  # c-TF-IDF, best first
        examples=pa.list_(_s),  # row ids shown to the model when it gave the name
        answer=_s,  # the model's words then
    ),
    "cluster",
    {"cluster": 0, "size": 0, "educational_score": 1},
)

TOPIC = Contract(
    "topics",
    _schema(
        cluster=_i32,
        topic=_s,
        label=_s,  # the cluster's own
        decision=_s,  # "keep" | "drop"
        reason=_s,
        decided_by=_s,  # "cluster" | "label" | "keywords" (curation/topics.yaml) | "score" (no reviewed entry matched)
        mixed=pa.bool_(),  # parts of it were reviewed with another decision: each row has that of its own part
        size=_i32,
        educational_score=(pa.int8(),),
    ),
    "cluster",
)

TOPIC_OF_ROW = Contract("web rows with topics", _schema(row_id=_s, cluster=_i32, topic=_s), "row_id")

# What prompts of the preset `grounded` take their facts from.
PASSAGE = Contract(
    "passages",
    _schema(
        passage_id=_s,  # "<article's id>/<4-digit position>"
        title=_s,  # the article's; "" where the corpus has none
        text=_s,
        article=_s,  # the article's address, or its id where it has none
        revision=_s,  # of the corpus: a commit, or the content hash of a local file
        licence=_s,
    ),
    "passage_id",
)

# The best passages for a source row; rows without any are not in the table.
RETRIEVED = Contract(
    "retrieved passages",
    _schema(
        row_id=_s,  # SOURCE's
        passages=pa.list_(_s),  # ids, best first
        scores=pa.list_(_f64),  # BM25, to four digits
        references=_s,  # their titles and texts, numbered, as a prompt quotes them
    ),
    "row_id",
)

# Which passages a prompt quotes; only of prompts that quote some.
REFERENCES = Contract("references of prompts", _schema(prompt_id=_s, passages=pa.list_(_s)), "prompt_id")

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

PROMPT = Contract("prompts", _schema(**_PROMPT_FIELDS), "prompt_id", in_name=("source", "style"))

_DOCUMENT_FIELDS: dict[str, object] = {
    "completion_id": _s,  # "<prompt_id>-<sample index>"; of natural text "<component>/<hash of the row's id>"
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

# What generate, natural, clean, dedup and decontaminate hand on: the published dataset's six columns first, then the
# lineage.
DOCUMENT = Contract(
    "documents",
    _schema(**_DOCUMENT_FIELDS),
    "completion_id",
    {"text_token_length": 0, "prompt_tokens": 0, "sample_index": 0},
    in_name=("source", "style"),
)

# What a model wrote, by the completion store's key: what is needed to fill a store. DOCUMENT has these columns too.
COMPLETION = Contract(
    "completions",
    _schema(**{"key": _s, **{n: _DOCUMENT_FIELDS[n] for n in (
        "text", "finish_reason", "text_token_length", "prompt_tokens", "engine")}}),
    "key",
    {"text_token_length": 0, "prompt_tokens": 0},
)  # fmt: skip

# What a reasoning model thought before it wrote a document.
THOUGHT = Contract(
    "thoughts", _schema(completion_id=_s, thought=_s, thought_tokens=_i32), "completion_id", {"thought_tokens": 0}
)

FAILED = Contract(
    "failed completions",
    _schema(completion_id=_s, prompt_id=_s, key=_s, reason=_s, detail=_s, attempts=_i32),
    "completion_id",
)

# How often a document of data/decontaminate is in the mix. Only those that are.
MIXED = Contract("documents of the mix", _schema(completion_id=_s, copies=_i32), "completion_id", {"copies": 1})

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

# What a document says beyond the text that its prompt quotes.
FAITHFUL = Contract(
    "verdicts on faithfulness",
    _schema(
        completion_id=_s,
        prompt_id=_s,
        source=_s,
        style=_s,
        topic=(_s,),
        words=_i32,  # of the document
        source_words=_i32,
        numbers=_i32,  # that were looked at, with and without units
        dates=_i32,
        names=_i32,
        unsupported_numbers=_i32,
        unsupported_units=_i32,  # the source has the number with another unit
        unsupported_dates=_i32,
        unsupported_names=_i32,
        word_support=_f64,  # share of different content words that the source has, to four digits
        ngram_support=_f64,  # the same of runs of three words
        # parts of the text, in characters
        spans=pa.list_(pa.struct([("kind", _s), ("start", _i32), ("end", _i32), ("text", _s)])),
        unfaithful=pa.list_(_s),  # the limits of params that it is beyond
    ),
    "completion_id",
    in_name=("source", "style"),
)

# How far other samples of the same prompt support a sentence; higher scores: less.
SELFCHECK = Contract(
    "self-checked sentences",
    _schema(
        sentence_id=_s,  # "<completion_id> <4-digit position>"
        completion_id=_s,
        source=_s,
        style=_s,
        topic=(_s,),
        start=_i32,  # of the sentence in the document's text, in characters
        end=_i32,
        sentence=_s,
        samples=_i32,  # that it was compared with
        unigram_mean=_f64,  # nats, of its words in the samples; to four digits, as the others
        unigram_max=_f64,  # of its least likely word
        asked=(_f64,),  # share of samples that do not support it, as the model says; null: it was not asked
        answers=pa.list_(_s),  # "yes" | "no" | "" for another answer, by sample
        nli=(_f64,),  # probability that a sample contradicts it, the mean; null without such a model
    ),
    "sentence_id",
)

# Every evaluation set in one shape; evaluation reads query, choices and gold, decontamination the rest and choices.
BENCHMARK = Contract(
    "benchmark items",
    _schema(
        item_id=_s,  # "<task>/<6-digit position>"
        task=_s,
        group=(_s,),  # a part of the task that is also scored by itself: MMLU's subject; null for other tasks
        query=_s,  # the cloze prompt, as evaluated
        choices=pa.list_(_s),  # continuations, as scored (with their leading space)
        gold=_i32,  # position in choices
        question=_s,  # the bare question or context, as decontamination matches it
        answer=_s,  # the right answer's text
        other_forms=pa.list_(pa.struct([("form", _s), ("text", _s)])),  # texts of the item that leak without the rest
        revision=_s,
    ),
    "item_id",
    {"gold": 0},
    in_name=("task",),
)

# A model's answers, one row per item: every score, and comparisons item by item, follow from them.
DETAIL = Contract(
    "evaluation details",
    _schema(
        item_id=_s,
        task=_s,
        group=(_s,),  # BENCHMARK's
        gold=_i32,
        predicted=_i32,  # the choice with the greatest log-probability
        predicted_norm=_i32,  # the same by log-probability per character
        correct=pa.bool_(),
        correct_norm=pa.bool_(),
        choices=pa.list_(_s),
        bytes=pa.list_(_i32),  # UTF-8 bytes of each choice as scored, without its leading space
        logprobs=pa.list_(_f64),  # nats, one per choice
    ),
    "item_id",
    {"gold": 0},
)

# How well a model predicts the documents of the held-out sets: nats / ln 2 / bytes are its bits per byte.
HELDOUT = Contract(
    "held-out documents",
    _schema(
        set=_s,
        document_id=_s,  # "<set>/<6-digit position>"
        nats=_f64,  # summed negative log-likelihood of the document's tokens
        tokens=_i32,
        bytes=_i32,  # of its text, UTF-8
    ),
    "document_id",
    {"tokens": 1, "bytes": 1},
)

# A document with the topic of the taxonomy that it is nearest to, and that of the source row it was written from.
TOPIC_OF_DOCUMENT = Contract(
    "documents with topics of the taxonomy",
    _schema(
        completion_id=_s,
        source=_s,
        style=_s,
        model=_s,  # "" for natural text
        topic=(_s,),  # null: near to no topic
        deviations=_f64,  # standard deviations from the mean of its cosines with all topics to the greatest one
        seed_id=(_s,),  # null for natural text
        seed_topic=(_s,),
    ),
    "completion_id",
)

# A topic of the taxonomy with what the corpus has of it. A topic with others below it has their sums.
COVERAGE = Contract(
    "topics of the taxonomy",
    _schema(
        id=_s,
        name=_s,
        parent=(_s,),
        path=pa.list_(_s),  # names of the topics above, the field first
        keywords=pa.list_(_s),
        description=_s,
        leaf=pa.bool_(),
        documents=_i64,  # of the corpus; where only some were assigned, extrapolated from these
        seeds=_i64,  # documents (as above) whose source row is of the topic
        wanted=_i64,
        missing=_i64,  # wanted less documents, at least 0
    ),
    "id",
    {"documents": 0, "seeds": 0, "wanted": 0, "missing": 0},
)
