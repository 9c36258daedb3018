"""YAML as a recipe means it: names and paths are text, and a key that is given twice is a mistake."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raysae.config.kinds import Kind, kind_of, whole
from raysae.config.limits import (
    LARGEST,
    MOST_BYTES,
    TOO_DEEP,
    LimitedLoader,
    check_values,
    is_text,
    shortened,
)
from raysae.config.searched import POWER_OF_TEN
from raysae.errors import UserError

TEXT, INT, FLOAT, BOOL, NULL, TIMESTAMP, VALUE, MERGE = (
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")
)
IMPLICIT = {TEXT, INT, FLOAT, BOOL, NULL, TIMESTAMP, VALUE}
"""What YAML makes of a scalar that is neither in quotes nor tagged."""
TAGS = {TEXT, INT, FLOAT, BOOL, NULL, TIMESTAMP, VALUE, MERGE} | {
    f"tag:yaml.org,2002:{name}" for name in ("seq", "map")
}
"""The kinds of values that a recipe has."""
LONGEST_NUMBER = 100
"""The most characters of a whole number."""
WORDS = {
    "integer": "a whole number", "number": "a number", "string": "text, in quotes",
    "array": "a list", "object": "keys and values",
}  # fmt: skip
"""Types of a JSON schema in words."""


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a recipe's file.

    Raises UserError that names the file when it is missing, is too large, is not UTF-8 or UTF-16 text,
    is not YAML, has a key twice, or stands for too many values.
    """
    if file.is_dir():
        inside = (file / "config.yaml").is_file()
        more = f"; --resume {file} continues that run" if inside else ""
        raise UserError(f"{file}: is a folder; expected a recipe's YAML file{more}")
    if not file.is_file():
        other = _exists(file)
        raise UserError(
            f"{file}: is no regular file; expected a recipe's YAML file"
            if other
            else f"{shortened(str(file))[1:-1]}: no such config file"
        )
    text = _text_of(file)
    if not text.strip():
        raise UserError(
            f"{file}: the file is empty; write a key such as 'seed: 0' into it, or leave out the file "
            "for the quickstart"
        )
    try:
        data = _read(text, whole(), "")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: {_reason(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{file}: expected keys and values, found a {type(data).__name__}")
    return data


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except ValueError:  # a NUL in the name
        return False


def read_value(key: str, text: str) -> Any:
    """The value that ``key=text`` gives on a command line.

    A name or a path is what is typed: ``#``, ``:`` and ``[`` in it mean nothing. In quotes it is read as
    YAML; ``null`` and nothing are null where the key may be null. Raises UserError when another value is
    not valid YAML.
    """
    kind = kind_of(key)
    quoted = text[:1] in ("'", '"')
    if "\0" in text and not key.startswith("records."):
        raise UserError(f"{key}: holds the character NUL; leave it out")
    if kind.is_text and not quoted:
        return None if kind.may_be_null and text.strip() in ("", "null", "~") else text
    try:
        value = _read(text, kind, key)
    except RecursionError:
        raise UserError(f"{key}: {TOO_DEEP}; found {shortened(text)}") from None
    except yaml.YAMLError:
        if kind.is_text:
            return text
        shown = shortened(text)
        raise UserError(
            f"{shortened(f'{key}={text}')}: {shown} is not a valid YAML value"
        ) from None
    except ValueError as error:
        reason = str(error)
        raise UserError(reason if reason.startswith(key) else f"{key}: {reason}") from None
    return text if kind.is_text and not isinstance(value, str) else value


def _text_of(file: Path) -> str:
    with open(file, "rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(
            f"{file}: has more than {MOST_BYTES:,} bytes; expected a recipe's YAML file, which is smaller"
        )
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}: line {line} is not UTF-8 text (byte 0x{content[error.start]:02x}); save the file "
            "as UTF-8"
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, yaml.reader.ReaderError):
        found: Any = error.character  # its number, or itself
        number = found if isinstance(found, int) else ord(found)
        return (
            f"holds the character U+{number:04X}, which YAML does not have; save the file as UTF-8 "
            "text, without control characters"
        )
    words = " ".join(_without_excerpt(error).split()).replace(
        'in "<unicode string>", line', "in line"
    )
    if not isinstance(error, yaml.YAMLError):
        return words
    hint = "; indent with spaces, not with tabs" if "'\\t'" in words else ""
    several = "; a recipe is one document, without a line ---" if "single document" in words else ""
    return f"not valid YAML: {words}{hint}{several}"


def _without_excerpt(error: Exception) -> str:
    """The error's text, without YAML's excerpts of the file where one may show a part of a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    marks = [mark for mark in (error.context_mark, error.problem_mark) if mark is not None]
    if any("://" in (mark.buffer or "") or "@" in (mark.buffer or "") for mark in marks):
        for mark in marks:
            mark.buffer = None
    return str(error)


def _read(text: str, kind: Kind, key: str) -> Any:
    """The value of a YAML text at a key of this kind. Raises YAMLError or ValueError."""
    loader = LimitedLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        check_values(node, key)
        _mark(node, kind, key)
        value = loader.construct_document(node)
    except (KeyError, AttributeError, IndexError, TypeError, OverflowError):
        raise ValueError(
            f"{key or 'the recipe'}: a value is not what its tag (such as !!bool) says; write values "
            "plainly"
        ) from None
    finally:
        loader.dispose()
    return value


def _mark(node: Node, kind: Kind, key: str, above: tuple[Node, ...] = ()) -> None:
    """Mark the scalars of a node as text or as numbers, as the recipe's keys hold them.

    ``above`` are the nodes that hold this one. Raises ValueError on a key that is given twice, a number
    that is none, and a node that holds itself.
    """
    if any(node is one for one in above):
        raise ValueError(f"{key.split('.')[0]}: holds itself; write the values out")
    if node.tag not in TAGS:
        name = node.tag.replace("tag:yaml.org,2002:", "!!")
        where = key or "the whole"
        raise ValueError(
            f"{where}: not valid YAML for a recipe (the tag {name}); write the value plainly"
        )
    if isinstance(node, ScalarNode):
        _mark_scalar(node, kind, key)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            _mark(item, kind.item(), key, (*above, node))
    elif isinstance(node, MappingNode):
        _refuse_twice(node, key)
        for name, value in node.value:
            if isinstance(name, ScalarNode) and name.tag != MERGE:
                name.tag = TEXT
                inner = f"{key}.{name.value}" if key else name.value
                _mark(value, kind.at(name.value), inner, (*above, node))
            elif isinstance(name, ScalarNode):  # <<: the other mapping's keys are of this one
                _mark(value, kind, key, (*above, node))


def _mark_scalar(node: ScalarNode, kind: Kind, key: str) -> None:
    plain = node.style is None and node.tag in IMPLICIT
    if plain and kind.is_text and not (node.tag == NULL and kind.may_be_null):
        node.tag = TEXT
    elif plain and kind.is_number and POWER_OF_TEN.fullmatch(node.value):
        node.tag = FLOAT
    if node.tag == TIMESTAMP:  # no key holds a date
        node.tag = TEXT
    if node.tag == BOOL and kind.types and "boolean" not in kind.types:
        expected = " or ".join(WORDS[one] for one in WORDS if one in kind.types)
        raise ValueError(f"{key}: found {node.value}, which means yes or no; expected {expected}")
    if node.tag in (INT, FLOAT):
        _as_a_number(node, key)
    records = key.startswith("records.")  # what MLflow cannot take must not stop a run
    if node.tag == TEXT and "\0" in node.value and not records:
        raise ValueError(f"{key}: holds the character NUL; leave it out")
    if not is_text(node.value):
        raise ValueError(f"{key}: holds half a character (U+D800 to U+DFFF); leave it out")


def _as_a_number(node: ScalarNode, key: str) -> None:
    """Read a number as people do: YAML takes ``010`` for eight and ``1:30`` for ninety."""
    text = node.value.replace("_", "").lower()
    if ":" in text or text.lstrip("+-") in (".inf", ".nan") or _is_infinite(text):
        raise ValueError(f"{key}: found {shortened(node.value)[1:-1]}; expected a finite number")
    if node.tag == INT and len(text) > LONGEST_NUMBER:
        raise _too_large(node, key)
    if re.fullmatch(r"[-+]?0\d+", text):
        node.value = str(int(text))
    if node.tag == INT and _beyond(text):
        raise _too_large(node, key)


def _beyond(text: str) -> bool:
    """Whether a whole number, written in any base, is larger than a recipe's may be."""
    try:
        return abs(int(text, 10 if re.fullmatch(r"[-+]?\d+", text) else 0)) > LARGEST
    except ValueError:  # none, which is told when it is read
        return False


def _is_infinite(text: str) -> bool:
    """Whether a number is none that is finite; 0x10 and its like are no matter here."""
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _too_large(node: ScalarNode, key: str) -> ValueError:
    return ValueError(
        f"{key}: found {shortened(node.value)[1:-1]}; expected a whole number of at most {LARGEST}"
    )


def _refuse_twice(node: MappingNode, key: str) -> None:
    lines: dict[str, int] = {}
    for name in _names(node):
        line = name.start_mark.line + 1
        if name.value in lines:
            where = f"{key}.{name.value}" if key else name.value
            raise ValueError(
                f"{where} is given twice, in lines {lines[name.value]} and {line}; remove one"
            )
        lines[name.value] = line


def _names(node: MappingNode) -> Iterator[ScalarNode]:
    for name, _ in node.value:
        if isinstance(name, ScalarNode) and name.tag != MERGE:
            yield name
