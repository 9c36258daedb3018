"""Templates of texts: columns in braces, filled in by name and by nothing else."""

from string import Formatter

Part = tuple[str, str | None]
"""Text, and the column that follows it; None after the last."""
HOW_TO_FILL_IN = (
    "expected columns in braces, such as {question} (a brace of the text itself is written twice: "
    "{{)"
)


def parts_of(template: str) -> list[Part]:
    """The parts of a template such as ``Q: {question}``; a text without braces is one column's name.

    A brace that is doubled stands for itself. Raises ValueError when braces do not pair, or when they
    hold more than a column's name: a width makes a value as long as it says.
    """
    if "{" not in template:
        return [("", template)]
    parts: list[Part] = []
    for text, column, form, conversion in Formatter().parse(template):
        if form or conversion:
            more = f"!{conversion}" if conversion else f":{form}"
            raise ValueError(f"{{{column}}} has {more[:40]!r}; a brace holds a column's name alone")
        if column is not None and set(column) & set(".["):
            raise ValueError(
                f"it has no column {column[:40]!r}: a brace holds a column's name alone"
            )
        parts.append((text, column))
    return parts


def columns_of(parts: list[Part]) -> list[str]:
    """The columns that a template names, in their order."""
    return [column for _, column in parts if column is not None]
