"""What the labels say of an atlas: figures, sentences and tables, from the tables of its sites."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysae.analysis.labelling.coherence import Coherence
from raysae.analysis.labelling.effects import Effects
from raysae.analysis.labelling.lens import FORM
from raysae.analysis.labelling.settings import LabelsSettings
from raysae.analysis.labelling.site import SiteLabels
from raysae.analysis.section import Cell, Section, Table
from raysae.printable import printable, shortened

LISTED = 15
"""Features of a table of the section."""
FEWEST_TEXTS = 5
"""Unique texts of a feature, at least, among the most coherent: of two or three it is mostly chance."""
SHOWN_COLUMNS = (
    "site", "feature", "density", "active", "max_activation", "coherence", "coherence_texts", "tokens",
    "token_shares", "promotes", "attribute", "attribute_r", "attribute_low", "attribute_high",
    "attribute_permuted", "sequences", "description", "detection_score", "detection_low",
    "detection_high", "detection_n", "detection_control",
)  # fmt: skip
DRAWS = 1000


def summary(labels: SiteLabels, coherent: Coherence, notes: Mapping[str, str]) -> dict[str, Any]:
    """What an item leaves beside its tables."""
    names = () if labels.texts is None else labels.texts.names
    return {
        "site": labels.site.folder,
        "rows": labels.tallies.rows,
        "sequences": len(labels.sequences),
        "rows_there": sum(
            getattr(labels.store.entry(labels.site).rows, split) for split in labels.settings.splits
        ),
        "texts": labels.texts is not None,
        "attributes": list(names),
        "coherence_control": [float(value) for value in coherent.control],
        "notes": dict(notes),
    }


@dataclass
class Overview:
    """What is kept of all sites for the section and the plots; small, whatever the number of features."""

    sites: list[dict[str, Any]] = field(default_factory=list)
    """A row a site."""
    listed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The features of each table of the section."""
    density: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """The densities of each site's live features."""
    coherence: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    control: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    attribute_r: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    """The largest size of a correlation of each live feature."""
    attribute_permuted: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    agreement: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    detection: list[tuple[float, float]] = field(default_factory=list)
    """The detection score of each described feature, and its control."""
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, features: pa.Table, summed: Mapping[str, Any]) -> None:
        """Take in a site."""
        live = features.filter(features["live"])
        coherent, control = _column(live, "coherence"), np.array(summed["coherence_control"])
        self.density[summed["site"]] = _column(live, "density").astype(np.float32)
        self.coherence = np.r_[self.coherence, coherent.astype(np.float32)]
        self.control = np.r_[self.control, control.astype(np.float32)]
        sizes = np.abs(_column(live, "attribute_r")), _column(live, "attribute_permuted")
        known = np.isfinite(sizes[0])
        self.attribute_r = np.r_[self.attribute_r, sizes[0][known].astype(np.float32)]
        permuted = sizes[1][known].astype(np.float32)
        self.attribute_permuted = np.r_[self.attribute_permuted, permuted]
        agreed = _column(live, "seed_agreement")
        self.agreement = np.r_[self.agreement, agreed[np.isfinite(agreed)].astype(np.float32)]
        scores = _column(live, "detection_score"), _column(live, "detection_control")
        self.detection += [
            pair for pair in zip(*map(np.ndarray.tolist, scores), strict=True) if pair[0] == pair[0]
        ]
        self._list(live)
        self.sites.append(_site_row(features, live, coherent, control, summed))
        for name, note in summed["notes"].items():
            if name != "seeds" and note:
                self.notes.setdefault(name, [])
                if note not in self.notes[name]:
                    self.notes[name].append(note)

    def _list(self, live: pa.Table) -> None:
        """Keep the features that come first in each table."""
        size = pc.abs(live["attribute_r"])
        orders = {
            "coherent": live["coherence"], "dense": live["density"], "attribute": size,
            "described": live["detection_score"],
        }  # fmt: skip
        for name, values in orders.items():
            keyed = live.select(list(SHOWN_COLUMNS)).append_column("key", values)
            keyed = keyed.filter(pc.is_valid(keyed["key"]))
            if name == "coherent":
                keyed = keyed.filter(pc.greater_equal(keyed["coherence_texts"], FEWEST_TEXTS))
            order = pc.sort_indices(keyed, [("key", "descending"), ("feature", "ascending")])
            rows = [*self.listed.get(name, []), *keyed.take(order[:LISTED]).to_pylist()]
            self.listed[name] = sorted(rows, key=lambda row: -row["key"])[:LISTED]

    @property
    def live(self) -> int:
        """Live features of all sites."""
        return sum(row["live"] for row in self.sites)

    @property
    def features(self) -> int:
        """Features of all sites."""
        return sum(row["features"] for row in self.sites)

    @property
    def beyond(self) -> float | None:
        """The share of features whose contexts are more alike than 95% of drawn ones."""
        if not self.coherence.size or not self.control.size:
            return None
        return float((self.coherence > np.quantile(self.control, 0.95)).mean())

    def figures(self) -> dict[str, float | None]:
        """The figures for MLflow and the console."""
        densities = np.concatenate([*self.density.values(), np.empty(0)])
        return {
            "live_features": float(self.live),
            "dead_share": 1 - self.live / self.features,
            "median_density": float(np.median(densities)) if len(densities) else None,
            "coherence": _mean(self.coherence),
            "coherence_control": _mean(self.control),
            "coherent_share": self.beyond,
            "attribute_share": self.attribute_share,
            "seed_agreement": _mean(self.agreement),
            "detection": _mean(np.array([score for score, _ in self.detection])),
            "detection_control": _mean(np.array([other for _, other in self.detection])),
        }

    @property
    def attribute_share(self) -> float | None:
        """The share of live features with a larger correlation than any under the permuted attributes."""
        if not self.attribute_r.size:
            return None
        return float((self.attribute_r > self.attribute_permuted.max()).mean())

    def brief(self) -> str:
        """The outcome in a line."""
        said = f"{self.live:,} of {self.features:,} features live at {len(self.sites)} sites"
        coherent, control = _mean(self.coherence), _mean(self.control)
        if coherent is not None and control is not None:
            said += f"; coherence {coherent:.3f}, of drawn contexts {control:.3f}"
        return said


def _site_row(
    features: pa.Table, live: pa.Table, coherent: NDArray, control: NDArray,
    summed: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    densities = _column(live, "density")
    return {
        "site": summed["site"], "rows": summed["rows"], "rows_there": summed["rows_there"],
        "sequences": summed["sequences"], "features": len(features), "live": len(live),
        "labelled": int(pc.sum(features["labelled"]).as_py() or 0),
        "density": float(np.median(densities)) if len(densities) else None,
        "coherence": _mean(coherent), "coherent": int(np.isfinite(coherent).sum()),
        "control": _mean(control),
    }  # fmt: skip


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column of numbers; NaN for null."""
    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


def _mean(values: NDArray) -> float | None:
    found = values[np.isfinite(values)]
    return float(found.mean()) if found.size else None


def interval(values: NDArray, seed: int = 0) -> str:
    """The 95% interval of the mean, by 1,000 bootstrap samples, in words."""
    found = values[np.isfinite(values)].astype(np.float64)
    if len(found) < 2:
        return "no interval"
    random = np.random.default_rng(seed)
    means = [found[random.integers(len(found), size=len(found))].mean() for _ in range(DRAWS)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{low:.3f} to {high:.3f}"


def section(overview: Overview, settings: LabelsSettings, effects: Effects) -> Section:
    """The page's section."""
    return Section(
        _sentences(overview, settings), _tables(overview), _notes(overview, settings, effects)
    )


def _sentences(one: Overview, settings: LabelsSettings) -> list[str]:
    read = sum(row["rows"] for row in one.sites)
    there = sum(row["rows_there"] for row in one.sites)
    part = "all" if read == there else f"the first {read:,} of {there:,}"
    said = [
        f"{one.live:,} of {one.features:,} features at {len(one.sites)} sites fired at least once in "
        f"{part} rows of {' and '.join(settings.splits)} (n = {read:,}); the others are dead there."
    ]
    coherence, control = one.coherence[np.isfinite(one.coherence)], one.control
    if coherence.size and control.size:
        share = one.beyond or 0.0
        said.append(
            f"The words of a feature's top contexts share {coherence.mean():.3f} of them on average "
            f"({interval(coherence)}; n = {len(coherence):,} features), those of contexts drawn from all "
            f"features of the site {control.mean():.3f} ({interval(control)}; n = {len(control):,} sets)"
            f"; {share:.1%} of the features are above these ones' 95% quantile, where chance gives 5%."
        )
    if one.attribute_r.size:
        said.append(
            f"{one.attribute_share:.1%} of the live features (n = {len(one.attribute_r):,}) follow an "
            "attribute of the text more closely than any feature follows a permuted attribute "
            f"(|r| up to {one.attribute_permuted.max():.3f})."
        )
    if one.agreement.size:
        said.append(
            f"A feature's nearest in another seed's SAE has the cosine {one.agreement.mean():.3f} on "
            f"average ({interval(one.agreement)}; n = {len(one.agreement):,} live features)."
        )
    said += _of_describer(one, settings)
    return said


def _of_describer(one: Overview, settings: LabelsSettings) -> list[str]:
    said = [
        f"Descriptions are missing or incomplete: {reason}."
        for reason in one.notes.get("describer", [])
    ]
    if one.detection:
        scores, controls = np.array(one.detection).T
        held = controls[np.isfinite(controls)]
        other = (
            f", with another feature's {held.mean():.3f} ({interval(held)}; n = {len(held)})"
            if held.size else ""
        )  # fmt: skip
        said.append(
            f"From its description {settings.describer_model} tells where a feature is active with a "
            f"balanced accuracy of {scores.mean():.3f} ({interval(scores)}; n = {len(scores)} features)"
            f"{other}; chance is 0.5."
        )
    return said


def _tables(one: Overview) -> list[Table]:
    columns = ["site", "rows", "sequences", "live", "dead", "with contexts", "median density",
               "coherence", "n", "of drawn contexts"]  # fmt: skip
    rows: list[list[Cell]] = [
        [row["site"], row["rows"], row["sequences"], row["live"], row["features"] - row["live"],
         row["labelled"], row["density"], row["coherence"], row["coherent"], row["control"]]
        for row in one.sites
    ]  # fmt: skip
    note = "Density: share of rows at which a feature is active. n: features whose coherence is defined."
    made = [
        Table("Features by site", columns, rows, note),
        _listed(
            one, "coherent", f"The most coherent features of {FEWEST_TEXTS} unique texts or more"
        ),
        _listed(one, "dense", "The densest features"),
        _attributes(one),
        _described(one),
    ]
    return [table for table in made if table.rows]


def _listed(one: Overview, name: str, title: str) -> Table:
    columns = ["site", "feature", "density", "active rows", "maximum", "coherence", "unique texts",
               "most frequent tokens", "promotes"]  # fmt: skip
    rows: list[list[Cell]] = [
        [row["site"], row["feature"], row["density"], row["active"], row["max_activation"],
         row["coherence"], row["coherence_texts"], _tokens(row), _list(row["promotes"])]
        for row in one.listed.get(name, [])
    ]  # fmt: skip
    note = "Of a token: its share of the feature's active rows. n: active rows."
    return Table(title, columns, rows, note)


def _attributes(one: Overview) -> Table:
    columns = [
        "site",
        "feature",
        "attribute",
        "r",
        "95% interval",
        "permuted",
        "sequences",
        "tokens",
    ]
    rows: list[list[Cell]] = [
        [row["site"], row["feature"], row["attribute"], row["attribute_r"],
         _interval(row["attribute_low"], row["attribute_high"]), row["attribute_permuted"],
         row["sequences"], _tokens(row)]
        for row in one.listed.get("attribute", [])
    ]  # fmt: skip
    note = (
        "r: Pearson's correlation of activation and attribute over all rows whose attribute is known; "
        "its interval counts sequences. Permuted: the largest |r| of the feature with permuted "
        "attributes. The features are the best of many, so the true r of each is somewhat less."
    )
    return Table("Features that follow a known attribute", columns, rows, note)


def _described(one: Overview) -> Table:
    columns = ["site", "feature", "description", "detection", "95% interval", "n", "control"]
    rows: list[list[Cell]] = [
        [row["site"], row["feature"], row["description"], row["detection_score"],
         _interval(row["detection_low"], row["detection_high"]), row["detection_n"],
         row["detection_control"]]
        for row in one.listed.get("described", [])
    ]  # fmt: skip
    note = (
        "Detection: balanced accuracy on n contexts. Control: with another feature's description."
    )
    return Table("The best described features", columns, rows, note)


def _interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _tokens(row: Mapping[str, Any]) -> str:
    pairs = zip(row["tokens"][:4], row["token_shares"], strict=False)
    return ", ".join(f"{_quoted(token)} {share:.0%}" for token, share in pairs)


def _list(tokens: list[str] | None) -> str | None:
    return None if tokens is None else ", ".join(map(_quoted, tokens[:4]))


def _quoted(token: str) -> str:
    return f"'{shortened(printable(token), 24)}'"


def _notes(one: Overview, settings: LabelsSettings, effects: Effects) -> list[str]:
    said = [
        f"features.parquet has a row a feature, contexts.parquet up to {settings.top} top contexts and "
        f"{settings.per_band} of each of {settings.bands} bands of equally many activations, "
        "attributes.parquet each correlation.",
        "Coherence is the mean Jaccard index of the words of pairs of unique top contexts "
        f"({settings.window} tokens to either side); it is undefined with one unique text.",
        "Densities have Wilson intervals that count rows, which are not independent where a site pools "
        "the tokens of a text.",
        "Quantiles of a feature with more than 200 activations are those of 200 drawn ones.",
    ]
    if "lens" in one.notes:
        said.append(f"No promoted tokens: {'; '.join(one.notes['lens'])}.")
    else:
        said.append(f"Promoted tokens: {FORM}.")
    if not one.agreement.size:
        said.append("Agreement with other seeds: not known, as the atlas has one seed a site.")
    if not effects.columns:
        said.append(
            "Causal effects: not known, as the phase ablation had no result when these labels were "
            "collected; after it, the phase labels collects them again."
        )
    else:
        said.append(f"Causal effects: the columns ablation_* ({', '.join(effects.columns)}).")
    return said
