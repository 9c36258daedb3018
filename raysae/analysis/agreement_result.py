"""What stability found: means over sites with intervals, chance beside, universal features."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from raysae.analysis.agreement import Agreement, read
from raysae.analysis.intervals import bootstrap_ratio, interval_text, known
from raysae.analysis.phase import Item, Result
from raysae.analysis.section import Section, Table
from raysae.sites import Site

Row = dict[str, Any]
LISTED = 20
MOST_SITES = 60
NAMES = {"seeds": "another seed", "layers": "the next layer"}
NOTES = [
    "Stability is the mean cosine of the best one-to-one match (Hungarian method) of live decoder rows. "
    "Chance: the same with the second dictionary random, of isotropic unit rows, and of rows with the "
    "second's own second moments, which lie where its rows lie. Permuted: the first with itself in "
    "another order, 1 by definition. A feature is universal when its match in every other seed (or in "
    "the next layer) has at least the cosine that the setting asks for.",
    "Intervals are 95% bootstraps: of a site over features, of the means over pairs of dictionaries, of "
    "shares over features.",
]


def summary(folders: Mapping[Item, Path], settings: Any, seed: int) -> Result:
    """The result of the comparisons in these folders."""
    compared = [read(folder) for folder in folders.values()]
    agreements = [one for item in compared for one in item.agreements]
    features = [row for item in compared for row in item.features]
    figures: dict[str, float | None] = {}
    sentences = []
    for kind, name in NAMES.items():
        mine = [one for one in agreements if one.kind == kind and one.stability is not None]
        if mine:
            found = _figures(mine, [row for row in features if row["kind"] == kind], seed)
            figures |= {f"{kind}_{key}": value for key, value in found.items()}
            sentences += _sentences(found, name, len(mine), settings)
    section = Section(sentences, [_site_table(agreements), _universal_table(features)], NOTES)
    rows = [{**asdict(one), "sites": one.sites} for one in agreements]
    brief = ", ".join(
        f"{figures[f'{kind}_stability']:.3f} with {name} (chance {figures[f'{kind}_chance']:.3f})"
        for kind, name in NAMES.items()
        if f"{kind}_stability" in figures
    )
    return Result(figures, section, {"pairs": rows, "features": features}, brief=brief)


def _figures(mine: Sequence[Agreement], features: Sequence[Row], seed: int) -> dict[str, Any]:
    values = [one.stability for one in mine if one.stability is not None]
    universal = [float(row["universal"]) for row in features]
    low, high = bootstrap_ratio(values, None, seed)
    less, more = bootstrap_ratio(universal, None, seed)
    return {
        "stability": fmean(values), "stability_low": known(low), "stability_high": known(high),
        "pairs": float(len(values)), "chance": _mean(mine, "chance"),
        "chance_alike": _mean(mine, "chance_alike"), "permuted": _mean(mine, "permuted"),
        "features": float(len(universal)), "universal_features": sum(universal),
        "universal_share": fmean(universal), "universal_share_low": known(less),
        "universal_share_high": known(more), "universal_chance": _mean(mine, "universal_chance"),
    }  # fmt: skip


def _mean(mine: Sequence[Agreement], name: str) -> float | None:
    values = [value for one in mine if (value := getattr(one, name)) is not None]
    return fmean(values) if values else None


def _sentences(found: Mapping[str, Any], name: str, pairs: int, settings: Any) -> list[str]:
    ends = interval_text((found["stability_low"], found["stability_high"]))
    shares = interval_text((found["universal_share_low"], found["universal_share_high"]), "{:.1%}")
    return [
        f"Stability with {name} is {found['stability']:.3f} (95% CI {ends}, n {pairs:,} pairs of "
        f"dictionaries); random dictionaries give {found['chance']:.3f}, those with the second's own "
        f"second moments {found['chance_alike']:.3f}; the same dictionary in another order gives "
        f"{found['permuted']:.3f}.",
        f"Of {found['features']:,.0f} live features, {found['universal_features']:,.0f} "
        f"({found['universal_share']:.1%}, 95% CI {shares}) have a match with a cosine of "
        f"{settings.universal} in {name}; of random ones {found['universal_chance']:.1%}.",
    ]


def _site_table(agreements: Sequence[Agreement]) -> Table:
    rows: list[list[Any]] = []
    for one in agreements[:MOST_SITES]:
        ends = None if one.low is None or one.high is None else interval_text((one.low, one.high))
        rows.append(
            [_sites_text(one.sites), one.first, one.second, one.stability, ends, one.matched,
             one.chance, one.chance_alike, one.universal]
        )  # fmt: skip
    more = len(agreements) - len(rows)
    return Table(
        "Stability by site",
        ["site", "first", "second", "stability", "95% CI", "features", "chance", "chance, alike",
         "universal"],
        rows, f"{more:,} more are in pairs.parquet." if more else "n of the interval: features.",
    )  # fmt: skip


def _sites_text(folders: Sequence[str]) -> str:
    return " and ".join(str(Site.of_folder(folder)) for folder in folders)


def _universal_table(features: Sequence[Row]) -> Table:
    universal = [row for row in features if row["universal"]]
    first = sorted(universal, key=lambda row: (-row["least_cosine"], row["site"], row["feature"]))
    rows: list[list[Any]] = [
        [row["kind"], str(Site.of_folder(row["site"])), row["feature"], row["least_cosine"],
         row["density"]]
        for row in first[:LISTED]
    ]  # fmt: skip
    return Table(
        "Universal features", ["between", "site", "feature", "least cosine", "density"], rows,
        f"The {len(rows)} of {len(universal):,} with the largest least cosine; all are in "
        "features.parquet. Density: share of the validation rows.",
    )  # fmt: skip


def draw(rows: Sequence[Mapping[str, Any]], source: str, path: Path) -> None:
    """Draw each pair's stability with its interval beside what chance gives; ``rows``: ``pairs``."""
    from raysae.report.drawing import new_figure, plot_text, save

    usable = [row for row in rows if row["stability"] is not None]
    if not usable:
        return
    figure, axes = new_figure(9.5, 4.2, source)
    start = 0
    for kind, marker, colour in (("seeds", "o", "#3b7dd8"), ("layers", "s", "#3a9d5d")):
        mine = [row for row in usable if row["kind"] == kind]
        if not mine:
            continue
        places = range(start, start + len(mine))
        start += len(mine)
        value = [row["stability"] for row in mine]
        spread = [
            [max(row["stability"] - (row["low"] or 0), 0) for row in mine],
            [max((row["high"] or 0) - row["stability"], 0) for row in mine],
        ]
        axes.errorbar(places, value, yerr=spread, fmt=marker, color=colour, markersize=3.5,
                      linewidth=0.9, label=f"with {NAMES[kind]}")  # fmt: skip
    for name, label, mark in (
        ("chance", "random", "_"), ("chance_alike", "random, same moments", "x"),
    ):  # fmt: skip
        axes.plot([row[name] for row in usable], mark, color="#d1495b", markersize=5, label=label)
    axes.set_ylim(min(0.0, *(row["stability"] for row in usable)), 1.03)
    axes.set_xlabel("pair of dictionaries, by site")
    axes.set_ylabel("stability: mean matched cosine (95% CI)")
    axes.set_title(plot_text("Stability between seeds and between neighbouring layers"))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    save(figure, path)
