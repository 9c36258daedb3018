"""Definitions of all metrics: the unit and direction of each, and the places that show it."""

import raysae.metrics.definitions as _definitions
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
    measured_in_model,
    objectives,
    register,
    registered,
    shown,
    volatile,
)
from raysae.metrics.tables import figures, floats, labels, mean, merged, partly

_definitions.register_all()

__all__ = [
    "CANDIDATES",
    "CONSOLE",
    "HEATMAP",
    "LOG",
    "MLFLOW",
    "MODELS",
    "PAGE",
    "PROGRESS",
    "TABLE",
    "Metric",
    "figures",
    "floats",
    "labels",
    "mean",
    "measured_in_model",
    "merged",
    "objectives",
    "partly",
    "register",
    "registered",
    "shown",
    "volatile",
]
