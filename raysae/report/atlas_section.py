"""The page's section on the atlas: its plots, what its figures say, and the table of its sites."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raysae.errors import UserError
from raysae.metrics import PAGE, Metric, labels, registered
from raysae.records.damage import read_record
from raysae.records.rows import SiteRow
from raysae.records.run_files import RunFiles
from raysae.report.atlas_rows import atlas_metrics, by_hookpoint, is_done, layers_of, positions_of
from raysae.report.claims import Claim, Extremes, claims_of, extremes_of
from raysae.report.seeds import spread_over_seeds

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
    """Width in pixels and data URI by name; see ``pictures``."""

    @property
    def narrow(self) -> dict[str, str]:
        """The plots of which two stand side by side, as data URIs by name."""
        return {name: uri for name, (width, uri) in self.plots.items() if width < WIDE_FROM}

    @property
    def wide(self) -> dict[str, str]:
        """The plots that have a line of the page to themselves."""
        return {name: uri for name, (width, uri) in self.plots.items() if width >= WIDE_FROM}

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

    def cells(self, row: SiteRow) -> Markup:
        """The cells of the row's figures: as one text, since they are many and hold no names."""
        texts = (metric.text(row.get(metric.name)) for metric in self.metrics)
        return Markup("").join(Markup('<td class="num">{}</td>').format(text) for text in texts)


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
    from raysae.report.site_curves import Curve, sampled, site_curves

    done = [row for row in rows if row.measured]
    curves = [Curve(_short_name(row), _history(run, row)) for row in sampled(done)]
    if any(curve.history for curve in curves):
        site_curves(curves, len(done), source, path)


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
