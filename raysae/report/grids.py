"""The grid of an atlas: one metric, layers down, positions across, joined where there are too many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raysae.metrics import Metric
from raysae.report.atlas_rows import Row, is_done, layers_of, positions_of, value

MOST_LAYERS, MOST_POSITIONS = 400, 250
"""Rows and columns of a heatmap, at most; neighbouring sites of a larger atlas share a cell."""

DECADE = 30
"""Positive values that differ by more than this factor have a logarithmic scale."""
NARROW = 0.05
"""The scale of a metric without upper bound spans at least twice this share of its value."""

OUTLYING = 4
"""A scale ends at the 1st and 99th percentile when the whole range is this many times as wide."""


def bounds(values: np.ndarray, metric: Metric) -> tuple[float, float, bool]:
    """The ends of a scale for these values (none of them NaN), and whether it is logarithmic."""
    if not len(values):
        return 0.0, 1.0, False
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > DECADE:
        return low, high, True
    narrow = NARROW * abs(high) if math.isinf(metric.range[1]) else 0.0
    if high - low > narrow:
        return low, high, False
    middle, half = (low + high) / 2, narrow or 0.1  # a finer scale would make much of nothing
    return middle - half, middle + half, False


def inner_bounds(values: np.ndarray, metric: Metric) -> tuple[float, float, bool, str]:
    """The ends of a scale of colours, whether it is logarithmic, and at which ends values lie beyond it
    (``neither``, ``min``, ``max`` or ``both``): a few outliers do not flatten the rest."""
    low, high, logarithmic = bounds(values, metric)
    whole = low, high, logarithmic, "neither"
    if logarithmic or len(values) < 50 or low < values.min():  # it is wider than the values already
        return whole
    inner = np.percentile(values, [1, 99])
    if high - low < OUTLYING * (inner[1] - inner[0]) or inner[0] == inner[1]:
        return whole
    ends = bool(low < inner[0]), bool(high > inner[1])
    beyond = {(True, True): "both", (True, False): "min", (False, True): "max"}[ends]
    return float(inner[0]), float(inner[1]), False, beyond


@dataclass(frozen=True)
class Grid:
    """One metric at the sites of one hookpoint."""

    layers: list[int]
    positions: list[str]
    values: np.ndarray
    """``[layers, positions]``; NaN where there is no SAE or no value."""
    missing: np.ndarray
    """``[layers, positions]``: whether there is no SAE."""

    @classmethod
    def of(cls, rows: Sequence[Row], metric: Metric) -> "Grid":
        """The grid of the rows of one hookpoint."""
        layers, positions = layers_of(rows), positions_of(rows)
        down = {layer: place for place, layer in enumerate(layers)}
        across = {position: place for place, position in enumerate(positions)}
        values = np.full((len(layers), len(positions)), np.nan)
        missing = np.ones(values.shape, bool)
        for row in rows:
            place = down[row["layer"]], across[str(row["position"])]
            values[place], missing[place] = value(row, metric), not is_done(row)
        return cls(layers, positions, values, missing)

    @cached_property
    def undefined(self) -> np.ndarray:
        """``[layers, positions]``: whether there is an SAE, but the metric has no value."""
        return np.isnan(self.values) & ~self.missing

    @property
    def known(self) -> np.ndarray:
        """The values that are there, in one dimension."""
        return self.values[~np.isnan(self.values)]

    @cached_property
    def joined(self) -> tuple[int, int]:
        """How many layers and how many positions share a cell."""
        layers, positions = self.values.shape
        return math.ceil(layers / MOST_LAYERS), math.ceil(positions / MOST_POSITIONS)

    def cells(self) -> "Grid":
        """The grid of the cells that are drawn: a cell's value is the mean over its sites, and it is
        missing when one of its sites is."""
        layers, positions = self.joined
        if self.joined == (1, 1):
            return self
        values, missing = _blocks(self.values, self.joined), _blocks(self.missing, self.joined)
        counts = (~np.isnan(values)).sum(axis=(1, 3))
        means = np.nansum(values, axis=(1, 3)) / np.where(counts, counts, np.nan)
        gone = np.nansum(missing, axis=(1, 3)) > 0
        return Grid(
            self.layers[::layers], self.positions[::positions], np.where(gone, np.nan, means), gone
        )


def _blocks(array: np.ndarray, joined: tuple[int, int]) -> np.ndarray:
    """The array as ``[cells, layers a cell, cells, positions a cell]``, filled up with NaN."""
    down, across = joined
    layers, positions = array.shape
    padding = ((0, -layers % down), (0, -positions % across))
    full = np.pad(array.astype(float), padding, constant_values=np.nan)
    return full.reshape(full.shape[0] // down, down, full.shape[1] // across, across)
