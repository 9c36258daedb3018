"""What the phases of an analysis left, read a site at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysae.console.shell import raysae_command
from raysae.errors import UserError
from raysae.sites import Site
from raysae.storage.files import read_json

ANALYSIS, RESULT, PHASES_FILE = "analysis", "result", "phases.json"
LABELS, ABLATION, TRACKING, STABILITY = "labels", "ablation", "tracking", "stability"
USED = (LABELS, ABLATION, TRACKING, STABILITY)
"""The phases whose results the browser shows."""


@dataclass
class SiteTable:
    """A table of all sites in which each site's rows lie together; a site's are read alone."""

    file: Path
    columns: list[str] | None = None

    @cached_property
    def _opened(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.file)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(self.file, error) from None

    @cached_property
    def groups(self) -> dict[str, list[int]]:
        """The row groups of each site, by its folder, in the order of the file."""
        found: dict[str, list[int]] = {}
        for number in range(self._opened.num_row_groups):
            sites = self._opened.read_row_group(number, columns=["site"])["site"]
            for site in pc.unique(sites).to_pylist():
                found.setdefault(site, []).append(number)
        return found

    @property
    def rows(self) -> int:
        """The rows of all sites."""
        return self._opened.metadata.num_rows

    def of(self, site: str) -> pa.Table:
        """The rows of the site in this folder; none where it has none. Raises UserError on damage."""
        try:
            table = self._opened.read_row_groups(self.groups.get(site, []), columns=self.columns)
            return table.filter(pc.equal(table["site"], site))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(self.file, error) from None


@dataclass
class PhaseResults:
    """The results of one phase, and why there are none where it was not run."""

    name: str
    folder: Path
    missing: str | None
    """Why there is no result; None where there is one."""
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def there(self) -> bool:
        """Whether the phase was run."""
        return self.missing is None

    def setting(self, key: str) -> Any:
        """A setting that the phase was run with; None where it is not known."""
        return self.record.get("made", {}).get(f"{self.name}.{key}")

    @cached_property
    def _tables(self) -> dict[str, pa.Table | None]:
        return {}

    def table(self, name: str) -> pa.Table | None:
        """A table of the phase, whole; None where there is none. Raises UserError when it is damaged."""
        if name not in self._tables:
            file = self.folder / f"{name}.parquet"
            self._tables[name] = _read(file) if self.there and file.is_file() else None
        return self._tables[name]

    def rows(self, name: str, **wanted: Any) -> list[dict[str, Any]]:
        """The rows of a table whose columns have the ``wanted`` values; a column that the table lacks
        counts as null."""
        table = self.table(name)
        if table is None:
            return []
        for column, value in wanted.items():
            if column not in table.column_names:
                if value is not None:
                    return []
                continue
            values = table[column]
            table = table.filter(pc.is_null(values) if value is None else pc.equal(values, value))
        return table.to_pylist()


class Results:
    """The results of a run's or an atlas's analysis that the browser shows."""

    def __init__(self, place: Path):
        self.place = place
        reasons = _reasons(place / ANALYSIS / PHASES_FILE)
        self.phases = {name: _phase(place, name, reasons.get(name, "")) for name in USED}

    @property
    def labels(self) -> PhaseResults:
        """The labels of features: without them there is nothing to look through."""
        return self.phases[LABELS]

    def need_labels(self) -> None:
        """Raise UserError unless the phase ``labels`` was run."""
        why = self.labels.missing
        if why is not None or not (self.labels.folder / "features.parquet").is_file():
            raise UserError(
                f"{self.place}: its features have no labels yet{f' ({why})' if why else ''}; make them "
                f"with {raysae_command('analyze', self.place, 'labels')}"
            )

    @cached_property
    def features(self) -> SiteTable:
        """A row a feature."""
        return SiteTable(self.labels.folder / "features.parquet")

    @cached_property
    def contexts(self) -> SiteTable:
        """A row a context."""
        return SiteTable(self.labels.folder / "contexts.parquet")

    @cached_property
    def attributes(self) -> SiteTable:
        """A row a feature and attribute."""
        return SiteTable(self.labels.folder / "attributes.parquet")

    @cached_property
    def sites(self) -> list[Site]:
        """The sites that have labels, in order. Raises UserError when a table is damaged."""
        try:
            return sorted(Site.of_folder(name) for name in self.features.groups)
        except ValueError as error:
            raise _damaged(self.features.file, error) from None


def site_key(site: Site) -> str:
    """The name of a site's folder in the browser, such as ``layer=01,position=-1``."""
    return site.folder.replace("/", ",")


def _phase(place: Path, name: str, reason: str) -> PhaseResults:
    folder = place / ANALYSIS / name / RESULT
    try:
        record = read_json(folder / "result.json") if (folder / "result.json").is_file() else None
    except UserError as error:
        return PhaseResults(name, folder, str(error))
    if not isinstance(record, dict) or not isinstance(record.get("made", {}), dict):
        return PhaseResults(name, folder, reason)
    return PhaseResults(name, folder, None, record)


def _reasons(file: Path) -> dict[str, str]:
    try:
        found = read_json(file)["not_run"] if file.is_file() else {}
        return {str(name): str(reason) for name, reason in dict(found).items()}
    except (UserError, KeyError, TypeError, ValueError):
        return {}


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{file}: not a readable table ({reason}); it was damaged or altered: remove the folder "
        f"{file.parent}, and analyse again"
    )
