"""Texts that repeat: exactly, nearly, and at the start; in which splits they are, and what is counted."""

import numpy as np
import pytest

from raysae.activations.splits import split_of_key
from raysae.transformer import repeats
from raysae.transformer.repeats import RepeatedRows, Repeats, prefix_hashes, same_text

LONG = (
    "The river rose in the night and by morning the lower fields were gone under brown water, so the "
    "two brothers drove the cattle up to the old mill and waited there for the rain to stop."
)


def record(texts, splits=None):
    found = Repeats()
    for i, text in enumerate(texts):
        found.add(same_text(text), splits[i] if splits else 0)
    return found.record()


@pytest.mark.parametrize(
    "other",
    [
        LONG + " ",
        LONG.upper(),
        LONG.replace(" ", "  "),
        LONG.replace("river", "rivér"),
        "\n" + LONG,
    ],
    ids=["space after", "capitals", "double spaces", "accent", "line feed before"],
)
def test_texts_that_differ_in_form_alone_are_the_same_and_in_one_split(other):
    assert same_text(other) == same_text(LONG)
    assert record([LONG, other])["repeated"] == 1


@pytest.mark.parametrize(
    ("texts", "near"),
    [
        ([LONG, LONG.replace("brown", "grey")], 1),
        ([LONG, LONG + " Nobody slept."], 1),
        ([LONG, LONG.replace(",", "").replace("-", "")], 1),
        ([f"Tom has {i} apples and buys {i + 3} more. How many has he?" for i in range(50)], 49),
        ([LONG, " ".join(reversed(LONG.split()))], 0),
        ([LONG, "Something else entirely happened on the following day in another town."], 0),
    ],
)
def test_near_duplicates_are_counted(texts, near):
    assert record(texts)["near_duplicates"] == near


def test_unrelated_texts_are_no_near_duplicates():
    rng = np.random.default_rng(0)
    texts = [
        " ".join(f"w{chr(97 + i % 26)}{i}" for i in rng.integers(3000, size=60)) for _ in range(500)
    ]
    assert record([t.replace("1", "x") for t in texts])["near_duplicates"] <= 2


def test_held_out_texts_that_nearly_repeat_a_training_text_are_counted():
    texts = [
        LONG,
        LONG.replace("brown", "grey"),
        LONG + " Nobody slept.",
        "Quite another thing.",
    ]
    assert record(texts, [0, 1, 2, 1])["near_training"] == 2
    assert record(texts, [1, 0, 2, 0])["near_training"] == 2
    assert record(texts, [1, 2, 2, 0])["near_training"] == 0


def test_the_fractions_of_the_splits_hold_over_texts():
    codes = [split_of_key(f"text {i}", 0.2, 0.1) for i in range(5000)]
    shares = np.bincount(codes, minlength=3) / len(codes)
    assert np.abs(shares - [0.7, 0.2, 0.1]).max() < 0.02


def test_rows_after_the_same_tokens_are_found_in_both_splits():
    rows = RepeatedRows()
    ids = [
        np.array([5, 6, 7], np.int32),
        np.array([5, 6, 8], np.int32),
        np.array([6, 5, 7], np.int32),
    ]
    for split, sequence in zip((0, 1, 1), ids, strict=True):
        rows.add(prefix_hashes(sequence), split)
    assert rows.share() == pytest.approx(
        2 / 6
    )  # [5] and [5, 6]; not [6, 5], which is another order


def test_of_many_rows_a_sample_gives_the_share(monkeypatch):
    monkeypatch.setattr(repeats, "MOST_ROWS", 2_000)
    rows, rng = RepeatedRows(), np.random.default_rng(0)
    trained = rng.integers(2**63, size=20_000, dtype=np.uint64)
    rows.add(trained, 0)
    rows.add(np.concatenate([trained[:8_000], trained[:2_000] + np.uint64(1)]), 1)
    assert rows.kept <= 2_000 and rows.step > 1
    assert rows.share() == pytest.approx(0.8, abs=0.1)


def test_repeats_in_another_split_are_counted():
    """A group decides the split, and the same text is in two groups."""
    found = record(["same", "same", "same", "other"], [0, 1, 0, 2])
    assert (found["repeated"], found["repeated_apart"]) == (2, 1)
