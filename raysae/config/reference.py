"""The reference of all keys of a recipe, as Markdown, from the models' own docstrings and types."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from raysae.config.keys import Entry, as_yaml, entries
from raysae.config.recipe import Recipe
from raysae.config.search import Choices, Constraint, Objective, Range, SiteKey

WORDS = {
    "integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
    "null": "null", "object": "mapping",
}  # fmt: skip
PARTS: dict[type[BaseModel], str] = {
    Choices: "choices, a value of `sweep.space`",
    Range: "a range, a value of `sweep.space`",
    Objective: "an item of `sweep.objectives`",
    Constraint: "an item of `sweep.constraints`",
    SiteKey: "an item of `sweep.sites`",
}
HEAD = "| key | type | default | meaning |\n|---|---|---|---|"


def keys_markdown() -> str:
    """A table of each section of a recipe: key, type, default, meaning; then of parts of values."""
    sections: dict[str, list[Entry]] = {"the run": []}
    for entry in entries(Recipe, Recipe().dump()):
        section, dot, _ = entry[0].partition(".")
        sections.setdefault(section if dot else "the run", []).append(entry)
    tables = [f"## {section}\n\n{_table(rows)}" for section, rows in sections.items()]
    tables += [f"## {title}\n\n{settings_markdown(part)}" for part, title in PARTS.items()]
    return "\n\n".join(tables)


def settings_markdown(settings: type[BaseModel], prefix: str = "") -> str:
    """The table of one model's keys, each after ``prefix``; a key without default must be given."""
    defaults = {
        name: "must be given"
        if field.is_required()
        else field.get_default(call_default_factory=True)
        for name, field in settings.model_fields.items()
    }
    rows = entries(settings, defaults)
    return _table((f"{prefix}{key}", default, text, field) for key, default, text, field in rows)


def _table(rows: Iterable[Entry]) -> str:
    return "\n".join([HEAD, *map(_row, rows)])


def _row(entry: Entry) -> str:
    key, default, text, field = entry
    written = f"`{_plain(default)}`" if default != "must be given" else default
    cells = (f"`{key}`", kind_in_words(field), written, text)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(default: Any) -> str:
    return as_yaml(list(default) if isinstance(default, tuple) else default) or "null"


def kind_in_words(field: dict[str, Any]) -> str:
    """What values a part of a schema allows, in words, with their limits."""
    options = [*field.get("anyOf", []), *field.get("oneOf", [])]
    if options:
        kinds = list(dict.fromkeys(kind_in_words(option) for option in options))
        return " or ".join(kinds).replace("whole number or number", "number")
    if "const" in field or "enum" in field:
        return ", ".join(f"`{word}`" for word in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return f"`{field['$ref'].split('/')[-1]}`"
    if field.get("type") == "array":
        return f"list of {kind_in_words(field.get('items', {}))}"
    return WORDS.get(field.get("type", ""), "any value") + _limits(field)


def _limits(field: dict[str, Any]) -> str:
    """The limits of a number, but for those that keep it below 2^63."""
    least = field.get("minimum", field.get("ge"))
    most = field.get("maximum", field.get("le", 2**63))
    said = [f"at least {least}"] if least is not None else []
    said += [f"above {field['exclusiveMinimum']}"] if "exclusiveMinimum" in field else []
    said += [f"at most {most:,}"] if most < 2**63 - 1 else []
    return f" ({', '.join(said)})" if said else ""
