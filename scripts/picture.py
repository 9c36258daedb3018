"""Draw the README's picture from a finished run: python scripts/picture.py RUN [--out FILE].

Left the trials, explained variance against L0; right the atlas, explained variance of every site.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq

OUT = Path(__file__).parents[1] / "raysae" / "docs" / "quickstart.png"
SIZE, DOTS = (11.0, 3.9), 120
"""Inches, and dots an inch."""


def draw(run: Path, out: Path) -> None:
    """Write the picture of ``run`` to ``out``. Raises OSError where the run lacks a table."""
    trials = [row for row in rows(run / "trials.parquet") if row["state"] == "done"]
    chosen = json.loads((run / "selection.json").read_text())["choice"]["trial"]
    figure, (left, right) = plt.subplots(1, 2, figsize=SIZE, layout="constrained")
    draw_trials(left, trials, chosen)
    draw_atlas(right, rows(run / "atlas" / "metrics.parquet"))
    figure.savefig(out, dpi=DOTS)


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a table."""
    return pq.read_table(file).to_pylist()


def draw_trials(axes: Any, trials: list[dict[str, Any]], chosen: int | None) -> None:
    """Explained variance against L0, a point a trial, coloured by d_sae; the chosen one ringed."""
    sizes = sorted({row["sae.d_sae"] for row in trials})
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(sizes)))
    for size, colour in zip(sizes, colours, strict=True):
        some = [row for row in trials if row["sae.d_sae"] == size]
        at = [row["l0"] for row in some], [row["explained_variance"] for row in some]
        axes.scatter(*at, color=colour, s=45, label=f"{size}", zorder=2)
    for row in trials:
        if row["trial"] == chosen:
            at = row["l0"], row["explained_variance"]
            axes.scatter(
                *at, s=260, facecolor="none", edgecolor="crimson", linewidth=2, label="chosen"
            )
    axes.set(xlabel="L0 (active latents a row)", ylabel="explained variance, held-out rows")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("The sweep: a point a trial", loc="left")
    axes.legend(title="d_sae", loc="lower right", frameon=False)
    axes.grid(alpha=0.3, zorder=0)


def draw_atlas(axes: Any, sites: list[dict[str, Any]]) -> None:
    """Explained variance by layer and position, with the figures."""
    layers, positions = (
        sorted({row[key] for row in sites}, key=int) for key in ("layer", "position")
    )
    values = np.full((len(layers), len(positions)), np.nan)
    for row in sites:
        place = layers.index(row["layer"]), positions.index(row["position"])
        values[place] = row["explained_variance"] if row["state"] == "done" else np.nan
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        dark = image.norm(value) < 0.6
        axes.text(
            x, y, f"{value:.3f}", ha="center", va="center", color="white" if dark else "black"
        )
    axes.set(xlabel="position (from the end of the text)", ylabel="layer")
    axes.set_xticks(range(len(positions)), positions)
    axes.set_yticks(range(len(layers)), layers)
    axes.set_title("The atlas: the chosen config at every site", loc="left")
    axes.figure.colorbar(image, ax=axes, label="explained variance")


def main() -> None:
    """Draw the picture of the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    draw(arguments.run, arguments.out)


if __name__ == "__main__":
    main()
