"""The rows of a run's tables, as types: trials and sites. Their columns are in the Parquet files."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from raysae.sae.config import CONFIGS, DEFAULT_VARIANT
from raysae.sites import Site

SPARSITY_LABELS = {"k": "K", "l0_coefficient": "L0 coefficient", "l1_coefficient": "L1 coefficient"}
"""The settings that control the sparsity of the variants, with their labels."""
SETTINGS = ("sae.", "training.")
"""Prefixes of the columns that hold settings."""


class Row(Mapping[str, Any]):
    """What trials and sites share: their state and figures. ``row["l0"]`` is a column of the table;
    KeyError for a column that the row lacks."""

    state: str
    """``done``, ``failed``, ``stopped`` (by a rule of the search) or ``degenerate``."""
    reason: str
    """Why the state is not ``done``."""
    figures: Mapping[str, Any]
    """Metrics and costs; see ``raysae.metrics``."""

    @property
    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """The row's values by column, in the order of the table."""

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self.columns == dict(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def done(self) -> bool:
        """Whether there is a usable SAE."""
        return self.state == "done"

    @property
    def explained_variance(self) -> float:
        """On the validation rows; NaN when it is missing or undefined (all rows are equal)."""
        value = self.figures.get("explained_variance")
        return math.nan if value is None else value

    @property
    def l0(self) -> float:
        """Active latents per row, on the validation rows."""
        return self.figures["l0"]

    @property
    def dead_fraction(self) -> float:
        """The fraction of latents that did not fire in the last training tokens."""
        return self.figures["dead_fraction"]

    @property
    def stability(self) -> float | None:
        """The agreement of seeds; None with one seed."""
        return self.figures.get("stability")

    @property
    def seconds(self) -> float | None:
        """Seconds from the start of the training to the commit; None without a commit."""
        return self.figures.get("seconds")

    @property
    def measured(self) -> bool:
        """Whether it was not stopped early and its explained variance is defined."""
        return self.state != "stopped" and not math.isnan(self.explained_variance)


@dataclass(eq=False)
class TrialRow(Row):
    """A trial: its settings, outcome and cost."""

    trial: int
    state: str
    reason: str
    settings: Mapping[str, Any]
    """SAE and training settings, by dotted key."""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def columns(self) -> dict[str, Any]:
        """``trial``, ``state``, ``reason``, then settings, then figures."""
        head = {"trial": self.trial, "state": self.state, "reason": self.reason}
        return {**head, **self.settings, **self.figures}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "TrialRow":
        """The trial of a table's row. Raises KeyError when a column is missing."""
        settings, figures = _split(columns, ("trial", "state", "reason"))
        return cls(columns["trial"], columns["state"], columns.get("reason", ""), settings, figures)

    @property
    def variant(self) -> str:
        """The SAE variant."""
        return self.settings["sae.variant"]

    @property
    def d_sae(self) -> int:
        """The number of latents."""
        return self.settings["sae.d_sae"]

    @property
    def k(self) -> int | None:
        """K; None in variants without K."""
        return self.settings.get("sae.k")

    @property
    def sparsity_setting(self) -> tuple[str, Any]:
        """The label and value of the setting that controls sparsity, such as ``("K", 32)``."""
        key = CONFIGS[self.variant].sparsity_key
        return SPARSITY_LABELS.get(key, key), self.settings[f"sae.{key}"]

    @property
    def config(self) -> str:
        """The config in words, such as ``d_sae 256, K 8``; with the variant, unless it is TopK."""
        label, value = self.sparsity_setting
        variant = "" if self.variant == DEFAULT_VARIANT else f"{self.variant}, "
        return f"{variant}d_sae {self.d_sae}, {label} {value:g}"

    @property
    def name(self) -> str:
        """The trial in words."""
        return f"trial {self.trial} ({self.config})"


@dataclass(eq=False)
class SiteRow(Row):
    """A site of the atlas."""

    layer: int
    position: str
    """As text: positions are numbers or names, and a column of a table has one type."""
    state: str
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    hookpoint: str | None = None
    """Where the atlas has several hookpoints; else None, and no column."""

    @property
    def site(self) -> Site:
        """The row's site."""
        return Site.of_columns(self.layer, self.position, self.hookpoint)

    @cached_property
    def columns(self) -> dict[str, Any]:
        """``layer``, ``position``, where there is one ``hookpoint``, ``state``, ``reason``, then
        figures."""
        named = {} if self.hookpoint is None else {"hookpoint": self.hookpoint}
        head = {"layer": self.layer, "position": self.position, **named}
        return {**head, "state": self.state, "reason": self.reason, **self.figures}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "SiteRow":
        """The site of a table's row. Raises KeyError when a column is missing."""
        _, figures = _split(columns, ("layer", "position", "hookpoint", "state", "reason"))
        return cls(
            columns["layer"], columns["position"], columns["state"], columns["reason"], figures,
            columns.get("hookpoint"),
        )  # fmt: skip


def _split(
    columns: Mapping[str, Any], head: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the figures of a table's row."""
    rest = {key: value for key, value in columns.items() if key not in head}
    settings = {key: value for key, value in rest.items() if key.startswith(SETTINGS)}
    return settings, {key: value for key, value in rest.items() if key not in settings}
