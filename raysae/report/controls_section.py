"""The page's section on the controls: what explains the same rows without a learned dictionary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LABELS = {
    "frozen_decoder": "a dictionary that stayed random, encoder trained",
    "gaussian": "Gaussian rows of the same mean and covariance",
    "pca": "principal components",
    "shuffled_model": "the model with shuffled weights",
}

SHORT = {
    "frozen_decoder": "random dictionary", "gaussian": "Gaussian rows", "pca": "PCA",
    "shuffled_model": "shuffled model",
}  # fmt: skip
"""The labels of a chart, where there is little room."""


@dataclass(frozen=True)
class ControlsSection:
    """The content of ``controls.json`` as the page shows it."""

    controls: Mapping[str, Any]

    @property
    def made(self) -> Mapping[str, Any]:
        """The controls by name."""
        return self.controls.get("controls", {})

    @property
    def amounts(self) -> dict[str, float]:
        """The explained variance of the SAE and of each control that has one, by label."""
        if not self.made:
            return {}
        known = {
            SHORT.get(name, name): one["explained_variance"]
            for name, one in self.made.items()
            if one.get("explained_variance") is not None
        }
        return {"the SAE": self.controls["explained_variance"], **known}

    @property
    def rows(self) -> list[list[str]]:
        """A row of the table for the SAE and for each control."""
        own = self.controls
        first = [
            f"the SAE: {own['config']}", _fixed(own["explained_variance"]), "100%",
            _fixed(own["l0"], 2), _fixed(own["stability"], 3), "",
        ]  # fmt: skip
        return [first, *(self._row(name, one) for name, one in self.made.items())]

    def _row(self, name: str, one: Mapping[str, Any]) -> list[str]:
        label = self._label(name)
        share = one.get("share")
        return [
            label, _fixed(one.get("explained_variance")), "" if share is None else f"{share:.0%}",
            _fixed(one.get("l0"), 2), _fixed(one.get("stability"), 3), self._note(name, one),
        ]  # fmt: skip

    def _label(self, name: str) -> str:
        label = LABELS.get(name, name)
        return f"{self.controls['components']} {label}" if name == "pca" else label

    def _note(self, name: str, one: Mapping[str, Any]) -> str:
        if "reason" in one:
            return f"not made: {one['reason']}"
        if name == "pca":
            reach, rows = one["components_to_reach"], one["rows"]
            sample = f"; of {rows:,} of {one['of_rows']:,} rows" if rows < one["of_rows"] else ""
            needed = "no number of components reaches" if reach is None else f"{reach} reach"
            return f"{needed} the SAE's{sample}"
        tokens, wanted = one["tokens"], one["tokens_of_trial"]
        shorter = f" (the SAE: {wanted:,})" if tokens < wanted else ""
        seeds = f", {one['seeds']:g} seeds" if one["seeds"] > 1 else ""
        return f"trained on {tokens:,} tokens{shorter}{seeds}"


def _fixed(value: float | None, places: int = 4) -> str:
    return "" if value is None else f"{value:.{places}f}"
