"""Which kind of value each key of a recipe holds, from the models' own schema."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from raysae.config.overrides import SPACE

Fragment = dict[str, Any]
"""A part of a JSON schema; an empty one says nothing."""
MODELS = "models"


class Kind:
    """The kind of value at one place in a recipe: the parts of the schema that may describe it."""

    def __init__(self, fragments: list[Fragment], root: Fragment):
        self.fragments, self.root = list(_options(fragments, root)), root

    def at(self, key: str) -> "Kind":
        """The kind of the value of ``key``, if this is a section or a mapping."""
        found = []
        for fragment in self.fragments:
            others = [fragment.get("additionalProperties")]
            others += fragment.get("patternProperties", {}).values()
            if key in fragment.get("properties", {}):
                found.append(fragment["properties"][key])
            else:
                found += [one for one in others if isinstance(one, dict)]
        return Kind(found, self.root)

    def item(self) -> "Kind":
        """The kind of an item, if this is a list."""
        found = [one["items"] for one in self.fragments if isinstance(one.get("items"), dict)]
        return Kind(found, self.root)

    @property
    def types(self) -> set[str]:
        """The JSON types that a value may have; empty when nothing is known."""
        return {one["type"] for one in self.fragments if "type" in one}

    @property
    def is_text(self) -> bool:
        """Whether a value is text, whatever it looks like: ``2024-11-25``, ``007`` and ``yes`` are."""
        return self._free() in ({"string"}, {"string", "null"})

    @property
    def is_number(self) -> bool:
        """Whether a value is a number: neither text nor yes or no, but perhaps a word of its own."""
        types = self._free()
        return bool({"integer", "number"} & types) and not {"boolean", "string"} & types

    @property
    def is_whole(self) -> bool:
        """Whether a value is a whole number."""
        return self.is_number and "number" not in self.types

    @property
    def may_be_null(self) -> bool:
        """Whether a value may be null."""
        return "null" in self.types

    def _free(self) -> set[Any]:
        """The types of values that are not one of a few words."""
        return {one.get("type") for one in self.fragments if not {"const", "enum"} & one.keys()}


@cache
def whole() -> Kind:
    """The kind of a whole recipe."""
    return Kind([_schema()], _schema())


@cache
def kind_of(key: str) -> Kind:
    """The kind of the value at a dotted key; keys of ``sweep.space`` have their own dots."""
    kind, rest = whole(), key
    while rest:
        if key.startswith(SPACE) and rest == key.removeprefix("sweep."):
            return kind.at("space").at(rest.removeprefix("space."))
        part, _, rest = rest.partition(".")
        kind = kind.at(part)
        if part == MODELS and rest:  # each model has keys of a recipe
            _, _, rest = rest.partition(".")
            kind = whole()
    return kind


@cache
def _schema() -> Fragment:
    from raysae.config.recipe import Recipe

    schema = Recipe.model_json_schema()
    models = schema["properties"][MODELS]
    models["additionalProperties"] = {"$ref": "#"}
    return schema


def _options(fragments: list[Fragment], root: Fragment) -> Iterator[Fragment]:
    for fragment in fragments:
        reference = fragment.get("$ref")
        if reference == "#":
            yield root
        elif reference is not None:
            yield from _options([root["$defs"][reference.split("/")[-1]]], root)
        nested = [
            *fragment.get("anyOf", []),
            *fragment.get("oneOf", []),
            *fragment.get("allOf", []),
        ]
        if nested:
            yield from _options(nested, root)
        elif reference is None:
            yield fragment
