"""The tables of a site's labels: a row a feature, a row a feature and attribute, a row a context.

Shapes: F d_sae, A attributes, L features with contexts.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysae.analysis.intervals import Z, wilson_of
from raysae.analysis.labelling.alike import agreement, chance, directions, most_alike
from raysae.analysis.labelling.coherence import Coherence, coherence
from raysae.analysis.labelling.contexts import contexts_table, kind_of
from raysae.analysis.labelling.lens import Lens
from raysae.analysis.labelling.opened import lens_of, why_no_residual
from raysae.analysis.labelling.site import SiteLabels
from raysae.analysis.labelling.tallies import LOWEST
from raysae.errors import UserError

STRINGS, FLOATS, INTS = pa.list_(pa.string()), pa.list_(pa.float32()), pa.list_(pa.int64())


def site_columns(labels: SiteLabels) -> dict[str, Any]:
    """The columns that say which site a row is of."""
    site = labels.site
    return {
        "site": site.folder, "layer": site.layer, "position": str(site.position),
        "hookpoint": site.hookpoint or labels.store.manifest.hookpoint,
    }  # fmt: skip


def contexts_of(labels: SiteLabels) -> pa.Table:
    """A row a context."""
    splits = labels.splits_of(labels.chosen.events.sequence)
    return contexts_table(site_columns(labels), labels.chosen, labels.windows, labels.names, splits)


def coherence_of(labels: SiteLabels) -> Coherence:
    """The coherence of the top contexts of each labelled feature."""
    if labels.texts is None:
        return Coherence({}, {}, np.empty(0))
    top = np.flatnonzero(labels.chosen.band < 0)
    texts = [labels.windows[number].text for number in top]
    return coherence(labels.chosen.events.feature[top], texts, labels.seed)


def attributes_of(labels: SiteLabels) -> pa.Table:
    """A row a feature and attribute, where the correlation is defined."""
    names = () if labels.texts is None else labels.texts.names
    sums = labels.correlations
    r_FA, control_FA = sums.r(), sums.r(control=True)
    feature, attribute = np.nonzero(np.isfinite(r_FA))
    r, n = r_FA[feature, attribute], _independent(labels)[attribute]
    low, high = fisher(r, n)
    of_A = sums.sum_A
    with np.errstate(invalid="ignore", divide="ignore"):
        has_FA, active_FA = sums.with_FA, sums.active_FA
        two_valued_A = np.isclose(sums.sum_A, sums.square_A) & (of_A > 0)
        precision = np.where(two_valued_A, has_FA / active_FA, np.nan)[feature, attribute]
        recall = np.where(two_valued_A, has_FA / of_A, np.nan)[feature, attribute]
    return pa.table(
        {
            **_constant(labels, len(feature)),
            "feature": feature,
            "attribute": pa.array([names[number] for number in attribute], pa.string()),
            "r": r,
            "r_low": nullable(low),
            "r_high": nullable(high),
            "r_permuted": nullable(control_FA[feature, attribute]),
            "n": sums.n_A[attribute].astype(np.int64),
            "sequences": n,
            "precision": nullable(precision),
            "recall": nullable(recall),
        }
    )


def _independent(labels: SiteLabels) -> NDArray[np.int64]:
    """What an interval counts as independent: sequences, as the tokens of one are alike; ``[A]``."""
    return np.minimum(labels.correlations.n_A, len(labels.sequences)).astype(np.int64)


def fisher(r: NDArray[np.float64], n: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """The 95% interval of a correlation of ``n`` pairs by Fisher's transformation; NaN below 4 pairs."""
    with np.errstate(invalid="ignore", divide="ignore"):
        reach = np.where(n > 3, Z / np.sqrt(np.maximum(n - 3, 1)), np.nan)
        middle = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
        return np.tanh(middle - reach), np.tanh(middle + reach)


def nullable(values: NDArray) -> pa.Array:
    """Numbers as an Arrow column, with null for NaN."""
    return pa.array(values, mask=~np.isfinite(values))


def _constant(labels: SiteLabels, rows: int) -> dict[str, pa.Array]:
    return {
        name: pa.array([value] * rows, kind_of(value))
        for name, value in site_columns(labels).items()
    }


def features_of(labels: SiteLabels, coherent: Coherence) -> tuple[pa.Table, dict[str, str]]:
    """A row a feature, and notes by name on what could not be made."""
    d_sae = labels.d_sae
    similar, seeds = _similar(labels)
    promoted, why = _promoted(labels)
    table = pa.table(
        {
            **_constant(labels, d_sae),
            "feature": np.arange(d_sae),
            **_figures(labels),
            **_frequent(labels),
            **_best_attribute(labels),
            "labelled": np.isin(np.arange(d_sae), labels.labelled),
            "coherence": nullable(_spread(coherent.of_feature, d_sae)),
            "coherence_texts": pa.array(
                [coherent.texts.get(number) for number in range(d_sae)], pa.int64()
            ),
            **similar,
            **promoted,
        }
    )
    return table, {"lens": why, "seeds": str(seeds)}


def _spread(values: dict[int, float], d_sae: int) -> NDArray[np.float64]:
    return np.array([values.get(number, math.nan) for number in range(d_sae)])


def _figures(labels: SiteLabels) -> dict[str, Any]:
    sums = labels.tallies
    active_F, live_F = sums.active_F, labels.live
    low, high = wilson_of(active_F, sums.rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_F, index_F = sums.sum_F / active_F, sums.index_F / active_F
        first_F = sums.first_F / active_F
        spread_F = np.sqrt(np.maximum(sums.square_F / active_F - mean_F**2, 0))
    special_F = np.full(labels.d_sae, np.nan)
    if labels.texts is not None:
        number = labels.texts.names.index("special")
        with np.errstate(invalid="ignore", divide="ignore"):
            special_F = (labels.correlations.with_FA / labels.correlations.active_FA)[:, number]
    bins = [np.flatnonzero(row) for row in sums.bins_FB]
    return {
        "live": live_F,
        "rows": np.full(labels.d_sae, sums.rows),
        "sequences": np.full(labels.d_sae, len(labels.sequences)),
        "active": active_F,
        "density": active_F / sums.rows,
        "density_low": low,
        "density_high": high,
        "max_activation": pa.array(sums.most_F, mask=~live_F),
        "mean_activation": nullable(mean_F),
        "std_activation": nullable(spread_F),
        "histogram_first": pa.array(
            [LOWEST * 2 + int(where[0]) if len(where) else None for where in bins], pa.int64()
        ),
        "histogram": pa.array(
            [row[where[0] : where[-1] + 1].tolist() if len(where) else []
             for row, where in zip(sums.bins_FB, bins, strict=True)], INTS
        ),
        "mean_index": nullable(index_F),
        "first_share": nullable(first_F),
        "special_share": nullable(special_F),
    }  # fmt: skip


def _frequent(labels: SiteLabels) -> dict[str, pa.Array]:
    """The commonest tokens of each feature."""
    found = labels.tallies.tokens.most_frequent(labels.d_sae, labels.settings.tokens)
    ends = np.cumsum(np.bincount(found.feature, minlength=labels.d_sae))
    offsets = pa.array(np.r_[0, ends], pa.int32())

    def lists(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(values, kind))

    dead = found.kinds_F == 0
    return {
        "tokens": lists([labels.names[number] for number in found.token.tolist()], pa.string()),
        "token_ids": lists(found.token, pa.int64()),
        "token_counts": lists(found.count, pa.int64()),
        "token_shares": lists(found.share, pa.float32()),
        "token_fires": lists(found.fires, pa.float32()),
        "token_kinds": found.kinds_F,
        "token_entropy": pa.array(np.maximum(found.bits_F, 0), mask=dead),
    }


def _best_attribute(labels: SiteLabels) -> dict[str, pa.Array]:
    """The attribute of the largest correlation of each feature, with the control's largest."""
    names = () if labels.texts is None else labels.texts.names
    r_FA, control_FA = labels.correlations.r(), labels.correlations.r(control=True)
    known_F = np.zeros(labels.d_sae, bool)
    best_F = np.zeros(labels.d_sae, np.int64)
    r_F, control_F, n_F = (np.full(labels.d_sae, np.nan) for _ in range(3))
    if names:
        known_F = np.isfinite(r_FA).max(axis=1)
        size_FA = np.where(np.isfinite(r_FA), np.abs(r_FA), -1)
        best_F = size_FA.argmax(axis=1)
        r_F = np.where(known_F, r_FA[np.arange(labels.d_sae), best_F], np.nan)
        control_F = np.where(np.isfinite(control_FA), np.abs(control_FA), -1).max(axis=1)
        control_F = np.where(known_F, control_F, np.nan)
        n_F = _independent(labels)[best_F].astype(np.float64)
    low, high = fisher(r_F, np.nan_to_num(n_F).astype(np.int64))
    named = [names[best_F[one]] if known_F[one] else None for one in range(labels.d_sae)]
    return {
        "attribute": pa.array(named, pa.string()),
        "attribute_r": nullable(r_F),
        "attribute_low": nullable(low),
        "attribute_high": nullable(high),
        "attribute_permuted": nullable(control_F),
    }


def _rows_of(labels: SiteLabels, values: NDArray | Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A list for each labelled feature, and null for the others."""
    found: list[Any] = [None] * labels.d_sae
    for feature, row in zip(labels.labelled.tolist(), values, strict=True):
        found[feature] = row.tolist() if isinstance(row, np.ndarray) else row
    return pa.array(found, kind)


def _similar(labels: SiteLabels) -> tuple[dict[str, pa.Array], int]:
    """The most alike features of each, and its agreement with other seeds."""
    directions_FD = directions(labels.sae)
    numbers, cosines = most_alike(
        directions_FD, labels.labelled, labels.live, labels.settings.alike
    )
    others = labels.subject.atlas.seeds(labels.site)
    agreed = agreement(directions_FD, others)
    nothing = np.full(labels.d_sae, np.nan, np.float32)
    control = nothing if agreed is None else chance(directions_FD, labels.seed)
    return {
        "alike": _rows_of(labels, numbers, INTS),
        "alike_cosine": _rows_of(labels, cosines, FLOATS),
        "seed_agreement": nullable(nothing if agreed is None else agreed),
        "seed_chance": nullable(control),
    }, len(others)


def _promoted(labels: SiteLabels) -> tuple[dict[str, pa.Array], str]:
    """The tokens that each labelled feature promotes and suppresses; why there are none, or nothing."""
    why = why_no_residual(labels.subject, labels.site.hookpoint)
    lens = why or lens_of(labels.subject, labels.settings.lens)
    try:
        if isinstance(lens, Lens):
            return _by_lens(labels, lens), ""
        reason = lens
    except UserError as error:
        reason = str(error)
    nothing = {"promotes": STRINGS, "promotes_by": FLOATS, "suppresses": STRINGS}
    nothing["suppresses_by"] = FLOATS
    return {name: pa.nulls(labels.d_sae, kind) for name, kind in nothing.items()}, reason


def _by_lens(labels: SiteLabels, lens: Lens) -> dict[str, pa.Array]:
    found = lens.promoted(
        directions(labels.sae)[labels.labelled], labels.settings.tokens, labels.alive
    )

    def names(ids_LK: NDArray[np.int64]) -> pa.Array:
        named = [[labels.names[number] for number in row] for row in ids_LK.tolist()]
        return _rows_of(labels, named, STRINGS)

    return {
        "promotes": names(found.up),
        "promotes_by": _rows_of(labels, found.up_by, FLOATS),
        "suppresses": names(found.down),
        "suppresses_by": _rows_of(labels, found.down_by, FLOATS),
    }
