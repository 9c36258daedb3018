"""The page's section on the atlas: its plots, what its figures say, and the table of its sites."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup, escape

from raysae.browser.pages import FEATURES
from raysae.browser.tables import site_key
from raysae.errors import UserError
from raysae.metrics import PAGE, Metric, labels, registered
from raysae.records.damage import read_record
from raysae.records.rows import SiteRow
from raysae.records.run_files import RunFiles
from raysae.report.atlas_rows import (
    Row,
    atlas_metrics,
    by_hookpoint,
    is_done,
    layers_of,
    positions_of,
)
from raysae.report.claims import Claim, Extremes, claims_of, extremes_of
from raysae.report.seeds import spread_over_seeds

if TYPE_CHECKING:  # matplotlib takes a second to import
    from raysae.report.site_curves import Curve

NUMBER = re.compile(r"[-−]?[\d,]+(\.\d+)?%?")
"""A text that the page can sort by as it stands."""
MOST_ROWS = 2000
"""Sites in the page's table, at most; ``atlas/metrics.parquet`` has them all."""
MOST_WARNINGS = 10
"""Sites without SAE that are named above the table, at most."""
PREFIX = "atlas_"
"""How the names of the atlas's plots begin."""

PROFILES, CURVES = "atlas_profiles", "atlas_curves"
WIDE_FROM = 1100
"""Pixels from which on a plot has a line of the page to itself."""


@dataclass(frozen=True)
class AtlasSection:
    """What the page says of an atlas's rows, with the plots that ``draw_atlas`` made of them."""

    rows: list[SiteRow]
    plots: Mapping[str, tuple[int, str]]
    """Width in pixels and data URI by name; see ``pictures``. Only those without an interactive chart."""
    charts: Sequence[Any] = ()
    """The interactive charts; see ``raysae.report.charts``."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Addresses of the pages of sites' features, relative to the page, by the sites' folders."""

    @property
    def narrow(self) -> dict[str, str]:
        """The plots of which two stand side by side, as data URIs by name."""
        return {name: uri for name, (width, uri) in self.plots.items() if width < WIDE_FROM}

    @property
    def wide(self) -> dict[str, str]:
        """The plots that have a line of the page to themselves."""
        return {name: uri for name, (width, uri) in self.plots.items() if width >= WIDE_FROM}

    @cached_property
    def _ids(self) -> dict[int, str]:
        return site_ids(self.rows)

    def id_of(self, row: SiteRow) -> str:
        """The id of the row's element on the page."""
        return self._ids[id(row)]

    @cached_property
    def metrics(self) -> list[Metric]:
        """The columns of the table of sites."""
        return labels(PAGE, self.rows)

    @cached_property
    def several_hookpoints(self) -> bool:
        """Whether a site's hookpoint must be said."""
        return len(by_hookpoint(self.rows)) > 1

    @property
    def listed(self) -> list[SiteRow]:
        """The rows of the table."""
        return self.rows[:MOST_ROWS]

    @property
    def failed(self) -> list[SiteRow]:
        """The sites without SAE."""
        return [row for row in self.rows if not row.done]

    @property
    def warned(self) -> list[SiteRow]:
        """Those that are named above the table."""
        return self.failed[:MOST_WARNINGS]

    @cached_property
    def claims(self) -> list[Claim]:
        """Comparisons of positions and of layers."""
        return claims_of(self.rows)

    @cached_property
    def extremes(self) -> list[Extremes]:
        """The best and worst sites by metric."""
        return extremes_of(self.rows)

    def link(self, row: SiteRow) -> str | None:
        """The address of the page of the site's features; None where there is none."""
        return self.links.get(_folder_of(row)) if self.links else None

    def cells(self, row: SiteRow) -> Markup:
        """The cells of the row's figures: as one text, since they are many and hold no names."""
        return figure_cells(row, self.metrics)


def figure_cells(row: Row, metrics: Sequence[Metric]) -> Markup:
    """A table's cells of a row's figures; one whose text is no number has the value to sort by."""
    cells = []
    for metric in metrics:
        value = row.get(metric.name)
        text = metric.text(value)
        plain = text == "" or NUMBER.fullmatch(text) is not None
        known = "" if plain or not isinstance(value, int | float) else f' data-v="{value:.6g}"'
        cells.append(f'<td class="num"{known}>{escape(text)}</td>')
    return Markup("".join(cells))


def site_ids(rows: Sequence[SiteRow]) -> dict[int, str]:
    """The ids of the rows' elements on the page, by the identity of the rows."""
    return {id(row): f"site-{number}" for number, row in enumerate(rows)}


def feature_links(rows: Sequence[SiteRow], folder: Path) -> dict[str, str]:
    """The pages of sites' features that are in the page's ``folder``, by the sites' folders."""
    if not (folder / FEATURES / "index.html").is_file():
        return {}
    found = {}
    for row in rows:
        name = _folder_of(row)
        place = f"{FEATURES}/{site_key(row.site)}/index.html" if name else ""
        if name and (folder / place).is_file():
            found[name] = quote(place)
    return found


def _folder_of(row: SiteRow) -> str:
    try:
        return row.site.folder
    except ValueError:  # it names no site
        return ""


def pictures(plots: Mapping[str, str], folder: Path) -> dict[str, tuple[int, str]]:
    """The plots of the atlas among ``plots`` (data URIs by name) with their width in pixels: heatmaps in
    the order of the metrics, then profiles, then training curves."""
    order = [*(f"{PREFIX}{name}" for name in registered()), PROFILES, CURVES]
    names = [name for name in plots if name.split("-")[0] in order]
    names.sort(key=lambda name: (order.index(name.split("-")[0]), name))
    return {name: (_width(folder / f"{name}.png"), plots[name]) for name in names}


def _width(file: Path) -> int:
    """The width of a PNG, which its header holds after 16 bytes."""
    with file.open("rb") as stream:
        return int.from_bytes(stream.read(20)[16:])


def draw_atlas(run: RunFiles, rows: list[SiteRow], source: str, folder: Path) -> None:
    """Draw the plots that the atlas has data for into ``folder``; ``source`` is the line at the foot.

    Each hookpoint has its own. An atlas of one site has its training curve alone.
    """
    from raysae.report.heatmaps import heatmap  # matplotlib takes a second to import
    from raysae.report.profiles import has_profiles, profiles

    for hookpoint, there in by_hookpoint(rows).items():
        spread = spread_over_seeds(run, there)
        foot = source if hookpoint is None else f"{hookpoint} · {source}"
        if len(layers_of(there)) * len(positions_of(there)) > 1:
            for metric in atlas_metrics(there):
                file = folder / f"{file_name(f'{PREFIX}{metric.name}', hookpoint)}.png"
                heatmap(there, metric, _title(metric, there, hookpoint), foot, file, spread)
        if has_profiles(there) and atlas_metrics(there):
            title = _at("Profiles of the atlas", hookpoint)
            file = folder / f"{file_name(PROFILES, hookpoint)}.png"
            profiles(there, title, foot, file, spread)
        if any(map(is_done, there)):
            _draw_curves(run, there, foot, folder / f"{file_name(CURVES, hookpoint)}.png")


def file_name(plot: str, hookpoint: str | None) -> str:
    """A plot's name, without suffix: ``atlas_mse``, or ``atlas_mse-mlp_out``."""
    return plot if hookpoint is None else f"{plot}-{re.sub(r'[^A-Za-z0-9_]', '_', hookpoint)}"


def _draw_curves(run: RunFiles, rows: Sequence[SiteRow], source: str, path: Path) -> None:
    from raysae.report.site_curves import site_curves

    curves, there = site_curves_of(run, rows)
    if any(curve.history for curve in curves):
        site_curves(curves, there, source, path)


def site_curves_of(run: RunFiles, rows: Sequence[SiteRow]) -> tuple[list["Curve"], int]:
    """The training curves that are shown of the rows, and the number of sites that have one."""
    from raysae.report.site_curves import Curve, sampled

    done = [row for row in rows if row.measured]
    return [Curve(_short_name(row), _history(run, row)) for row in sampled(done)], len(done)


def chart_key(hookpoint: str | None) -> str:
    """What tells the charts of hookpoints apart."""
    return "all" if hookpoint is None else re.sub(r"[^A-Za-z0-9_]", "_", hookpoint)


def chart_titles(rows: Sequence[SiteRow], hookpoint: str | None) -> dict[str, str]:
    """The titles of an atlas's charts, by metric."""
    return {metric.name: _title(metric, rows, hookpoint) for metric in atlas_metrics(rows)}


def chart_files(rows: Sequence[SiteRow], hookpoint: str | None) -> dict[str, str]:
    """The stems of the pictures that show the same as the charts, by metric; and of the ``curves``."""
    names = {metric.name: f"{PREFIX}{metric.name}" for metric in atlas_metrics(rows)}
    return {key: file_name(name, hookpoint) for key, name in {**names, "curves": CURVES}.items()}


def _short_name(row: SiteRow) -> str:
    return f"layer {row.layer}, position {row.position}"


def _history(run: RunFiles, row: SiteRow) -> list[dict[str, Any]]:
    """The record of each evaluation of the site; empty when its record is gone or damaged."""
    try:
        return read_record(run.atlas_site(row.site))["history"]
    except (UserError, OSError, ValueError):  # ValueError: it names no site
        return []


def _at(title: str, hookpoint: str | None) -> str:
    return title if hookpoint is None else f"{title} at {hookpoint}"


def _title(metric: Metric, rows: Sequence[SiteRow], hookpoint: str | None) -> str:
    """What the plot shows; of dead latents also over how many tokens they did not fire."""
    title = _at(metric.axis[:1].upper() + metric.axis[1:], hookpoint)
    tokens = next((row.get("dead_window_tokens") for row in rows if is_done(row)), None)
    if metric.name != "dead_fraction" or tokens is None:
        return title
    return f"{title} (last {tokens:,} training tokens)"
