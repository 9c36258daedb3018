"""Every key of a recipe with its default and its meaning, read from the models' own docstrings."""

from typing import Any

import yaml
from pydantic import BaseModel

Row = tuple[str, str, str]
"""A dotted key, its default as YAML, its meaning."""
Entry = tuple[str, Any, str, dict[str, Any]]
"""A dotted key, its default, its meaning, the part of the schema that describes its value."""


def describe(model: type[BaseModel], defaults: dict[str, Any]) -> list[Row]:
    """The rows of ``model`` and of all its sections, in their order."""
    return [(key, as_yaml(value), text) for key, value, text, _ in entries(model, defaults)]


def entries(model: type[BaseModel], defaults: dict[str, Any]) -> list[Entry]:
    """Every key of ``model`` and of all its sections, in their order."""
    schema = model.model_json_schema()
    return _walk(schema, schema, defaults, "")


def as_yaml(value: Any) -> str:
    """A default as YAML in one line; empty for null."""
    return "" if value is None else yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def _walk(schema: dict[str, Any], root: dict[str, Any], defaults: Any, prefix: str) -> list[Entry]:
    rows = []
    for name, field in schema["properties"].items():
        sections = _sections(field, root)
        if sections and isinstance(defaults[name], dict):
            rows += _section_rows(sections, root, defaults[name], f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", defaults[name], _text(field), field))
    return rows


def _sections(field: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    """The sections that a field may hold: none, one, or one of several kinds."""
    options = [field, *field.get("anyOf", []), *field.get("oneOf", [])]
    found = [root["$defs"][o["$ref"].split("/")[-1]] for o in options if "$ref" in o]
    return [section for section in found if "properties" in section]


def _section_rows(
    kinds: list[dict[str, Any]], root: dict[str, Any], defaults: Any, prefix: str
) -> list[Entry]:
    """A section's rows; of a section of several kinds, those of all, saying which kinds have a key."""
    if len(kinds) == 1:
        return _walk(kinds[0], root, defaults, prefix)
    rows = []
    for name in dict.fromkeys(name for kind in kinds for name in kind["properties"]):
        having = [kind for kind in kinds if name in kind["properties"]]
        field = having[0]["properties"][name]
        default = defaults[name] if name in defaults else field.get("default")
        if name == "variant":
            parts = (f"{_kind(kind)}: {_text(kind['properties'][name])}" for kind in kinds)
            text = " ".join(parts)
        else:
            only = f" ({', '.join(map(_kind, having))})" if len(having) < len(kinds) else ""
            text = _text(field) + only
        rows.append((f"{prefix}{name}", default, text, _of_all(having, name)))
    return rows


def _of_all(kinds: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The values that a key may have in any of several kinds of a section."""
    fields = [kind["properties"][name] for kind in kinds]
    return fields[0] if all("const" not in field for field in fields) else {"anyOf": fields}


def _kind(section: dict[str, Any]) -> str:
    return str(section["properties"]["variant"]["default"])


def _text(field: dict[str, Any]) -> str:
    return " ".join(field.get("description", "").replace("``", "").split())
