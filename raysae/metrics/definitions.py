"""The metrics that raysae measures, in the order in which they are shown."""

import math
from collections.abc import Callable
from typing import Any

from raysae.metrics.downstream import downstream
from raysae.metrics.indicators import indicators, truth
from raysae.metrics.registry import (
    CANDIDATES,
    CONSOLE,
    HEATMAP,
    LOG,
    MLFLOW,
    MODELS,
    PAGE,
    PROGRESS,
    TABLE,
    Metric,
    register,
)

FRACTION = (0.0, 1.0)
COUNT = (0.0, math.inf)
BEST = frozenset({CONSOLE, LOG, MLFLOW, TABLE, CANDIDATES, MODELS, PAGE})
RECORDED = frozenset({MLFLOW, TABLE})


def seconds(value: float) -> str:
    """A duration in seconds as text: ``8.4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


def _reconstruction() -> list[Metric]:
    """How much is explained, and by how many latents."""
    return [
        Metric(
            "explained_variance", "1 − Σ‖x−x̂‖² / Σ‖x−x̄‖²; predicting the mean scores 0", "",
            "maximize", (-math.inf, 1.0), BEST | {HEATMAP}, objective=True, label="EV", form="{:.4f}",
            axis="explained variance (validation)",
        ),
        Metric(
            "explained_variance_ordinary", "explained_variance over the rows that are no sinks, "
            "around their own mean; a sink is over 10 times as far from the median of the training "
            "rows as their median row", "", "maximize", (-math.inf, 1.0), BEST, objective=True,
            label="EV, no sinks", form="{:.4f}", axis="explained variance (validation, no sinks)",
            beside="sink_fraction",
        ),
        Metric(
            "sink_fraction", "fraction of the validation rows that are sinks, such as attention "
            "sinks", "", None, FRACTION, frozenset({CONSOLE, MLFLOW, TABLE, MODELS, PAGE}),
            label="sinks", form="{:.2%}", beside="sink_fraction",
        ),
        Metric(
            "l0", "mean number of active latents a row", "latents", "minimize", COUNT,
            BEST | {HEATMAP}, objective=True, label="L0", form="{:.2f}",
            axis="L0 (active latents a row)", cell="{:.1f}",
        ),
        Metric(
            "sparsity", "l0 / d_sae", "", "minimize", FRACTION, RECORDED | {PAGE},
            objective=True, label="L0 / d_sae", form="{:.1%}",
        ),
        Metric(
            "dead_fraction", "fraction of latents that did not fire in the last "
            "`dead_window_tokens` training tokens", "", "minimize", FRACTION, BEST | {HEATMAP},
            objective=True, label="dead", form="{:.1%}", axis="share of dead latents", cell="{:.0%}",
        ),
        Metric(
            "dead_fraction_validation", "fraction of latents that did not fire on the validation "
            "rows", "", "minimize", FRACTION, RECORDED | {CANDIDATES, PAGE}, objective=True,
            label="dead, validation", form="{:.1%}",
        ),
    ]  # fmt: skip


def _errors() -> list[Metric]:
    """Errors of the reconstruction."""
    return [
        Metric(
            "fvu", "1 − explained_variance", "", "minimize", COUNT, RECORDED, objective=True,
            form="{:.4f}",
        ),
        Metric(
            "explained_variance_legacy", "mean over rows of 1 − ‖x−x̂‖² / ‖x−x̄‖², as in older papers",
            "", "maximize", (-math.inf, 1.0), RECORDED | {MODELS}, form="{:.4f}",
        ),
        Metric(
            "mse", "mean over rows of ‖x−x̂‖² / d_in", "squared activation", "minimize", COUNT,
            RECORDED | {CANDIDATES, MODELS, HEATMAP}, objective=True, form="{:.4g}",
            axis="MSE (squared error a dimension)", cell="{:.3g}",
        ),
        Metric(
            "cosine", "mean over rows of the cosine of x and x̂", "", "maximize", (-1.0, 1.0),
            RECORDED | {CANDIDATES, MODELS, PAGE}, objective=True, form="{:.4f}",
        ),
        Metric(
            "degenerate", "whether no latent fires on the validation rows; explained variance is "
            "then undefined, and the trial or site counts as not done", merge="any",
        ),
    ]  # fmt: skip


def _agreement() -> list[Metric]:
    """How alike dictionaries are, and the rows of one decoder."""
    return [
        Metric(
            "stability", "mean cosine of the best one-to-one match (Hungarian) between the live "
            "decoder rows of two seeds", "", "maximize", (-1.0, 1.0), BEST | {HEATMAP},
            objective=True, form="{:.3f}", axis="stability (agreement of two seeds)",
            merge="none",
        ),
        Metric(
            "stability_latents", "number of live latents of one seed that were matched with the "
            "other's, where there are more than 4,096: a sample", "latents", None, COUNT,
            form="{:,.0f}", merge="none",
        ),
        Metric(
            "explained_variance_worst", "explained_variance at the worst of several sites", "",
            "maximize", (-math.inf, 1.0), RECORDED | {LOG, CANDIDATES, PAGE}, objective=True,
            label="worst EV", form="{:.4f}", merge="none",
        ),
        Metric(
            "mmcs", "mean over the true atoms of a synthetic store of the largest |cosine| with a "
            "decoder row", "", "maximize", FRACTION, RECORDED | {PAGE}, form="{:.3f}",
        ),
        Metric(
            "recovered", "fraction of those atoms whose largest |cosine| is above 0.9", "",
            "maximize", FRACTION, RECORDED | {PAGE}, form="{:.1%}",
        ),
        Metric(
            "decoder_cosine_mean_square", "mean of cos² between two decoder rows", "", "minimize",
            FRACTION,
        ),
        Metric(
            "decoder_cosine_mean_square_excess", "what of that lies above Welch's bound, which no "
            "dictionary of this size can go below", "", "minimize", FRACTION,
        ),
        Metric(
            "decoder_cosine_nearest_mean", "mean over decoder rows of the largest cosine with "
            "another row", "", "minimize", (-1.0, 1.0),
        ),
        Metric(
            "decoder_cosine_nearest_max", "the largest cosine of two decoder rows", "", "minimize",
            (-1.0, 1.0),
        ),
        Metric(
            "decoder_cosine_nearest_latents", "number of decoder rows that both figures of nearest "
            "rows are of, where d_sae is above 8,192: a sample, each compared with all other rows",
            "latents", None, COUNT, form="{:,.0f}",
        ),
    ]  # fmt: skip


def _training() -> list[Metric]:
    """The training, and memory that is known before it."""
    return [
        Metric("step", "training steps so far", "steps", None, COUNT, frozenset({LOG})),
        Metric("steps", "training steps", "steps", None, COUNT, frozenset({LOG, TABLE}), cost=True),
        Metric(
            "loss", "training loss of the last batch", "", "minimize",
            shown=frozenset({LOG, MLFLOW}), form="{:.4g}",
        ),
        Metric(
            "tokens", "training tokens of one SAE", "tokens", None, COUNT,
            frozenset({TABLE, MODELS}), form="{:,}", cost=True,
        ),
        Metric(
            "tokens_trained", "training tokens of all SAEs of a trial together", "tokens", None,
            COUNT, frozenset({LOG, TABLE}), form="{:,}", cost=True,
        ),
        Metric(
            "dead_window_tokens", "training tokens after which a latent that has not fired is dead: "
            "10 million, or the whole run if shorter", "tokens", None, COUNT, form="{:,}",
        ),
        Metric(
            "dead_validation_tokens", "validation rows that `dead_fraction_validation` looks at",
            "rows", None, COUNT, form="{:,}",
        ),
        Metric(
            "mean_ratio", "norm of the mean of the ordinary training rows over their spread, the root "
            "of their mean square distance from it", "", None, COUNT, form="{:.3g}",
        ),
        Metric(
            "training_bytes", "memory that training one SAE takes, an upper estimate that is known "
            "before a trial", "bytes", "minimize", COUNT, objective=True, form=_mebibytes,
        ),
    ]  # fmt: skip


def _costs() -> list[Metric]:
    """What it cost: these differ between two runs of one recipe."""
    running = frozenset({PROGRESS, LOG, TABLE})

    def cost(name: str, meaning: str, unit: str = "", **more: Any) -> Metric:
        return Metric(name, meaning, unit, cost=True, volatile=True, **more)

    return [
        cost(
            "seconds", "time from the start of a trial or site to its commit", "seconds",
            shown=frozenset({TABLE, MODELS, PAGE}), label="time", form=seconds, range=COUNT,
        ),
        cost(
            "tokens_per_second", "training tokens a second of training and of waiting for data",
            "tokens / second", direction="maximize", shown=running | {MLFLOW}, label="tokens/s",
            form="{:,.0f}", range=COUNT,
        ),
        cost(
            "wait_seconds", "time that training waited for its rows", "seconds",
            direction="minimize", shown=running, label="waited", form="{:.1f} s", range=COUNT,
        ),
        cost(
            "memory_bytes", "peak memory of the process: torch's on a GPU, else resident",
            "bytes", direction="minimize", shown=running, label="memory", form=_mebibytes,
            range=COUNT,
        ),
        cost("started", "when the trial or site began, since the epoch", "seconds"),
        cost("host", "the machine that trained it"),
        Metric("device", "cpu or cuda", cost=True),
    ]  # fmt: skip


def _controls() -> list[Metric]:
    """What the choice is compared with; on the run itself, not on its trials."""
    explained = {
        "frozen_decoder": "the chosen config with a dictionary that stayed random",
        "gaussian": "the chosen config trained on Gaussian rows of the same mean and covariance",
        "pca": "as many principal components as K (or the rounded L0)",
        "shuffled_model": "the chosen config trained on the model with shuffled weights",
    }
    controls = [
        Metric(
            f"control_{name}_explained_variance", f"explained_variance of {what}", "",
            range=(-math.inf, 1.0), shown=frozenset({MLFLOW}), form="{:.4f}", merge="none",
        )
        for name, what in explained.items()
    ]  # fmt: skip
    reaching = Metric(
        "control_pca_components", "principal components that explain as much as the chosen SAE",
        range=COUNT, shown=frozenset({MLFLOW}), merge="none",
    )  # fmt: skip
    return [*controls, reaching]


FAMILIES: tuple[Callable[[], list[Metric]], ...] = (
    _reconstruction, _errors, _agreement, indicators, truth, downstream, _training, _controls, _costs
)  # fmt: skip


def register_all() -> None:
    """Register every metric. Raises ValueError when it is called twice."""
    for family in FAMILIES:
        for metric in family():
            register(metric)


def help_text() -> list[tuple[str, str]]:
    """Names and meanings of the metrics that a search can optimise or bound, for ``--help``."""
    from raysae.metrics.registry import registered

    rows = []
    for metric in registered().values():
        if metric.objective:
            unit = f" in {metric.unit}" if metric.unit else ""
            rows.append(
                (metric.name, f"{metric.meaning}{unit}; {metric.direction or 'no'} is better")
            )
    return rows
