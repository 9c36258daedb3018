"""What the twins of the five reference runs show: the figures of each report, from the records.

    python scripts/reference_figures.py FOLDER

``FOLDER`` holds the runs R1 to R5 of ``scripts/reference_runs.sh``; those that are not there are left
out. Every figure is of held-out texts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev

from raysae.errors import UserError
from raysae.records.folder import read_run
from raysae.records.rows import Row, TrialRow
from raysae.records.tables import read_sites, read_table, read_trials
from raysae.storage.files import read_json

BINS = (0.002, 0.005, 0.01)
"""The bounds of R1's quality bins, in mean squared error."""


def main() -> int:
    """Print the figures of each run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of the runs")
    folder = parser.parse_args().folder
    found = {
        name: show for name, show in SHOWN.items() if (folder / name / "config.yaml").is_file()
    }
    if not found:
        raise UserError(f"{folder}: holds no run R1 to R5; scripts/reference_runs.sh makes them")
    for name, show in found.items():
        print(f"\n{name} ({_source(folder / name)})")
        show(folder / name)
    return 0


def all_layers(run: Path) -> None:
    """R1: loss by layer, its spread, quality bins, early and late layers, L0 as a count."""
    sites = [row for row in read_sites(run / "atlas" / "metrics.parquet") if row.done]
    for row in sites:
        print(f"  layer {row.layer:2}: MSE {row['mse']:.5f}, {figures(row)}, "
              f"{row['sparsity']:.1%} of the latents active")  # fmt: skip
    if len(sites) < 2:
        print("  no trial was chosen, so no layer was trained")
        return
    mse = [row["mse"] for row in sites]
    print(f"  MSE: mean {fmean(mse):.5f}, median {median(mse):.5f}, {min(mse):.5f} to {max(mse):.5f}, "
          f"sd {stdev(mse):.5f}")  # fmt: skip
    bins = ", ".join(f"{sum(loss < bound for loss in mse)} below {bound}" for bound in BINS)
    half = len(sites) // 2
    print(f"  of {len(mse)} layers {bins}; early {spread(mse[:half])}, late {spread(mse[half:])}")
    print("  tracking, detection: not built yet, did not run")


def expansions(run: Path) -> None:
    """R2: the expansions with and without decorrelation."""
    key = "sae.decorrelation_coefficient"
    for row in sorted(_done(run), key=lambda row: (row.d_sae, row[key])):
        excess = row["decoder_cosine_mean_square_excess"]
        each = 1e3 * row["seconds"] / row["steps"]
        print(f"  d_sae {row.d_sae}, decorrelation {row[key]:g}: {figures(row)}, mean squared cosine "
              f"{excess:.6f} above Welch's floor, {row['tokens']:,} tokens, {row['steps']:,} steps of "
              f"{each:.1f} ms with all that follows")  # fmt: skip


def topk(run: Path) -> None:
    """R3: the sweep's table, the choice, and the spread over all sites."""
    for row in _done(run):
        print(f"  {row.config}: EV {row.explained_variance:.1%}, dead {row.dead_fraction:.1%}")
    print(f"  {read_json(run / 'selection.json')['choice']['reason']}")
    sites = [row for row in read_sites(run / "atlas" / "metrics.parquet") if row.done]
    if sites:
        ev = [100 * row.explained_variance for row in sites]
        dead = spread([100 * row.dead_fraction for row in sites], 1)
        print(
            f"  {len(sites)} sites: EV {spread(ev, 1)} ({min(ev):.1f} to {max(ev):.1f}), dead {dead}"
        )


def models(run: Path) -> None:
    """R4: the trials of each model on each text, and which is chosen."""
    for row in read_table(run / "models.parquet"):
        print(f"  {row['model']}: {row['config'] or 'nothing chosen'}")
        for one in _done(run / row["model"]):
            label, value = one.sparsity_setting
            print(f"    {label} {value:g}: {figures(one)}")
    print("  causal ablation, features shared across models, transfer: not built yet, did not run")


def one_site(run: Path) -> None:
    """R5: the first and the last MSE, live and dead latents, each with its window."""
    for row in _done(run):
        history = read_json(run / "trials" / f"{row.trial:03}" / "metrics.json")["history"]
        live = round((1 - row["dead_fraction_validation"]) * row.d_sae)
        print(f"  {row.config}: {figures(row)}, MSE {history[0]['mse']:.5f} at step "
              f"{history[0]['step']}, {history[-1]['mse']:.5f} at the end")  # fmt: skip
        print(f"  {live} latents live on {row['dead_validation_tokens']:,} held-out tokens; dead: in a "
              f"window of {row['dead_window_tokens']:,} training tokens")  # fmt: skip
    print("  labels of features and their coherence: not built yet, did not run")


def figures(row: Row) -> str:
    """What every run tells of an SAE."""
    return f"EV {row.explained_variance:.4f}, L0 {row.l0:.1f}, dead {row.dead_fraction:.1%}"


def spread(values: Sequence[float], digits: int = 5) -> str:
    """Mean and standard deviation, ``0.12 +- 0.03``; the deviation is left out of a single value."""
    deviation = f" +- {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation}"


def _done(run: Path) -> list[TrialRow]:
    return [row for row in read_trials(run / "trials.parquet") if row.measured]


def _source(run: Path) -> str:
    """Which model and texts a run is of."""
    recipe = read_run(run).recipe
    if recipe.models:
        return f"{len(recipe.models)} models and texts"
    assert recipe.source is not None
    return f"{Path(recipe.source.model).name}, {Path(recipe.source.dataset).name}"


SHOWN = {"R1": all_layers, "R2": expansions, "R3": topk, "R4": models, "R5": one_site}

if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
