"""The labelled sequences that probes learn from: a sample of the store's, in groups of repeated texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.attributes import (
    MODEL_CORRECT,
    attribute_names,
    check_names,
    labels_of,
    read_attributes,
)
from raysae.analysis.detecting.probes import OUTER
from raysae.errors import UserError
from raysae.identity import identifier
from raysae.storage.files import read_json
from raysae.transformer.repeats import NEARLY, same_text, signature

if TYPE_CHECKING:
    from raysae.analysis.subject import Subject
    from raysae.transformer.sequence import TokenSequence

LEAST = 50
"""Sequences of a class, at least."""
GENERATION = 1
"""To be raised when other examples are made than before."""


@dataclass(frozen=True)
class Wanted:
    """Which label of which sequences."""

    label: str
    """A column or attribute."""
    positive: str | None
    """Of an attribute of texts, the one that is the positive class."""
    splits: tuple[str, ...]
    most: int
    """Sequences, at most."""
    new_tokens: int
    """Tokens of an answer of the model, at most, for ``model_correct``."""


@dataclass(frozen=True)
class Examples:
    """The sequences with their labels, sorted by number."""

    sequence_N: NDArray[np.int64]
    label_N: NDArray[np.bool_]
    group_N: NDArray[np.int64]
    """Sequences with the same text, or nearly the same, have the same number."""
    name: str
    meaning: str
    """What the positive class is."""
    left_out: dict[str, int]
    """Sequences without a label, by the reason."""

    @property
    def positives(self) -> int:
        """Sequences of the positive class."""
        return int(self.label_N.sum())

    def record(self) -> dict[str, Any]:
        """The examples as JSON keeps them."""
        return {
            "sequence": self.sequence_N.tolist(), "label": self.label_N.tolist(),
            "group": self.group_N.tolist(), "name": self.name, "meaning": self.meaning,
            "left_out": self.left_out,
        }  # fmt: skip

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Examples":
        """The examples of ``record``. Raises KeyError or TypeError on another form."""
        return cls(
            np.array(record["sequence"], np.int64), np.array(record["label"], bool),
            np.array(record["group"], np.int64), record["name"], record["meaning"],
            dict(record["left_out"]),
        )  # fmt: skip


def label_name(subject: "Subject", label: str | None) -> str:
    """The label that is asked for, or ``model_correct`` where the texts have questions and answers.

    Raises UserError when the texts have no such column or attribute, or none was named and there are no
    questions.
    """
    if label is not None:
        check_names(subject, [label], "detection.label")
        return label
    names = attribute_names(subject)
    if MODEL_CORRECT in names:
        return MODEL_CORRECT
    raise UserError(
        f"the texts of {subject.source.dataset!r} have no questions with answers, so whether the model "
        f"is right is not known; name a label with detection.label=NAME, one of {', '.join(names)}"
    )


def examples_of(
    subject: "Subject", wanted: Wanted, alive: Callable[[], None] = lambda: None
) -> Examples:
    """The examples, from their file where they were made before (``analysis/detection/examples-*.json``).

    Raises UserError when there are too few of a class, with what to give.
    """
    made = {
        "generation": GENERATION, "store": subject.store_digest, "seed": subject.seed,
        "label": wanted.label, "positive": wanted.positive, "splits": list(wanted.splits),
        "most": wanted.most, "new_tokens": wanted.new_tokens,
    }  # fmt: skip
    file = subject.files.path / "analysis" / "detection" / f"examples-{identifier(made)}.json"
    if not file.is_file():
        subject.files.fetch(file)
    found = _kept(file)
    if found is None:
        found = _examples(subject, wanted, alive)
        subject.files.write_json(file, found.record())
    _check_classes(found, wanted)
    return found


def _kept(file: Any) -> Examples | None:
    try:
        return Examples.of_record(read_json(file)) if file.is_file() else None
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _examples(subject: "Subject", wanted: Wanted, alive: Callable[[], None]) -> Examples:
    sample = _sample(subject, wanted, alive)
    names = [wanted.label]
    attribute = read_attributes(subject, names, sample, alive, wanted.new_tokens)[wanted.label]
    labels = labels_of(attribute, wanted.positive)
    labelled = [one for one in sample if one.sequence in labels.values]
    texts = [one.text for one in labelled]
    return Examples(
        np.array([one.sequence for one in labelled], np.int64),
        np.array([labels.values[one.sequence] for one in labelled], bool),
        groups_of(texts, alive), labels.name, labels.meaning, dict(labels.left_out),
    )  # fmt: skip


def _sample(subject: "Subject", wanted: Wanted, alive: Callable[[], None]) -> "list[TokenSequence]":
    """At most ``wanted.most`` sequences, drawn by the seed, sorted by number."""
    drawn: list[tuple[int, TokenSequence]] = []
    for split in wanted.splits:
        for one in subject.sequences(split):
            drawn.append((_draw(one.sequence, subject.seed), one))
            if len(drawn) > 2 * wanted.most:
                drawn = sorted(drawn, key=lambda pair: pair[0])[: wanted.most]
            alive()
    kept = sorted(drawn, key=lambda pair: pair[0])[: wanted.most]
    return sorted((one for _, one in kept), key=lambda one: one.sequence)


def _draw(sequence: int, seed: int) -> int:
    """A number that decides whether a sequence is in the sample: the same in whatever order they come."""
    from hashlib import sha256

    return int.from_bytes(sha256(f"{seed}/{sequence}".encode()).digest()[:8])


def groups_of(texts: Sequence[str], alive: Callable[[], None] = lambda: None) -> NDArray[np.int64]:
    """The group of each text, ``[N]``: texts that are the same or nearly the same (``NEARLY`` of their
    pairs of neighbouring words, all numbers alike), directly or through others, share a number."""
    plain = [same_text(text) for text in texts]
    signature_NH = np.stack([signature(text) for text in plain]) if plain else np.zeros((0, 1))
    parent = list(range(len(texts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for number in range(len(texts)):
        alike_N = (signature_NH[number + 1 :] == signature_NH[number]).mean(axis=1) >= NEARLY
        for other in np.flatnonzero(alike_N) + number + 1:
            first, second = sorted((root(number), root(int(other))))
            parent[second] = first
        alive()
    return np.array([root(number) for number in range(len(texts))], np.int64)


def _check_classes(found: Examples, wanted: Wanted) -> None:
    """Raise UserError when a class has too few sequences, or too few that are not repeats of others."""
    n, few = len(found.label_N), min(found.positives, len(found.label_N) - found.positives)
    counted = f"{n:,} sequences, {found.positives:,} of them positive ({found.meaning})"
    if few < LEAST:
        raise UserError(
            f"detection.label {found.name!r}: has {counted}; at least {LEAST} of either class are "
            f"needed: read more with detection.sequences (now {wanted.most:,}) or detection.splits, "
            "extract more texts (source.sequences), or name another label"
        )
    for label in (True, False):
        groups = len(np.unique(found.group_N[found.label_N == label]))
        if groups < 2 * OUTER:
            raise UserError(
                f"detection.label {found.name!r}: has {counted}, but the texts of one class are nearly "
                f"all repeats of one another ({groups} different ones; at least {2 * OUTER} are needed, "
                "so that no text is both learned from and predicted); give other texts"
            )
