"""What a phase says in the report: sentences, tables and plots, as plain values that JSON keeps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Cell = str | float | int | None
"""A cell of a table; None is empty: what was not measured, or is undefined."""


@dataclass(frozen=True)
class Table:
    """A table of a section."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    """What the columns mean, with n and units."""


@dataclass(frozen=True)
class Section:
    """A phase's part of the report. Every sentence with a figure says its n, and its interval if it is
    an estimate."""

    sentences: list[str]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Definitions and sources, in small print."""

    def record(self) -> dict[str, Any]:
        """The section as JSON keeps it."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Section":
        """The section of a record. Raises KeyError or TypeError when it is none."""
        tables = [Table(**table) for table in record["tables"]]
        return cls(list(record["sentences"]), tables, list(record["notes"]))
