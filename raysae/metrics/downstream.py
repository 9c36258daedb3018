"""Metrics of what a model loses with an SAE in it: objectives of a search, at the end of a trial.

The analysis (phase ``loss``) measures the same at every site of the atlas.
"""

import math
from typing import Any

from raysae.metrics.registry import CANDIDATES, CONSOLE, LOG, MLFLOW, PAGE, TABLE, Metric

RECORDED = frozenset({MLFLOW, TABLE})
UP_TO_ONE = (-math.inf, 1.0)
COUNT = (0.0, math.inf)


def downstream() -> list[Metric]:
    """What is measured over validation texts with the SAE's reconstruction in the place of its rows."""
    return [
        _loss(
            "ce_recovered", "(CE_zero − CE_sae) / (CE_zero − CE_clean), cross-entropies of the next "
            "token with zeros, and with the SAE's reconstruction, in the place of the rows",
            "maximize", "CE recovered", CONSOLE, LOG, range=UP_TO_ONE,
        ),
        *_ends("ce_recovered"),
        _loss(
            "kl_recovered", "(KL_zero − KL_sae) / KL_zero, with KL(clean || changed)", "maximize",
            "KL recovered", range=UP_TO_ONE,
        ),
        _loss("ce_increase", "CE_sae − CE_clean", "minimize", "CE increase", unit="nats a token"),
        _loss(
            "final_cosine_recovered", "of a model without a language-model head: the share of its final "
            "embedding's distance (1 − cosine) under zero ablation that the SAE takes back",
            "maximize", "final cosine recovered", CONSOLE, LOG, range=UP_TO_ONE,
        ),
        *_ends("final_cosine_recovered"),
        Metric(
            "in_model_texts", "validation texts with a row at the site over which the SAE was put into "
            "the model (at most `sweep.loss_texts`)", "texts", range=COUNT, form="{:,.0f}",
            merge="none",
        ),
    ]  # fmt: skip


def _loss(
    name: str, meaning: str, direction: Any, label: str, *places: str, **more: Any
) -> Metric:  # fmt: skip
    shown = RECORDED | {CANDIDATES, PAGE, *places}
    return Metric(
        name, meaning, direction=direction, shown=shown, objective=True,
        in_model=True, label=label, axis=label, form="{:.4f}", merge="none", **more,
    )  # fmt: skip


def _ends(name: str) -> list[Metric]:
    return [
        Metric(
            f"{name}_{end}", f"{end} end of its 95% interval (bootstrap over texts), where a trial has "
            "one SAE", shown=RECORDED, form="{:.4f}", merge="none",
        )
        for end in ("low", "high")
    ]  # fmt: skip
