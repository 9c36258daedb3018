"""The keys of a recipe in words, for ``--help-keys``, and as words that a shell completes."""

import textwrap
from pathlib import Path

from raysae.errors import UserError

METRICS = "metrics"
"""The part that lists the metrics."""
TOP = "run"
"""The part of the keys that stand in no section."""


def keys_text(part: str = "") -> str:
    """Every key with its default and its meaning, or those of one part; with the metrics as the last.

    Raises UserError for a part that does not exist.
    """
    from raysae.config.mistakes import nearest

    parts = key_parts()
    if part and part not in parts:
        raise UserError(f"{part}: no such part of a recipe{nearest(part, list(parts))}")
    wanted = {part: parts[part]} if part else parts
    return "\n\n".join("\n".join([_titles(name), *lines]) for name, lines in wanted.items())


def key_parts() -> dict[str, list[str]]:
    """The lines of each part of the recipe, by its name."""
    from raysae.config import describe_fields
    from raysae.metrics.definitions import help_text

    parts: dict[str, list[str]] = {}
    for key, default, text in describe_fields():
        section, dot, _ = key.partition(".")
        lines = parts.setdefault(section if dot else TOP, [])
        lines.append(f"  {key}={default}")
        lines += textwrap.wrap(text, 88, initial_indent=" " * 6, subsequent_indent=" " * 6)
    told = parts.setdefault(METRICS, [])
    for name, text in help_text():
        told += textwrap.wrap(text, 88, initial_indent=f"  {name}: ", subsequent_indent=" " * 6)
    return parts


def complete_recipe(prefix: str) -> list[str]:
    """What may stand for a word that begins with ``prefix``: keys, and recipes in YAML."""
    from raysae.config import describe_fields

    key, equals, _ = prefix.partition("=")
    if equals:
        return [f"{name}={default}" for name, default, _ in describe_fields() if name == key]
    keys = [f"{name}=" for name, _, _ in describe_fields() if name.startswith(prefix)]
    folder = Path(prefix).parent if "/" in prefix else Path()
    files = [str(file) for file in folder.glob("*") if file.suffix in (".yaml", ".yml")]
    folders = [
        f"{one}/" for one in folder.glob("*") if one.is_dir() and not one.name.startswith(".")
    ]
    return [*keys, *(one for one in (*files, *folders) if one.startswith(prefix))]


def _titles(part: str) -> str:
    if part == METRICS:
        return "metrics that a search may optimise or bound (sweep.objectives, sweep.constraints):"
    return f"{part}: keys and their defaults"
