"""The rows of a run's tables, typed: a trial, a site. Their columns are what the Parquet files hold."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from raysae.sae.config import CONFIGS, DEFAULT_VARIANT

SPARSITY_LABELS = {"k": "K", "l0_coefficient": "L0 coefficient", "l1_coefficient": "L1 coefficient"}
"""What sets how sparse a variant's features are, and how people call it."""
SETTINGS = ("sae.", "training.")
"""How the columns of settings begin."""


class Row(Mapping[str, Any]):
    """What trials and sites have in common: how they ended, and their figures. ``row["l0"]`` is a
    column of the table."""

    state: str
    """``done``, ``failed``, ``stopped`` (by a rule of the search) or ``degenerate``."""
    reason: str
    """Why the state is not ``done``."""
    figures: Mapping[str, Any]
    """Metrics and costs; see ``raysae.metrics``."""

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The row as the table has it."""
        raise NotImplementedError

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
        """Whether there is an SAE that is of use."""
        return self.state == "done"

    @property
    def explained_variance(self) -> float:
        """Undefined (NaN) where all rows are alike, or no latent fires."""
        value = self.figures.get("explained_variance")
        return math.nan if value is None else value

    @property
    def l0(self) -> float:
        return self.figures["l0"]

    @property
    def dead_fraction(self) -> float:
        return self.figures["dead_fraction"]

    @property
    def stability(self) -> float | None:
        return self.figures.get("stability")

    @property
    def seconds(self) -> float | None:
        return self.figures.get("seconds")

    @property
    def measured(self) -> bool:
        """Whether it was trained to its end, and its explained variance is defined."""
        return self.state != "stopped" and not math.isnan(self.explained_variance)


@dataclass(eq=False)
class TrialRow(Row):
    """A trial: what was asked, what came out, what it cost."""

    trial: int
    state: str
    reason: str
    settings: Mapping[str, Any]
    """SAE and training settings, by dotted key."""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def columns(self) -> dict[str, Any]:
        head = {"trial": self.trial, "state": self.state, "reason": self.reason}
        return {**head, **self.settings, **self.figures}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "TrialRow":
        """The trial of a table's row; columns of other trials' settings are empty there."""
        settings, figures = _parted(columns, ("trial", "state", "reason"))
        return cls(columns["trial"], columns["state"], columns.get("reason", ""), settings, figures)

    @property
    def variant(self) -> str:
        return self.settings["sae.variant"]

    @property
    def d_sae(self) -> int:
        return self.settings["sae.d_sae"]

    @property
    def k(self) -> int | None:
        """K; None in variants that have none."""
        return self.settings.get("sae.k")

    @property
    def sparsity_setting(self) -> tuple[str, Any]:
        """What sets how sparse the features are, such as ``("K", 32)``."""
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

    @cached_property
    def columns(self) -> dict[str, Any]:
        head = {"layer": self.layer, "position": self.position}
        return {**head, "state": self.state, "reason": self.reason, **self.figures}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "SiteRow":
        """The site of a table's row."""
        _, figures = _parted(columns, ("layer", "position", "state", "reason"))
        return cls(
            columns["layer"], columns["position"], columns["state"], columns["reason"], figures
        )


def _parted(
    columns: Mapping[str, Any], head: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the figures of a table's row."""
    rest = {key: value for key, value in columns.items() if key not in head}
    settings = {key: value for key, value in rest.items() if key.startswith(SETTINGS)}
    return settings, {key: value for key, value in rest.items() if key not in settings}
