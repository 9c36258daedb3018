"""What transfer found: figures on both stores, features shared with another model, controls beside."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from raysae.analysis.intervals import bootstrap_ratio, interval_text, known, wilson
from raysae.analysis.phase import Result
from raysae.analysis.section import Section, Table
from raysae.sites import Site
from raysae.storage.files import read_json

Row = dict[str, Any]
LISTED = 20
LEAST_SITES = 5
"""Of fewer sites the mean has no interval; each site has its own."""
MOST_SITES = 60
EV = "explained_variance"
RECOVERED = ("ce_recovered", "final_cosine_recovered")
NOTES = [
    "On another store: explained variance, L0 and dead share of the atlas's SAEs on the "
    "validation rows of "
    "either store, each around its own rows' mean; predicting the mean scores 0. A latent is "
    "live where it "
    "is active on any of these rows; the overlap is the share live on both among those live on "
    "either, and "
    "its chance is that of as many latents drawn at random. Density correlation: Spearman's, over these.",
    "With another model: rows of the same text whose tokens end at the same character are "
    "paired; features "
    "are matched one to one by the correlation of their activations (Hungarian method), and kept "
    "above the "
    "threshold that pairs exceed at the stated rate where texts are permuted. A kept feature is "
    "universal "
    "from the correlation on that the setting asks for. Controls: one more permutation, and the other "
    "model with the values of each weight tensor permuted, its SAE the same.",
    "Intervals are 95%: explained variance and L0 bootstraps over sequences, shares Wilson's, "
    "the density "
    "correlation a bootstrap over latents, means over sites a bootstrap over sites.",
]


def summary(files: Sequence[Path], settings: Any, seed: int) -> Result:
    """The result of the items in these files."""
    found = [dict(read_json(file)) for file in files]
    data = [_data_row(one) for one in found if one["kind"] == "data"]
    models = [_model_row(one) for one in found if one["kind"] == "models"]
    matches = [
        {"site": one["site"], "other_site": one["other_site"], **row}
        for one in found if one["kind"] == "models" for row in one["matches"]
    ]  # fmt: skip
    figures = {**_data_figures(data, seed), **_model_figures(models)}
    sentences = [*_data_sentences(figures, data), *_model_sentences(figures, models, settings)]
    tables = [_data_table(data)] if data else []
    tables += [_model_table(models), _universal_table(matches)] if models else []
    missing = sorted({row["shuffled_missing"] for row in models if row.get("shuffled_missing")})
    notes = [*NOTES, *(f"Without the control of shuffled weights: {reason}" for reason in missing)]
    lost = sorted({row["loss_missing"] for row in data if row.get("loss_missing")})
    notes += [f"Without the loss of the model: {reason}" for reason in lost]
    rows = {"data": data, "models": models, "matches": matches}
    return Result(figures, Section(sentences, tables, notes), rows, brief=_brief(figures))


def _brief(figures: Mapping[str, Any]) -> str:
    said = []
    if "other_explained_variance" in figures:
        said.append(
            f"explained variance {figures['other_explained_variance']:.3f} on the other texts, "
            f"{figures['own_explained_variance']:.3f} on its own"
        )
    if "universal_share" in figures:
        said.append(f"{figures['universal_share']:.1%} of features are in the other model too")
    return "; ".join(said)


def _data_row(found: Mapping[str, Any]) -> Row:
    """An item of another store as one row: ``own_``, ``other_`` and, of the other's SAE,
    ``other_sae_``."""
    row: Row = {"site": found["site"], "loss_missing": found.get("loss_missing")}
    for name in ("own", "other", "other_sae_own", "other_sae_other"):
        row |= {f"{name}_{key}": value for key, value in found.get(name, {}).items()}
    for name in ("overlap", "other_sae_overlap"):
        prefix = name.removesuffix("overlap")
        row |= {f"{prefix}{key}": value for key, value in found.get(name, {}).items()}
    return row


def _model_row(found: Mapping[str, Any]) -> Row:
    return {key: value for key, value in found.items() if key not in ("matches", "kind")}


def _data_figures(data: Sequence[Row], seed: int) -> dict[str, float | None]:
    names = [
        f"{side}_{name}"
        for side in ("own", "other", "other_sae_other", "other_sae_own")
        for name in (EV, "l0", "dead_share", *RECOVERED)
    ]
    names += ["live_overlap", "live_chance", "density_correlation", "density_correlation_permuted"]
    found: dict[str, float | None] = {}
    for name in names:
        values = [row[name] for row in data if row.get(name) is not None]
        if values:
            few = len(values) < LEAST_SITES
            low, high = (nan, nan) if few else bootstrap_ratio(values, None, seed)
            found |= {name: fmean(values), f"{name}_low": known(low), f"{name}_high": known(high)}
    return found | ({"data_sites": float(len(data))} if data else {})


def _model_figures(models: Sequence[Row]) -> dict[str, float | None]:
    if not models:
        return {}
    pairs = sum(row["pairs"] for row in models)
    shuffled = [row for row in models if "shuffled_pairs" in row]
    sums = {name: sum(row[name] for row in models) for name in
            ("kept", "universal", "permuted_kept", "permuted_universal")}  # fmt: skip
    low, high = wilson(sums["universal"], pairs)
    found: dict[str, float | None] = {
        "model_pairs": float(len(models)), "matched_features": float(pairs),
        **{f"{name}_share": value / pairs for name, value in sums.items()},
        "universal_share_low": low, "universal_share_high": high,
        "mean_correlation": _weighted(models, "mean_correlation", "pairs"),
        "permuted_correlation": _weighted(models, "permuted_correlation", "pairs"),
    }  # fmt: skip
    if shuffled:
        for name in ("kept", "universal"):
            count = sum(row[f"shuffled_{name}"] for row in shuffled)
            ends = wilson(count, whole := sum(row["pairs"] for row in shuffled))
            found |= {f"shuffled_{name}_share": count / whole,
                      f"shuffled_{name}_share_low": ends[0],
                      f"shuffled_{name}_share_high": ends[1]}  # fmt: skip
    return found


def _weighted(rows: Sequence[Row], name: str, weight: str) -> float:
    return sum(row[name] * row[weight] for row in rows) / sum(row[weight] for row in rows)


def _mean(figures: Mapping[str, Any], name: str, form: str = "{:.3f}") -> str:
    """Such as ``0.812 (95% CI 0.790 to 0.830)``; ``undefined`` where nothing is known."""
    if figures.get(name) is None:
        return "undefined"
    low, high = (figures.get(f"{name}_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return form.format(figures[name])
    return f"{form.format(figures[name])} (95% CI {interval_text((low, high), form)})"


def _data_sentences(figures: Mapping[str, Any], data: Sequence[Row]) -> list[str]:
    if not data:
        return []
    rows = [sum(row[f"{side}_rows"] for row in data) for side in ("own", "other")]
    said = [
        f"On the other store's validation rows ({rows[1]:,} at {len(data):,} sites) the atlas explains "
        f"{_mean(figures, f'other_{EV}')} of the variance, on its own ({rows[0]:,}) "
        f"{_mean(figures, f'own_{EV}')}; dead are {_mean(figures, 'other_dead_share', '{:.1%}')} of the "
        f"latents there, {_mean(figures, 'own_dead_share', '{:.1%}')} on its own.",
        f"Of the latents that are live on either, {_mean(figures, 'live_overlap', '{:.1%}')} are "
        "live on both "
        f"(at random {figures['live_chance']:.1%}); their densities correlate at "
        f"{_mean(figures, 'density_correlation')}, permuted at "
        f"{_mean(figures, 'density_correlation_permuted')}.",
    ]
    said += [
        f"Spliced into the model, the SAEs have a {name} of {_mean(figures, f'other_{name}')} on "
        "the other "
        f"texts and {_mean(figures, f'own_{name}')} on their own (up to "
        f"{max(row['own_ce_texts'] for row in data if row.get('own_ce_texts'))} texts a site); "
        "those trained "
        f"there {_mean(figures, f'other_sae_other_{name}')} on the other texts."
        for name in RECOVERED
        if f"other_{name}" in figures
    ]
    if f"other_sae_other_{EV}" in figures:
        said.append(
            f"The SAEs that were trained on the other store explain "
            f"{_mean(figures, f'other_sae_other_{EV}')} of its rows and "
            f"{_mean(figures, f'other_sae_own_{EV}')} of this atlas's."
        )
    return said


def _model_sentences(figures: Mapping[str, Any], models: Sequence[Row], settings: Any) -> list[str]:
    if not models:
        return []
    texts, rows = max(row["texts"] for row in models), sum(row["rows"] for row in models)
    said = [
        f"Of {figures['matched_features']:,.0f} pairs of features at {len(models):,} sites "
        f"({texts:,} common "
        f"texts, {rows:,} rows), {figures['kept_share']:.1%} correlate more than the threshold, and "
        f"{_mean(figures, 'universal_share', '{:.1%}')} at {settings.universal} or more; where texts are "
        f"permuted {figures['permuted_kept_share']:.1%} and {figures['permuted_universal_share']:.1%}.",
    ]
    if "shuffled_universal_share" in figures:
        said.append(
            f"With the other model's weights shuffled, {_mean(figures, 'shuffled_kept_share', '{:.1%}')} "
            f"are above the threshold and {_mean(figures, 'shuffled_universal_share', '{:.1%}')} at "
            f"{settings.universal} or more: what the text alone gives."
        )
    return said


def _site_text(folder: str) -> str:
    return str(Site.of_folder(folder))


def _data_table(data: Sequence[Row]) -> Table:
    columns = {
        "EV own": f"own_{EV}", "from": f"own_{EV}_low", "to": f"own_{EV}_high",
        "EV other": f"other_{EV}", "from ": f"other_{EV}_low", "to ": f"other_{EV}_high",
        "EV of the other's SAE": f"other_sae_other_{EV}",
        "CE recovered own": "own_ce_recovered", "CE recovered other": "other_ce_recovered",
        "L0 own": "own_l0", "L0 other": "other_l0", "dead own": "own_dead_share",
        "dead other": "other_dead_share", "live on both": "live_overlap",
        "density correlation": "density_correlation",
    }  # fmt: skip
    rows: list[list[Any]] = [
        [_site_text(row["site"]), *(row.get(name) for name in columns.values())]
        for row in data[:MOST_SITES]
    ]
    note = "From, to: 95% CI over sequences; the others' intervals and every n are in data.parquet."
    return Table("The atlas on the other store", ["site", *columns], rows, note)


def _model_table(models: Sequence[Row]) -> Table:
    columns = ["texts", "rows", "pairs", "threshold", "kept", "universal", "permuted_universal",
               "shuffled_universal"]  # fmt: skip
    rows: list[list[Any]] = [
        [
            _site_text(row["site"]),
            _site_text(row["other_site"]),
            *(row.get(name) for name in columns),
        ]
        for row in models[:MOST_SITES]
    ]
    names = [name.replace("_", " ") for name in columns]
    return Table("Features in both models", ["site", "other site", *names], rows,
                 "Rows: tokens of both models that end at the same character.")  # fmt: skip


def _universal_table(matches: Sequence[Row]) -> Table:
    universal = sorted(
        (row for row in matches if row["universal"]),
        key=lambda row: (-row["correlation"], row["site"], row["feature"]),
    )
    rows: list[list[Any]] = [
        [_site_text(row["site"]), row["feature"], _site_text(row["other_site"]), row["other_feature"],
         row["correlation"]]
        for row in universal[:LISTED]
    ]  # fmt: skip
    return Table(
        "Universal features", ["site", "feature", "other site", "its feature", "correlation"], rows,
        f"The {len(rows)} of {len(universal):,} that correlate most; all are in matches.parquet.",
    )  # fmt: skip


def draw(tables: Mapping[str, Any], source: str, folder: Path) -> None:
    """Draw explained variance on both stores, and the shares of universal features with controls."""
    if tables.get("data"):
        _draw_data(tables["data"], source, folder / "data.png")
    if tables.get("models"):
        _draw_models(tables["models"], source, folder / "models.png")


def _draw_data(rows: Sequence[Row], source: str, path: Path) -> None:
    from raysae.report.drawing import new_figure, save

    figure, axes = new_figure(9.5, 4.2, source)
    sides = (
        ("own", "o", "#3b7dd8", "own texts"), ("other", "s", "#d1495b", "the other texts"),
        ("other_sae_other", "^", "#3a9d5d", "the SAE trained on them"),
    )  # fmt: skip
    for side, marker, colour, label in sides:
        value: list[Any] = [row.get(f"{side}_{EV}") for row in rows]
        if any(one is None for one in value):
            continue
        spread = [
            [max(row[f"{side}_{EV}"] - row[f"{side}_{EV}_low"], 0) for row in rows],
            [max(row[f"{side}_{EV}_high"] - row[f"{side}_{EV}"], 0) for row in rows],
        ]
        axes.errorbar(range(len(rows)), value, yerr=spread, fmt=marker, color=colour, markersize=4,
                      linewidth=0.9, label=label)  # fmt: skip
    _sites_below(axes, rows)
    axes.set_ylabel("explained variance (95% CI over sequences)")
    axes.set_title("SAEs on their own and on other texts")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    save(figure, path)


def _draw_models(rows: Sequence[Row], source: str, path: Path) -> None:
    from raysae.report.drawing import new_figure, save

    figure, axes = new_figure(9.5, 4.2, source)
    bars = (
        ("universal", "#3b7dd8", "in both models"),
        ("shuffled_universal", "#f0a35e", "shuffled weights"),
        ("permuted_universal", "#d1495b", "permuted texts"),
    )
    for number, (name, colour, label) in enumerate(bars):
        share = [(row.get(name) or 0) / row["pairs"] for row in rows]
        places = [place + 0.27 * (number - 1) for place in range(len(rows))]
        ends = [wilson(row.get(name) or 0, row["pairs"]) for row in rows]
        spread = [
            [max(one - low, 0) for one, (low, _) in zip(share, ends, strict=True)],
            [max(high - one, 0) for one, (_, high) in zip(share, ends, strict=True)],
        ]
        axes.bar(places, share, width=0.25, color=colour, label=label)
        axes.errorbar(places, share, yerr=spread, fmt="none", color="#44546a", linewidth=0.9)
    _sites_below(axes, rows)
    axes.set_ylabel("share of matched features that are universal (95% CI)")
    axes.set_title("Features in both models, beside the controls")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    save(figure, path)


def _sites_below(axes: Any, rows: Sequence[Row]) -> None:
    if len(rows) <= 12:
        names = [_site_text(row["site"]).replace(", ", "\n") for row in rows]
        axes.set_xticks(range(len(rows)), names, fontsize=7)
    axes.set_xlabel("site")
