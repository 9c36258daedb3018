"""The downstream loss of sites: per text what splicing and ablation do, and figures from their sums.

Definitions, as in SAEBench (evals/core) and SAELens (sae_lens.evals): CE in nats a token;
``ce_recovered`` = (CE_zero - CE_sae) / (CE_zero - CE_clean), their ce_loss_score; ``kl_recovered`` =
(KL_zero - KL_sae) / KL_zero, their kl_div_score, with KL(clean || changed); sums over all tokens, then
the ratio. A token counts by the place that predicts it; special tokens' places apart.
Shapes: S texts, R draws, C columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysae.activations import Store
from raysae.analysis.intervals import draws_of, limits, ratio
from raysae.analysis.scoring import SUMS, Clean, Effect
from raysae.analysis.spliced_model import SplicedModel
from raysae.analysis.splicing import Change, Edit, replaced_by, spliced, zeroed
from raysae.analysis.subject import Subject
from raysae.sites import Site

VARIATIONS = ("sae", "zero", "mean")
LEAST = 1e-9
"""A denominator of a ratio, in nats over all tokens of the draw, must be larger."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Sites that are changed together: one, or all layers of a position."""

    sites: tuple[Site, ...]

    @property
    def columns(self) -> Row:
        """The columns that name it; of several layers ``layer`` is -1."""
        site = self.sites[0]
        layer = site.layer if len(self.sites) == 1 else -1
        return {**site.columns, "layer": layer, "position": str(site.position)}


def edits_of(subject: Subject, site: Site) -> dict[str, Edit]:
    """The edits of a site's rows by variation, and ``error``: the SAE with its error."""
    sae = subject.atlas[site]
    return {
        "sae": spliced(sae), **fixed_edits(subject.store, site), "error": spliced(sae, True),
    }  # fmt: skip


def fixed_edits(store: Store, site: Site) -> dict[str, Edit]:
    """The edits of a site's rows that no SAE has a part in: zero and mean ablation."""
    return {"zero": zeroed, "mean": replaced_by(torch.tensor(store.entry(site).mean))}


def rows_of_batch(
    subject: Subject, model: SplicedModel, clean: Clean, places: Places, exact: bool
) -> Iterator[Row]:  # fmt: skip
    """The sums of each text of a batch that has rows at the places; with ``exact`` also those of the SAE
    with its error, which changes nothing."""
    batch = clean.batch
    index = batch.places(places.sites[0].position, list(subject.source.used_patterns))
    if not len(index[0]):
        return
    kept = model.block_before_all(places.sites)
    edits = {site: edits_of(subject, site) for site in places.sites}
    effects: dict[str, Effect] = {}
    for name in (*VARIATIONS, *(("error",) if exact else ())):
        changes = [
            Change(site.layer, index, edits[site][name], site.hookpoint) for site in places.sites
        ]
        effects[name] = model.effect(clean, changes, kept)
    for row in sorted(set(index[0].tolist())):
        yield {**places.columns, **of_text(clean, row), **sums_of(effects, row)}


def of_text(clean: Clean, row: int) -> Row:
    """What a text of the clean pass has without changes."""
    batch = clean.batch
    text, special = batch.text_BT[row], batch.special_BT[row]
    answer = batch.answer_BT[row]
    return {
        "sequence": batch.texts[row].source.sequence, "tokens": int(text.sum()),
        "special": int(special.sum()), "answer": int(answer.sum()),
        "ce_clean": float(clean.ce_BT[row][text].sum()),
        "ce_special_clean": float(clean.ce_BT[row][special].sum()),
        "ce_answer_clean": float(clean.ce_BT[row][answer].sum()),
        "wrong_clean": int(clean.wrong_BT[row][answer].sum()),
    }  # fmt: skip


def sums_of(effects: Mapping[str, Effect], row: int) -> Row:
    """What each variation does to a text: its sums as columns ``SUM_VARIATION``."""
    return {
        f"{name}_{variation}": float(getattr(effect, name)[row])
        for variation, effect in effects.items()
        for name in SUMS
    }


def figures_of(rows: Sequence[Row], head: bool, seed: int) -> Row:
    """The figures of one site from its texts, with the 95% intervals (bootstrap over texts) of ratios and
    accuracies in ``NAME_low`` and ``NAME_high``; None where a figure is undefined."""
    columns = sorted(key for key, value in rows[0].items() if isinstance(value, int | float))
    sums = _with_accuracy(
        {key: np.array([row.get(key, 0.0) for row in rows], float) for key in columns}
    )
    names = list(sums)
    matrix_SC = np.stack([sums[name] for name in names], axis=1)
    totals = _figures(dict(zip(names, matrix_SC.sum(axis=0)[:, None], strict=True)), head)
    drawn_RC = draws_of(len(rows), seed) @ matrix_SC
    draws = _figures(dict(zip(names, drawn_RC.T, strict=True)), head)
    found: Row = {"texts": len(rows), "tokens": int(sums["tokens"].sum())}
    found |= {"special_tokens": int(sums["special"].sum()), "answers": int(sums["answers"].sum())}
    for name, value in totals.items():
        found[name] = _number(value[0])
        if name in INTERVALS:
            low, high = limits(draws[name])
            found |= {f"{name}_low": _number(low), f"{name}_high": _number(high)}
    return found


INTERVALS = (
    "ce_recovered", "kl_recovered", "final_cosine_recovered", "accuracy_clean", "accuracy_sae",
    "accuracy_zero", "ce_increase",
)  # fmt: skip
Sums = dict[str, NDArray[np.float64]]


def _with_accuracy(sums: Sums) -> Sums:
    """The sums with ``answers`` and, of each variation, the answers that are right in all tokens."""
    has = sums["answer"] > 0
    right = {"right_clean": has & (sums["wrong_clean"] == 0)}
    for name in VARIATIONS:
        right[f"right_{name}"] = has & (sums["wrong_clean"] + sums[f"wrong_{name}"] == 0)
    return {**sums, "answers": has.astype(float), **{k: v.astype(float) for k, v in right.items()}}


def _figures(sums: Sums, head: bool) -> Sums:
    """Figures from sums over texts, elementwise."""
    if not head:
        cosine = {v: 1 - ratio(sums[f"away_{v}"], sums["tokens"]) for v in VARIATIONS}
        gained = sums["away_zero"] - sums["away_sae"]
        return {
            **{f"final_cosine_{name}": value for name, value in cosine.items()},
            "final_cosine_recovered": ratio(gained, sums["away_zero"], LEAST),
        }
    found = {"ce_clean": ratio(sums["ce_clean"], sums["tokens"])}
    for name in VARIATIONS:
        found[f"ce_{name}"] = ratio(sums["ce_clean"] + sums[f"ce_{name}"], sums["tokens"])
    found["ce_increase"] = ratio(sums["ce_sae"], sums["tokens"])
    gained = sums["ce_zero"] - sums["ce_sae"]
    found["ce_recovered"] = ratio(gained, sums["ce_zero"], LEAST)
    for name in VARIATIONS:
        found[f"kl_{name}"] = ratio(sums[f"kl_{name}"], sums["tokens"])
    found["kl_recovered"] = ratio(sums["kl_zero"] - sums["kl_sae"], sums["kl_zero"], LEAST)
    found |= _apart(sums, "special", "special") | _apart(sums, "answer", "answer")
    for name in ("clean", *VARIATIONS):
        found[f"accuracy_{name}"] = ratio(sums[f"right_{name}"], sums["answers"])
    return found


def _apart(sums: Sums, what: str, tokens: str) -> Sums:
    """The losses at special tokens, or of the answer's tokens, in nats a token."""
    clean = sums[f"ce_{what}_clean"]
    found = {f"ce_{what}_clean": ratio(clean, sums[tokens])}
    for name in VARIATIONS:
        found[f"ce_{what}_{name}"] = ratio(clean + sums[f"ce_{what}_{name}"], sums[tokens])
    return found


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
