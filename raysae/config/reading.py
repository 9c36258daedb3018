"""YAML as a recipe means it: names and paths are text, and a key that is given twice is a mistake."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raysae.config.kinds import Kind, kind_of, whole
from raysae.config.searched import POWER_OF_TEN
from raysae.errors import UserError

TEXT, INT, FLOAT, BOOL, NULL, TIMESTAMP, VALUE, MERGE = (
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")
)
IMPLICIT = {TEXT, INT, FLOAT, BOOL, NULL, TIMESTAMP, VALUE}
"""What YAML makes of a scalar that is neither in quotes nor tagged."""
WORDS = {
    "integer": "a whole number", "number": "a number", "string": "text, in quotes",
    "array": "a list", "object": "keys and values",
}  # fmt: skip
"""Types of a JSON schema in words."""


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a recipe's file.

    Raises UserError that names the file when it is missing, is not UTF-8 or UTF-16 text, is not YAML,
    or has a key twice.
    """
    if file.is_dir():
        inside = (file / "config.yaml").is_file()
        more = f"; --resume {file} continues that run" if inside else ""
        raise UserError(f"{file}: is a folder; expected a recipe's YAML file{more}")
    if not file.is_file():
        raise UserError(f"{file}: no such config file")
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


def read_value(key: str, text: str) -> Any:
    """The value that ``key=text`` gives on a command line.

    A name or a path is what is typed: ``#``, ``:`` and ``[`` in it mean nothing. In quotes it is read as
    YAML; ``null`` and nothing are null where the key may be null. Raises UserError when another value is
    not valid YAML.
    """
    kind = kind_of(key)
    quoted = text[:1] in ("'", '"')
    if kind.is_text and not quoted:
        return None if kind.may_be_null and text.strip() in ("", "null", "~") else text
    try:
        value = _read(text, kind, key)
    except (yaml.YAMLError, RecursionError):
        if kind.is_text:
            return text
        raise UserError(f"{f'{key}={text}'!r}: {text!r} is not a valid YAML value") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    return text if kind.is_text and not isinstance(value, str) else value


def _text_of(file: Path) -> str:
    content = file.read_bytes()
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
        return "brackets are nested too deeply"
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
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _mark(node, kind, key)
        value = loader.construct_document(node)
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
    if node.tag == BOOL and kind.types and "boolean" not in kind.types:
        expected = " or ".join(WORDS[one] for one in WORDS if one in kind.types)
        raise ValueError(f"{key}: found {node.value}, which means yes or no; expected {expected}")
    if node.tag in (INT, FLOAT):
        _as_a_number(node, key)
    records = key.startswith("records.")  # what MLflow cannot take must not stop a run
    if node.tag == TEXT and "\0" in node.value and not records:
        raise ValueError(f"{key}: holds the character NUL; leave it out")


def _as_a_number(node: ScalarNode, key: str) -> None:
    """Read a number as people do: YAML takes ``010`` for eight and ``1:30`` for ninety."""
    text = node.value.replace("_", "").lower()
    if ":" in text or text.lstrip("+-") in (".inf", ".nan") or _is_infinite(text):
        raise ValueError(f"{key}: found {node.value}; expected a finite number")
    if re.fullmatch(r"[-+]?0\d+", text):
        node.value = str(int(text))


def _is_infinite(text: str) -> bool:
    try:
        return math.isinf(float(text))
    except ValueError:  # 0x10
        return False


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
