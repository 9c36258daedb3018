"""The page's sections on the analysis: one for each phase that has a result, as it was written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.records.damage import read_object
from raysae.storage.files import read_json

FOLDER, RESULT, PHASES = "analysis", "result/result.json", "phases.json"


@dataclass(frozen=True)
class PhaseSection:
    """What the page says of one phase."""

    name: str
    title: str
    sentences: list[str]
    tables: list[dict[str, Any]]
    notes: list[str]
    failed: dict[str, str]
    plots: dict[str, Path] = field(default_factory=dict)
    """PNG files by name."""


def result_files(run: Path) -> list[Path]:
    """The results that a run has, by phase."""
    return sorted((run / FOLDER).glob(f"*/{RESULT}"))


def phase_sections(run: Path) -> list[PhaseSection]:
    """The sections of the phases that have a result; one that is damaged is left out."""
    sections = []
    for file in result_files(run):
        try:
            sections.append(_section(file))
        except (UserError, KeyError, TypeError, AttributeError):
            continue
    return sections


def _section(file: Path) -> PhaseSection:
    record = read_object(file)
    section = record["section"]
    plots = {plot.stem: plot for plot in sorted(file.parent.glob("*.png"))}
    return PhaseSection(
        record["phase"], record["title"], list(section["sentences"]), list(section["tables"]),
        list(section["notes"]), dict(record["failed"]), plots,
    )  # fmt: skip


def not_run(run: Path) -> dict[str, str]:
    """The phases without a result, with the reason where there is one; empty where nothing was noted."""
    try:
        found = read_json(run / FOLDER / PHASES) if (run / FOLDER / PHASES).is_file() else {}
        reasons = dict(found.get("not_run", {}))
    except (UserError, AttributeError, TypeError, ValueError):
        return {}
    there = {file.parent.parent.name for file in result_files(run)}
    return {str(name): str(reason) for name, reason in reasons.items() if name not in there}


def cell(value: Any) -> str:
    """A table's cell as text: numbers with four digits, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
