"""Features of two models matched by their activations on the same texts, beside controls."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raysae.analysis.alignment import Ends, by_character, same_texts
from raysae.analysis.intervals import wilson
from raysae.analysis.matching import (
    Features,
    Matched,
    assigned,
    correlations,
    features_of,
    matched,
)
from raysae.analysis.shuffled import latents_of_model, shuffled
from raysae.analysis.site_latents import SiteLatents, common_rows, read_latents
from raysae.analysis.subject import Subject
from raysae.errors import UserError
from raysae.records.run_files import RunFiles
from raysae.remembered import remembered
from raysae.sites import Site
from raysae.storage.files import expanded
from raysae.storage.remote import is_uri
from raysae.transformer.sequence import TokenSequence

Pair = tuple[Site, Site]
ALL_SPLITS = ("validation", "test", "train")
LEAST_TEXTS = 20
"""Fewer common texts tell nothing about a correlation."""


class Other(Subject):
    """Another atlas, or a store alone, whose shuffled model is made once."""

    @cached_property
    def shuffled_model(self) -> Any:
        """The transformer with shuffled weights. Raises UserError when it is not at hand."""
        return shuffled(self.transformer.model, self.seed)


@remembered(maxsize=4)
def subject_named(place: str, store: str | None) -> Other:
    """What lies at ``place``, with its store: a run's own, where ``store`` names none.

    Raises UserError when the run cannot be read.
    """
    store = store or _store_of_run(place)
    folder = Path() if is_uri(place) else expanded(place)
    return Other(place, RunFiles(folder), store)


def _store_of_run(place: str) -> str | None:
    from raysae.atlas.library.files import find_atlas
    from raysae.config.loading import load_run

    run = find_atlas(place).run
    return None if run is None else str(load_run(run).store_place)


def counterparts(subject: Subject, other: Subject) -> list[Pair]:
    """Each site with the other model's site of the same position (and hookpoint) whose layer lies at the
    nearest share of the model's depth; sites without one are left out."""
    found = []
    for site in subject.sites:
        alike = [
            one
            for one in other.sites
            if (str(one.position), one.hookpoint) == (str(site.position), site.hookpoint)
        ]
        if alike:
            depth = _depth(subject, site)
            found.append((site, min(alike, key=lambda one: abs(_depth(other, one) - depth))))
    return found


def _depth(subject: Subject, site: Site) -> float:
    """The share of the model's layers up to a site's."""
    known = (subject.store.manifest.model or {}).get("layers")
    layers = known if isinstance(known, int) else max(subject.store.layers) + 1
    return (site.layer + 1) / max(layers, 1)


def check_texts(subject: Subject, other: Subject) -> None:
    """Raise UserError unless both stores hold their texts."""
    for one in (subject, other):
        if not one.store.manifest.sequences:
            raise UserError(
                f"{one.store.place}: holds no texts, by which the tokens of two models are "
                "aligned; only a "
                "store that raysae extracted has them"
            )


def compare_models(
    subject: Subject, other: Other, pair: Pair, settings: Any, key: str,
    alive: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """The site's features matched with those of its counterpart.

    Raises UserError when the models have too few texts or rows in common.
    """
    first, second = pair
    own = read_latents(
        subject.store, first, subject.atlas[first], ("validation",), settings.rows, alive
    )
    chosen = set(own.sequence.tolist())
    mine = (one for one in subject.sequences("validation") if one.sequence in chosen)
    theirs = (one for split in ALL_SPLITS for one in other.sequences(split))
    ends, other_ends, sequences = same_texts(mine, theirs)
    if len(sequences) < LEAST_TEXTS:
        raise UserError(
            f"{other.place}: {len(sequences)} of the {len(chosen)} validation texts of "
            f"{subject.place} are "
            f"in its store; expected at least {LEAST_TEXTS}: make both stores of the same texts"
        )
    alive()
    only = np.array(sorted(sequences), np.int64)
    rows = read_latents(other.store, second, other.atlas[second], ALL_SPLITS, 2**62, alive, only)
    sides = _sides(own, rows, (ends, other_ends), (subject, other), pair, settings)
    seed = [subject.seed, *key.encode()]
    found = matched(
        *sides,
        "correlation",
        "rotation",
        settings.permutations,
        settings.false_matches,
        seed,
        alive,
    )
    control = _shuffled(own, (ends, other_ends), other, second, list(sequences.values()), sides[0],
                        settings, alive) if settings.shuffled else "switched off"  # fmt: skip
    return {
        "other_site": second.folder, "texts": len(sequences), "own_rows": len(own),
        "rows": len(sides[0].rows), "features": len(sides[0]), "other_features": len(sides[1]),
        **_counts(found, settings), **_shuffled_counts(control, found, settings),
        "matches": _matches(found, sides, settings),
    }  # fmt: skip


def _sides(
    own: SiteLatents, rows: SiteLatents, ends: tuple[Ends, Ends],
    subjects: tuple[Subject, Subject], pair: Pair, settings: Any,
) -> tuple[Features, Features]:  # fmt: skip
    """The features of both sides over the rows whose tokens end at the same characters."""
    both = common_rows(by_character(own, ends[0]), by_character(rows, ends[1]))
    if not len(both[0]):
        raise UserError(
            f"{pair[0]} and {pair[1]} have no tokens that end at the same character of a text; take "
            "positions that both have (source.positions=[all]) and tokenizers that report offsets"
        )
    first, second = (
        features_of(side, subject.atlas[site].W_dec, settings.fires, settings.features)[0]
        for side, subject, site in zip(both, subjects, pair, strict=True)
    )
    if not (len(first) and len(second)):
        raise UserError(
            f"{pair[0]}: no feature is active on {settings.fires} of {len(both[0])} common rows; lower "
            "transfer.fires or take more texts"
        )
    return first, second


def _shuffled(
    own: SiteLatents, ends: tuple[Ends, Ends], other: Other, site: Site,
    sequences: Sequence[TokenSequence], first: Features, settings: Any,
    alive: Callable[[], None],
) -> Any:  # fmt: skip
    """The correlations of the best matches with the other model's SAE on its shuffled weights; the
    reason, as text, when the model is not at hand."""
    try:
        model = other.shuffled_model
    except (UserError, OSError) as error:
        return str(error)
    sae = other.atlas[site]
    rows = latents_of_model(model, other.source, site, sae, sequences, alive)
    one, two = common_rows(by_character(own, ends[0]), by_character(rows, ends[1]))
    features, _ = features_of(two, sae.W_dec, settings.fires, settings.features)
    if not len(features):
        return np.zeros(0)
    chosen = SiteLatents(one.active_NF[:, first.number], one.sequence, one.token_index)
    return assigned(correlations(chosen, features.rows)).score


def _counts(found: Matched, settings: Any) -> dict[str, Any]:
    """Pairs above the threshold and universal ones, of the data and of permuted rows."""
    kept = int(found.kept.sum())
    universal = int((found.kept & (found.pairs.score >= settings.universal)).sum())
    low, high = wilson(universal, found.n)
    return {
        "pairs": found.n, "threshold": found.threshold, "kept": kept, "universal": universal,
        "universal_low": low, "universal_high": high, "permuted_kept": found.control_kept,
        "permuted_universal": int((found.control >= max(settings.universal, found.threshold)).sum()),
        "mean_correlation": float(found.pairs.score.mean()),
        "permuted_correlation": float(found.control.mean()),
    }  # fmt: skip


def _shuffled_counts(control: Any, found: Matched, settings: Any) -> dict[str, Any]:
    if isinstance(control, str):
        return {"shuffled_missing": control}
    least = max(settings.universal, found.threshold)
    return {
        "shuffled_pairs": len(control),
        "shuffled_kept": int((control > found.threshold).sum()),
        "shuffled_universal": int((control >= least).sum()),
        "shuffled_correlation": float(control.mean()) if len(control) else 0.0,
    }


def _matches(
    found: Matched, sides: tuple[Features, Features], settings: Any
) -> list[dict[str, Any]]:
    """The pairs above the threshold."""
    return [
        {
            "feature": int(sides[0].number[one]), "other_feature": int(sides[1].number[two]),
            "correlation": score, "universal": score >= settings.universal,
        }
        for one, two, score, kept in zip(
            found.pairs.first, found.pairs.second, found.pairs.score.tolist(), found.kept.tolist(),
            strict=True,
        )
        if kept
    ]  # fmt: skip
