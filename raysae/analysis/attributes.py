"""What is known of the store's texts: any column of the data set, and attributes that follow from a text.

A sequence's ``documents`` are rows of the data set, which is read again. An attribute has one value a
sequence; a sequence of several documents (``source.packing``) has one where all of them agree.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from raysae.analysis.answers import Asked, asked, final_answer, right_answers
from raysae.errors import UserError
from raysae.transformer.texts import Document, read_rows

if TYPE_CHECKING:
    from raysae.analysis.subject import Subject
    from raysae.transformer.sequence import TokenSequence

Value = bool | float | str
Kind = Literal["bool", "number", "text"]
MODEL_CORRECT = "model_correct"
OF_SEQUENCE: dict[str, Callable[["TokenSequence"], float]] = {
    "text_tokens": lambda sequence: float(sequence.is_text.sum()),
    "text_characters": lambda sequence: float(len(sequence.text)),
}
"""Attributes of a sequence as the model read it: its text tokens, its characters."""
MOST_KINDS = 20
"""Different texts of an attribute, at most, for one of them to be a label."""
NEW_TOKENS = 48
"""Tokens that the model writes to answer a question, unless told otherwise."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
LOOKED_AT = 100
"""Rows of the data set that say which columns it has."""
ITEMS = {"operand": "numbers", "operator": "operators", "result": "intermediates"}
"""Columns that hold lists, as the pocket problems have them, with the names of their items."""
DIFFER, WITHOUT = "of several documents that differ", "without a value"


@dataclass(frozen=True)
class Attribute:
    """One value a sequence."""

    name: str
    kind: Kind
    values: Mapping[int, Value]
    """By the sequence's number; those without a value are left out."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many sequences have no value, by the reason."""


@dataclass(frozen=True)
class Labels:
    """An attribute as two classes."""

    name: str
    values: Mapping[int, bool]
    meaning: str
    """What the positive class is, such as ``above 31, the median``."""
    left_out: Mapping[str, int]


def attribute_names(subject: "Subject") -> list[str]:
    """The attributes that the store's texts have: columns, and what follows from a text.

    They are those of the first ``LOOKED_AT`` rows. A column comes before what follows from a text under
    the same name, an attribute of the sequence before both. Raises UserError when the data set cannot be
    read.
    """
    found: dict[str, None] = {}
    for row, document in islice(_rows(subject), LOOKED_AT):
        found |= dict.fromkeys([*row, *_derived(row, document.text)])
        if asked(row, document.text, subject.source) is not None:
            found[MODEL_CORRECT] = None
    return [*found, *(name for name in OF_SEQUENCE if name not in found)]


def check_names(subject: "Subject", names: Iterable[str], key: str) -> None:
    """Raise UserError, with the nearest name, when the texts lack an attribute; ``key`` asked for it."""
    known = attribute_names(subject)
    for name in names:
        if name in known or ("." in name and name.partition(".")[0] in known):
            continue
        near = get_close_matches(name, known, 1)
        guess = f"; did you mean {near[0]}?" if near else ";"
        raise UserError(
            f"{key}: the texts of {subject.source.dataset!r} have no column or attribute {name!r}"
            f"{guess} they have {', '.join(known) or 'none'}"
        )


def read_attributes(
    subject: "Subject",
    names: Sequence[str],
    sequences: Iterable["TokenSequence"],
    alive: Callable[[], None] = lambda: None,
    new_tokens: int = NEW_TOKENS,
) -> dict[str, Attribute]:
    """Attributes of ``sequences``, all from one pass over the data set up to the last row needed.

    ``model_correct`` asks the model each question that was not asked before
    (``raysae.analysis.answers``), with at most ``new_tokens`` tokens an answer. Raises UserError when a
    name is unknown, a row cannot be read or is no longer the text that the store has, or a value is
    neither true or false, nor a number, nor text.
    """
    check_names(subject, names, "attribute")
    own: dict[str, dict[int, Value]] = {name: {} for name in names}
    documents: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for one in sequences:
        documents[one.sequence] = list(dict.fromkeys(one.documents))
        if len(one.documents) == 1 and not subject.source.chat_column:
            texts[one.documents[0]] = one.text
        for name in names:
            if name in OF_SEQUENCE:
                own[name][one.sequence] = OF_SEQUENCE[name](one)
        alive()
    wanted = {row for rows in documents.values() for row in rows}
    of_rows = _values_of_rows(subject, names, wanted, texts, alive, new_tokens)
    return {name: _attribute(name, documents, of_rows[name], own[name]) for name in names}


def labels_of(attribute: Attribute, positive: str | None = None) -> Labels:
    """The attribute as two classes: true; the larger of two numbers, or those above the median; of texts
    ``positive``, or the last of two in the alphabet, or the commonest of several.

    Raises UserError when it has but one value, or texts of too many kinds.
    """
    kinds = Counter(attribute.values.values())
    if len(kinds) < 2:
        raise UserError(
            f"{attribute.name}: has {_told(kinds)}; two classes are needed, so name another label"
        )
    if attribute.kind == "text":
        return _of_text(attribute, kinds, positive)
    if positive is not None and attribute.kind == "number":
        raise UserError(
            f"{attribute.name}: holds numbers, which are split at their median; leave out the positive "
            f"value {positive!r}"
        )
    if attribute.kind == "bool":
        return _labels(attribute, bool, "true")
    if len(kinds) == 2:
        largest = max(map(float, kinds))
        return _labels(attribute, lambda value: value == largest, f"{largest:g}")
    middle = median(map(float, attribute.values.values()))
    if any(float(value) > middle for value in kinds):
        return _labels(
            attribute, lambda value: float(value) > middle, f"above the median, {middle:g}"
        )
    return _labels(attribute, lambda value: float(value) >= middle, f"the median, {middle:g}")


def _of_text(attribute: Attribute, kinds: Counter[Value], positive: str | None) -> Labels:
    if len(kinds) > MOST_KINDS:
        raise UserError(
            f"{attribute.name}: has {len(kinds):,} different texts; expected at most {MOST_KINDS}, or "
            "numbers, or true and false; name another label"
        )
    if positive is not None and positive not in kinds:
        near = get_close_matches(positive, [str(kind) for kind in kinds], 1)
        raise UserError(
            f"{attribute.name}: no text has {positive!r}{f'; did you mean {near[0]!r}?' if near else ''} "
            f"It has {_told(kinds)}"
        )
    ordered = sorted(map(str, kinds))
    common = max(ordered, key=lambda kind: kinds[kind])
    chosen = positive or (ordered[-1] if len(ordered) == 2 else common)
    return _labels(attribute, lambda value: value == chosen, f"{chosen!r} against the others")


def _labels(attribute: Attribute, test: Callable[[Value], bool], meaning: str) -> Labels:
    values = {number: test(value) for number, value in attribute.values.items()}
    return Labels(attribute.name, values, meaning, attribute.left_out)


def _told(kinds: Counter[Value]) -> str:
    if not kinds:
        return "no value"
    told = [f"{value!r} ({count:,} times)" for value, count in kinds.most_common(5)]
    return f"{', '.join(told)}{' and more' if len(kinds) > 5 else ''}"


def _rows(subject: "Subject") -> Iterator[tuple[dict[str, Any], Document]]:
    from raysae.extraction.plan import text_spec

    return read_rows(text_spec(subject.source))


def _values_of_rows(
    subject: "Subject", names: Sequence[str], wanted: set[int], texts: Mapping[int, str],
    alive: Callable[[], None], new_tokens: int,
) -> dict[str, dict[int, Value]]:  # fmt: skip
    """The values of the rows ``wanted``, by name and row; ``texts`` are what the store has of some."""
    found: dict[str, dict[int, Value]] = {name: {} for name in names}
    from_rows = [name for name in names if name not in OF_SEQUENCE]
    if not from_rows:
        return found
    questions: dict[int, Asked] = {}
    left = len(wanted)
    for row, document in _rows(subject):
        if document.row not in wanted:
            continue
        _check_same(subject, document, texts.get(document.row))
        derived = _derived(row, document.text)
        for name in from_rows:
            value = _plain(_column(row, name, derived), name, document.row)
            if value is not None:
                found[name][document.row] = value
        question = asked(row, document.text, subject.source)
        if MODEL_CORRECT in from_rows and MODEL_CORRECT not in row and question is not None:
            questions[document.row] = question
        alive()
        left -= 1
        if not left:
            break
    if left:
        raise UserError(
            f"dataset {subject.source.dataset!r}: has {left:,} rows fewer than the store was made of; "
            "it was changed since: put it back as it was"
        )
    if questions:
        verdicts = right_answers(subject, list(questions.values()), new_tokens, alive)
        pairs = zip(questions, verdicts, strict=True)
        found[MODEL_CORRECT] = {row: right for row, right in pairs if right is not None}
    return found


def _check_same(subject: "Subject", document: Document, text: str | None) -> None:
    """Raise UserError when a row no longer makes the text that the store has of it."""
    if text is not None and text not in document.text:
        raise UserError(
            f"dataset {subject.source.dataset!r}: row {document.row} is no longer the text that the "
            f"store has of it ({text[:40]!r} there, {document.text[:40]!r} now); put it back as it was"
        )


def _column(row: Mapping[str, Any], name: str, derived: Mapping[str, Any]) -> Any:
    """A column, an item of a column that holds keys and values (``solution.is_correct``), or what
    follows from the text."""
    if name in row:
        return row[name]
    first, _, rest = name.partition(".")
    inner = row.get(first)
    if rest and isinstance(inner, Mapping):
        if rest not in inner and "." not in rest:
            near = get_close_matches(rest, map(str, inner), 1)
            guess = f"; did you mean {first}.{near[0]}?" if near else ";"
            raise UserError(
                f"column {name!r}: {first!r} has no {rest!r}{guess} it has {', '.join(map(str, inner))}"
            )
        return _column(inner, rest, {})
    return derived.get(name)


def _derived(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """What follows from a row: each operand, operator and result of a pocket problem, the number of its
    steps, and the number that a solution ends with."""
    found: dict[str, Any] = {}
    for name, column in ITEMS.items():
        items = row.get(column)
        if isinstance(items, list | tuple):
            found |= {f"{name}_{place}": item for place, item in enumerate(items, 1)}
            if items:
                found[f"last_{name}"] = items[-1]
    operators = row.get("operators")
    if isinstance(operators, list | tuple):
        found["steps"] = len(operators)
    answer = final_answer(row, text)
    if answer is not None:
        found["final_answer"] = _number(answer)
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _plain(value: Any, name: str, row: int) -> Value | None:
    """A value as true or false, a number, or text; a list of them as one text; None for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return " ".join(map(str, value))
    raise UserError(
        f"column {name!r}: row {row} has {type(value).__name__} there; expected true or false, a number "
        "or text (of keys and values name one, such as column.key)"
    )


def _attribute(
    name: str, documents: Mapping[int, list[int]], of_rows: Mapping[int, Value],
    own: Mapping[int, Value],
) -> Attribute:  # fmt: skip
    """The attribute of sequences, from the values of the rows that they are made of, or their ``own``."""
    values: dict[int, Value] = dict(own)
    left_out: Counter[str] = Counter()
    for number, rows in documents.items():
        if number in values:
            continue
        there = {of_rows.get(row) for row in rows}
        value = there.pop() if len(there) == 1 else None
        if value is not None:
            values[number] = value
        else:
            left_out[DIFFER if there else WITHOUT] += 1
    values, kind = _of_one_kind(values)
    return Attribute(name, kind, values, dict(left_out))


def _of_one_kind(values: dict[int, Value]) -> tuple[dict[int, Value], Kind]:
    """The values with what they are. Texts that all are numbers, or all true and false, are those: a file
    of text cannot say what it means. Values of several kinds are texts."""
    types = {type(value) for value in values.values()}
    if types <= {bool}:
        return values, "bool"
    if types <= {float}:
        return values, "number"
    texts: dict[int, Value] = {number: str(value) for number, value in values.items()}
    if bool not in types and all(NUMBER.fullmatch(str(text).strip()) for text in texts.values()):
        return {number: float(text) for number, text in texts.items()}, "number"
    if {str(text).strip().lower() for text in texts.values()} <= {"true", "false"}:
        return {n: str(text).strip().lower() == "true" for n, text in texts.items()}, "bool"
    return texts, "text"
