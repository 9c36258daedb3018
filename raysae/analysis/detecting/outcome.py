"""What detection found: the rows of all items, what they say in sentences, figures and tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from raysae.analysis.detecting.examples import Examples
from raysae.analysis.detecting.figures import FACTS, compared
from raysae.analysis.detecting.inputs import (
    LENGTH,
    MAJORITY,
    RAW,
    SAE,
    TOKENS,
    TRAJECTORIES,
    sparse_kind,
)
from raysae.analysis.detecting.probes import OUTER, SPARSE, STRENGTHS
from raysae.analysis.detecting.scores import Estimate, mean_of
from raysae.analysis.phase import Item, Result
from raysae.analysis.section import Cell, Section, Table
from raysae.storage.files import read_json

BASELINE_ITEM = "baselines"
KINDS = (SAE, RAW, TRAJECTORIES, TOKENS, LENGTH)
Row = Mapping[str, Any]


def outcome(examples: Examples, settings: Any, folders: Mapping[Item, Path], seed: int) -> Result:
    """The phase's result from the folders of its items."""
    facts = {item: read_json(folder / FACTS) for item, folder in folders.items()}
    rows = [row for found in facts.values() for row in found["rows"]]
    best = {kind: _best(rows, kind) for kind in _kinds(rows)}
    controls = _controls(facts.values())
    beyond = _comparisons(best, facts, folders, settings.bootstraps, seed)
    sentences = [
        _data(examples), *_areas(best, rows), *_against_raw(rows), *_against_others(beyond),
        *_sparse(best, facts), *_control_sentences(controls),
    ]  # fmt: skip
    notes = [*_notes(settings), *(found["reason"] for found in facts.values() if not found["rows"])]
    section = Section(
        sentences, [_table(best.values()), _control_table(controls), _all(rows)], notes
    )
    figures = {
        "n": float(len(examples.label_N)), "positives": float(examples.positives),
        **_figures(best, controls, rows),
    }  # fmt: skip
    tables = {"detection": rows, "reliability": _bins(facts.values())}
    return Result(figures, section, tables, brief=_brief(best))


def _kinds(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["input"] for row in rows))


def _best(rows: Sequence[Row], kind: str) -> Row:
    """The row of a kind with the highest AUROC, with the interval that holds for the best of all figures:
    as many as the kind has sites, for each of the kinds in ``KINDS``."""
    mine = [row for row in rows if row["input"] == kind]
    figures = len(mine) * len(set(KINDS) & set(_kinds(rows)))
    row = max(mine, key=lambda one: one["auroc"])
    if row["auroc_error"] is None:
        return {**row, "sites": len(mine), "best_low": None, "best_high": None, "figures": 1}
    low, high = _estimate(row, "auroc").within(figures)
    return {
        **row, "sites": len(mine), "best_low": low, "best_high": high, "figures": figures,
    }  # fmt: skip


def _estimate(row: Row, name: str) -> Estimate:
    return Estimate(*(row[f"{name}{end}"] for end in ("", "_low", "_high", "_error")))


def _beats(row: Row) -> bool:
    """Whether the best of a kind's sites is above chance, by the interval that holds for the best of all
    sites and kinds: else one of many would be, by chance."""
    return row["best_low"] is not None and row["best_low"] > 0.5


def _place(row: Row) -> str:
    if row["layer"] is None:
        return ""
    name = "" if row["hookpoint"] is None else f", {row['hookpoint']}"
    return f" at layer {row['layer']}, position {row['position']}{name}"


def _span(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _data(examples: Examples) -> str:
    n, positives = len(examples.label_N), examples.positives
    groups = len(set(examples.group_N.tolist()))
    left = ", ".join(f"{count:,} {reason}" for reason, count in examples.left_out.items() if count)
    return (
        f"The label is {examples.name} ({examples.meaning}): {positives:,} of n = {n:,} sequences are "
        f"positive ({positives / n:.1%}); they are {groups:,} groups of texts that repeat one another"
        f"{f'; left out: {left}' if left else ''}."
    )


def _areas(best: Mapping[str, Row], rows: Sequence[Row]) -> list[str]:
    """A sentence for each kind of input, or that nothing beats chance."""
    said = []
    for kind in KINDS:
        if kind not in best:
            continue
        row, tests = best[kind], best[kind]["sites"]
        above = sum(_row_beats(one, row["figures"]) for one in rows if one["input"] == kind)
        of = f"; above chance at {above} of {tests} sites" if tests > 1 else ""
        as_best = (
            f"; as one of {row['figures']} figures: {_span(row['best_low'], row['best_high'])}"
        )
        verdict = "" if _beats(row) else ": no better than chance"
        said.append(
            f"From {kind}: AUROC {row['auroc']:.3f}{_place(row)} (95% CI "
            f"{_span(row['auroc_low'], row['auroc_high'])}, n = {row['n']:,}"
            f"{as_best}){of}{verdict}."
        )
    if not any(_beats(best[kind]) for kind in KINDS if kind in best):
        said.insert(0, "Nothing beats chance: the label cannot be read from any of the inputs.")
    return said


def _row_beats(row: Row, tests: int) -> bool:
    return row["auroc_error"] is not None and _estimate(row, "auroc").within(tests)[0] > 0.5


def _against_raw(rows: Sequence[Row]) -> list[str]:
    """How SAE features compare with the raw activations of the same site."""
    pairs = [row for row in rows if row["input"] == SAE and row["minus_raw"] is not None]
    if not pairs:
        return []
    tests = len(pairs)
    ends = [_estimate(row, "minus_raw").within(tests) for row in pairs]
    better, worse = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
    top = max(pairs, key=lambda row: row["auroc"])
    low, high = top["minus_raw_low"], top["minus_raw_high"]
    verdict = "Raw activations do as well"
    if low > 0:
        verdict = "SAE features do better than raw activations"
    elif high < 0:
        verdict = "Raw activations do better than SAE features"
    return [
        f"{verdict}{_place(top)}, where SAE features do best: SAE minus raw is {top['minus_raw']:+.3f} "
        f"in AUROC (95% CI {low:+.3f} to {high:+.3f}, paired, n = {top['n']:,}). Of {tests} sites SAE "
        f"features are better at {better}, raw activations at {worse}, neither at "
        f"{tests - better - worse} (intervals widened for {tests} sites); the mean difference is "
        f"{fmean(row['minus_raw'] for row in pairs):+.3f}."
    ]


def _comparisons(
    best: Mapping[str, Row], facts: Mapping[Item, Any], folders: Mapping[Item, Path], draws: int,
    seed: int,
) -> dict[str, Row]:  # fmt: skip
    """The best site's SAE features against the other inputs, paired."""
    if SAE not in best:
        return {}
    mine = _folder_of(best[SAE], facts, folders)
    found: dict[str, Row] = {}
    for kind in (TOKENS, LENGTH, TRAJECTORIES):
        if kind in best:
            other = _folder_of(best[kind], facts, folders)
            pair = compared((mine, SAE), (other, kind), draws, seed)
            if pair is not None:
                found[kind] = pair
    return found


def _folder_of(row: Row, facts: Mapping[Item, Any], folders: Mapping[Item, Path]) -> Path:
    same = ("input", "layer", "position", "hookpoint")
    for item, found in facts.items():
        if any(all(one[key] == row[key] for key in same) for one in found["rows"]):
            return folders[item]
    raise AssertionError("every row is an item's")


def _against_others(pairs: Mapping[str, Row]) -> list[str]:
    said = []
    for kind, pair in pairs.items():
        low, high = pair["difference_low"], pair["difference_high"]
        verdict = "more than" if low > 0 else "less than" if high < 0 else "no more than"
        said.append(
            f"SAE features, at the site where they do best, tell {verdict} {kind}: "
            f"{pair['difference']:+.3f} in AUROC (95% CI {low:+.3f} to {high:+.3f}, paired, "
            f"n = {pair['n']:,})."
        )
    return said


def _sparse(best: Mapping[str, Row], facts: Mapping[Item, Any]) -> list[str]:
    """What few features tell, and which feature the probe on one takes."""
    parts = []
    for count in SPARSE:
        if (kind := sparse_kind(SAE, count)) in best:
            row, raw = best[kind], best[sparse_kind(RAW, count)]
            parts.append(f"k={count}: {row['auroc']:.3f} (raw dimensions: {raw['auroc']:.3f})")
    if not parts:
        return []
    one = best[sparse_kind(SAE, 1)]
    picked = next(
        found["picked"][SAE]
        for found in facts.values()
        if any(row["input"] == one["input"] and _place(row) == _place(one) for row in found["rows"])
    )
    names = ", ".join(map(str, dict.fromkeys(picked)))
    return [
        f"Sparse probes, each at its best site: {'; '.join(parts)}. The probe on one feature is best"
        f"{_place(one)} (AUROC {one['auroc']:.3f}, 95% CI "
        f"{_span(one['auroc_low'], one['auroc_high'])}, n = {one['n']:,}); its {OUTER} training parts "
        f"chose feature {names}."
    ]


def _controls(facts: Iterable[Any]) -> dict[str, tuple[Estimate, int]]:
    """By kind the mean AUROC for permuted labels over sites and permutations, and their number."""
    found: dict[str, list[float]] = {}
    for one in facts:
        for kind, areas in one.get("permuted", {}).items():
            found.setdefault(kind, []).extend(areas)
    return {kind: (mean_of(areas), len(areas)) for kind, areas in found.items() if areas}


def _control_sentences(controls: Mapping[str, tuple[Estimate, int]]) -> list[str]:
    off = [kind for kind, (one, _) in controls.items() if not one.low <= 0.5 <= one.high]
    shown = [
        f"{kind} {controls[kind][0].value:.3f} ({_span(controls[kind][0].low, controls[kind][0].high)}; "
        f"{controls[kind][1]} permutations)"
        for kind in KINDS
        if kind in controls
    ]
    verdict = (
        "every interval holds .5"
        if not off
        else f"the interval does not hold .5 for {', '.join(off)}; of {len(controls)} intervals one in "
        "twenty misses by chance"
    )
    return [f"Control, AUROC for permuted labels (95% CI): {', '.join(shown)}; {verdict}."]


def _notes(settings: Any) -> list[str]:
    return [
        f"Logistic regression on standardised columns (scikit-learn), {OUTER}-fold cross-validation; "
        "texts that repeat one another, also nearly, share a fold; C is one of "
        f"{', '.join(f'{one:g}' for one in STRENGTHS)}, chosen on folds of the training part alone. "
        "Figures are of the pooled out-of-fold predictions.",
        "AUROC: how often a positive sequence scores above a negative one; the score is the log odds "
        "above those of the training part's share of positives. Balanced accuracy: a sequence counts as "
        "positive above that share. Brier: mean square error of the probability. ECE: expected "
        "calibration error, 10 bins of equal width.",
        f"Intervals: percentile bootstrap with {settings.bootstraps:,} draws of groups of repeated "
        "texts; of differences, paired. The best of several sites is chosen by its figure: its own "
        "interval is then too high, and that for the best is widened by Bonferroni for all sites and "
        "inputs; by it is judged what beats chance.",
        f"SAE features of a sequence are each one's mean and, where a site has several tokens, maximum; "
        f"at most {settings.features:,} with the most variance on the training part. Raw activations are "
        "means. Sparse probes take the k with the largest difference of class means on the training part "
        "(Gurnee et al. 2023; SAEBench), C = 1. Permuted labels go through all of it. Trajectories see "
        "all layers and positions at once.",
    ]


COLUMNS = {
    "input": "input", "layer": "layer", "position": "position", "n": "n", "auroc": "AUROC",
    "auroc_low": "from", "auroc_high": "to", "balanced_accuracy": "balanced accuracy",
    "brier": "Brier", "ece": "ECE", "permuted": "permuted AUROC",
}  # fmt: skip


def _cells(row: Row) -> list[Cell]:
    return [row[name] for name in COLUMNS]


def _table(best: Iterable[Row]) -> Table:
    rows = [[*_cells(row), row["sites"], row["best_low"], row["best_high"]] for row in best]
    return Table(
        "The best site of each input", [*COLUMNS.values(), "sites", "best from", "best to"], rows,
        "from, to: 95% interval of AUROC; best from, best to: the interval that holds for the best of "
        f"all sites and inputs. {MAJORITY}: only the share of positives is known.",
    )  # fmt: skip


def _control_table(controls: Mapping[str, tuple[Estimate, int]]) -> Table:
    rows: list[list[Cell]] = [
        [kind, one.value, one.low, one.high, n, "yes" if one.low <= 0.5 <= one.high else "no"]
        for kind, (one, n) in controls.items()
    ]
    columns = ["input", "AUROC", "from", "to", "permutations", "holds .5"]
    return Table(
        "Permuted labels", columns, rows, "Means over sites and permutations, 95% t interval."
    )


def _all(rows: Sequence[Row]) -> Table:
    """Every site's rows of the inputs that use all columns."""
    shown = [_cells(row) for row in rows if row["input"] in (SAE, RAW)]
    note = "The rows of all inputs, sparse probes too, are in detection.parquet."
    return Table("Every site", list(COLUMNS.values()), shown, note)


def _figures(
    best: Mapping[str, Row], controls: Mapping[str, tuple[Estimate, int]], rows: Sequence[Row]
) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for kind, row in best.items():
        name = kind.replace(" ", "_").replace(",", "").replace("=", "").lower()
        figures |= {
            f"auroc_{name}": row["auroc"], f"auroc_{name}_low": row["best_low"],
            f"auroc_{name}_high": row["best_high"],
        }  # fmt: skip
        if kind in controls:
            figures[f"permuted_{name}"] = controls[kind][0].value
    pairs = [row["minus_raw"] for row in rows if row["minus_raw"] is not None]
    if pairs:
        figures["sae_minus_raw_mean"] = fmean(pairs)
    return figures


def _brief(best: Mapping[str, Row]) -> str:
    shown = [f"{kind} {best[kind]['auroc']:.3f}" for kind in KINDS if kind in best]
    chance = any(_beats(best[kind]) for kind in KINDS if kind in best)
    return f"AUROC {', '.join(shown)}{'' if chance else '; nothing beats chance'}"


def _bins(facts: Iterable[Any]) -> list[dict[str, Any]]:
    """The reliability of every row, a row a bin."""
    return [
        {**{key: row[key] for key in ("input", "layer", "position", "hookpoint", "auroc")}, **one}
        for found in facts
        for row in found["rows"]
        for one in found["reliability"][row["input"]]
    ]
