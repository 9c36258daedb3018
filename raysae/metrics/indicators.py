"""Metrics that say whether a choice is right: indicators, and what is measured against a known truth."""

import math

from raysae.metrics.registry import CANDIDATES, HEATMAP, MLFLOW, PAGE, TABLE, Metric

FRACTION = (0.0, 1.0)
COUNT = (0.0, math.inf)
RECORDED = frozenset({MLFLOW, TABLE})
SHOWN = RECORDED | {CANDIDATES, PAGE}


def indicators() -> list[Metric]:
    """What the rule ``auto`` reads, beside explained variance and agreement."""
    return [
        Metric(
            "stability_chance", "stability of random dictionaries of the same shapes: what two seeds "
            "reach by chance", "", None, (-1.0, 1.0), SHOWN, label="stability by chance",
            form="{:.3f}", merge="none",
        ),
        Metric(
            "decoder_cosine_mean_abs", "mean |cosine| of two live decoder rows, of a sample of 4,096 "
            "of them where there are more; least near the right K or somewhat above it", "",
            "minimize", FRACTION, SHOWN | {HEATMAP}, objective=True, label="decoder |cos|",
            form="{:.4f}", axis="mean |cosine| of two decoder rows",
        ),
        Metric(
            "decoder_projection", "mean over validation rows of the n-th largest projection of the "
            "centred row, in units of the rows' spread, onto the live decoder rows, n being a quarter "
            "of them (arXiv 2508.16560)", "", "minimize", shown=SHOWN, label="projection",
            form="{:.4f}",
        ),
        *_noise(),
    ]  # fmt: skip


def _noise() -> list[Metric]:
    halves = [
        Metric(
            f"{name}_halves", f"difference of {name} between two halves of the validation rows, by "
            "every other row", "", "minimize", COUNT, RECORDED, form="{:.2g}",
        )
        for name in ("explained_variance", "decoder_projection")
    ]  # fmt: skip
    seeds = [
        Metric(
            f"{name}_seeds", f"standard deviation of {name} between the seeds", "", "minimize",
            COUNT, RECORDED, form="{:.2g}", merge="none",
        )
        for name in ("explained_variance", "decoder_cosine_mean_abs", "decoder_projection")
    ]  # fmt: skip
    agreed = Metric(
        "stability_halves", "difference of stability between two halves of the matched latents", "",
        "minimize", COUNT, RECORDED, form="{:.2g}", merge="none",
    )  # fmt: skip
    return [*halves, agreed, *seeds]


def truth() -> list[Metric]:
    """What a synthetic store's truth says of an SAE, in SAELens's definitions."""

    def fraction(name: str, meaning: str) -> Metric:
        return Metric(name, meaning, "", "maximize", FRACTION, SHOWN, form="{:.3f}")

    return [
        fraction(
            "mcc", "mean |cosine| of the best one-to-one match (Hungarian) of decoder rows and the "
            "true atoms of a synthetic store",
        ),
        fraction(
            "uniqueness", "number of true atoms that are nearest to some decoder row, over d_sae"
        ),
        fraction(
            "f1", "mean over latents of F1, each latent a detector of the true atom nearest to its "
            "decoder row, over a sample of rows beside the store",
        ),
        fraction("f1_precision", "mean over latents of the precision of that"),
        fraction("f1_recall", "mean over latents of its recall"),
    ]  # fmt: skip
