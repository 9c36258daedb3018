"""The figures of an item's predictions, as the files that it leaves: rows, reliability, predictions."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.detecting.examples import Examples
from raysae.analysis.detecting.inputs import RAW, SAE, Predictions, above_base
from raysae.analysis.detecting.scores import (
    Bootstrap,
    balanced_accuracy,
    brier,
    calibration_error,
    difference,
    mean_of,
    reliability,
    weighted_auroc,
)
from raysae.records.tables import write_table
from raysae.storage.files import write_json

FACTS, PREDICTIONS = "facts.json", "predictions.parquet"
MINUS_RAW = "minus_raw"


def rows_of(found: Predictions, where: dict[str, Any], draws: int, seed: int) -> list[dict]:
    """A row of figures for each kind of input; ``where`` are the columns that say which site it is."""
    labelling = found.labelling
    label, base = labelling.label_N, labelling.base_rates()
    bootstrap = Bootstrap(labelling.group_N, draws, seed)
    ranked = {kind: weighted_auroc(label, above_base(p, base)) for kind, p in found.score.items()}
    statistics = [
        statistic
        for kind, p in found.score.items()
        for statistic in (ranked[kind], balanced_accuracy(label, p > base), brier(label, p))
    ]
    if SAE in ranked and RAW in ranked:
        statistics.append(difference(ranked[SAE], ranked[RAW]))
    estimates = bootstrap.estimates(statistics)
    rows = []
    for place, (kind, p) in enumerate(found.score.items()):
        area, accuracy, square = estimates[3 * place : 3 * place + 3]
        row = {
            **where, "input": kind, "n": len(label), "positives": int(label.sum()),
            **area.columns("auroc"), **accuracy.columns("balanced_accuracy"),
            **square.columns("brier"), "ece": calibration_error(reliability(label, p)),
            **_control(found.permuted[kind]), **_minus_raw(kind, estimates, ranked),
        }  # fmt: skip
        rows.append({key: _known(value) for key, value in row.items()})
    return rows


def _control(aurocs: Sequence[float]) -> dict[str, Any]:
    """The mean AUROC for permuted labels, with Student's interval over the permutations."""
    estimate = mean_of(aurocs)
    columns = {
        f"permuted{end}": getattr(estimate, name)
        for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    return {**columns, "permutations": len(aurocs)}


def _minus_raw(kind: str, estimates: Sequence[Any], ranked: dict[str, Any]) -> dict[str, Any]:
    names = ("", "_low", "_high", "_error")
    if kind != SAE or RAW not in ranked:
        return {f"{MINUS_RAW}{end}": None for end in names}
    return estimates[-1].columns(MINUS_RAW)


def _known(value: Any) -> Any:
    """A value as JSON and tables keep it: NaN is none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_item(
    folder: Path, found: Predictions, examples: Examples, where: dict[str, Any], draws: int,
    seed: int,
) -> None:  # fmt: skip
    """Write an item's files: its rows with their reliability, and the predictions."""
    label = found.labelling.label_N
    bins = {kind: [asdict(one) for one in reliability(label, p)] for kind, p in found.score.items()}
    facts = {
        "rows": rows_of(found, where, draws, seed), "reliability": bins,
        "strengths": found.strengths, "picked": found.picked, "permuted": found.permuted,
    }  # fmt: skip
    write_json(folder / FACTS, facts)
    columns = {
        "sequence": examples.sequence_N[found.rows], "label": label,
        "group": found.labelling.group_N, "fold": found.labelling.fold_N, **found.score,
    }  # fmt: skip
    lists = {name: values.tolist() for name, values in columns.items()}
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    write_table(folder / PREDICTIONS, rows)


def write_nothing(folder: Path, reason: str) -> None:
    """Write the files of an item that has no figures, with the reason."""
    write_json(folder / FACTS, {"rows": [], "reason": reason})


def compared(
    one: tuple[Path, str], other: tuple[Path, str], draws: int, seed: int
) -> dict[str, Any] | None:
    """The AUROC of one item's kind minus another's on the sequences that both predicted, paired; None
    where these are of one class."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(folder / PREDICTIONS, partitioning=None) for folder, _ in (one, other)]
    numbers = [table["sequence"].to_numpy() for table in tables]
    both, *places = np.intersect1d(numbers[0], numbers[1], assume_unique=True, return_indices=True)
    label = _column(tables[0], "label", places[0]).astype(bool)
    if not len(both) or label.all() or not label.any():
        return None
    group, fold = (_column(tables[0], name, places[0]) for name in ("group", "fold"))
    bases = np.array([label[fold != number].mean() for number in range(int(fold.max()) + 1)])[fold]
    ranks = [
        weighted_auroc(label, above_base(_column(table, kind, place), bases))
        for table, (_, kind), place in zip(tables, (one, other), places, strict=True)
    ]
    estimate = Bootstrap(group, draws, seed).estimate(difference(*ranks))
    return {**estimate.columns("difference"), "n": len(both)}


def _column(table: Any, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    return table[name].to_numpy()[rows]
