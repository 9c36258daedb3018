"""The plots of the labels: how dense features are, and how alike their contexts."""

from pathlib import Path

import numpy as np

from raysae.analysis.labelling.story import Overview


def draw_densities(overview: Overview, source: str, file: Path) -> None:
    """The distribution of the densities of live features: a row of a heatmap for each site."""
    from raysae.report.drawing import COLOURS, new_figure, plot_text, save

    sites = list(overview.density)
    values = [np.log10(overview.density[site]) for site in sites]
    lowest = min((float(some.min()) for some in values if len(some)), default=-1.0)
    edges = np.linspace(np.floor(lowest), 0, 41)
    counts = np.array([np.histogram(some, edges)[0] for some in values], float)
    figure, axes = new_figure(8.0, min(1.8 + 0.2 * len(sites), 13), source)
    image = axes.imshow(
        counts, aspect="auto", cmap=COLOURS, interpolation="nearest",
        extent=(edges[0], edges[-1], len(sites) - 0.5, -0.5),
    )  # fmt: skip
    step = max(1, -(-len(sites) // 60))
    axes.set_yticks(range(0, len(sites), step))
    axes.set_yticklabels([plot_text(site, 48) for site in sites[::step]], fontsize=7)
    axes.grid(visible=False)
    ticks = np.arange(int(edges[0]), 1)
    axes.set_xticks(ticks)
    axes.set_xticklabels([f"$10^{{{tick}}}$" for tick in ticks])
    axes.set_xlabel("density (share of rows at which a feature is active)")
    axes.set_ylabel("site")
    axes.set_title(f"Density of live features (n = {overview.live:,} of {overview.features:,})")
    figure.colorbar(image, ax=axes, label="live features")
    save(figure, file)


def draw_coherence(overview: Overview, source: str, file: Path) -> None:
    """The distribution of coherence, beside that of drawn contexts."""
    from raysae.report.drawing import CHOICE_COLOUR, new_figure, save

    coherence = overview.coherence[np.isfinite(overview.coherence)]
    figure, axes = new_figure(8.0, 4.2, source)
    edges = [number / 40 for number in range(41)]
    for values, colour, name in (
        (coherence, "#30638e", f"a feature's top contexts (n = {len(coherence):,} features)"),
        (overview.control, CHOICE_COLOUR, f"drawn contexts (n = {len(overview.control):,} sets)"),
    ):
        if len(values):
            axes.hist(
                values, edges, weights=np.full(len(values), 1 / len(values)), histtype="stepfilled",
                alpha=0.5, color=colour, label=name,
            )  # fmt: skip
    axes.set_xlabel("coherence (mean Jaccard index of the contexts' words)")
    axes.set_ylabel("share")
    axes.set_title("Coherence of the top contexts")
    axes.legend(frameon=False)
    save(figure, file)
