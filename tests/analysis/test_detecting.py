"""The parts of detection: figures with intervals, groups of repeats, nested folds, choosing columns."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from raysae.analysis.detecting.columns import chosen, dense_blocks, sparse_blocks
from raysae.analysis.detecting.examples import Examples, groups_of
from raysae.analysis.detecting.figures import rows_of
from raysae.analysis.detecting.inputs import (
    MAJORITY,
    RAW,
    SAE,
    Prober,
    TooFewRows,
    above_base,
    sparse_kind,
)
from raysae.analysis.detecting.probes import OUTER, Labelling, Moments
from raysae.analysis.detecting.scores import (
    Bootstrap,
    auroc,
    balanced_accuracy,
    brier,
    calibration_error,
    difference,
    mean_of,
    reliability,
    weighted_auroc,
)

N, M, PLANTED = 300, 40, 17
WHERE = {"layer": 0, "position": "-1", "hookpoint": None}


def nothing():
    """No worker waits here."""


def world(seed=0, planted=True):
    """Sparse columns of noise, and labels that follow one of them (or nothing)."""
    random = np.random.default_rng(seed)
    x_NM = random.exponential(size=(N, M)) * (random.random((N, M)) < 0.3)
    label_N = random.random(N) < 0.4
    if planted:
        x_NM[:, PLANTED] = label_N * (1 + random.random(N)) * (random.random(N) < 0.9)
    group_N = np.arange(N) // 2 * 2  # pairs
    return x_NM.astype(np.float32), Examples(np.arange(N), label_N, group_N, "it", "true", {})


def detected(x_NM, examples, permutations=1, kinds=(SAE,), most=M):
    prober = Prober(examples, permutations, 0, "item", nothing)
    rows = np.arange(N)
    found = prober.begin(rows, "here")
    for kind, columns in zip(kinds, x_NM if len(kinds) > 1 else [x_NM], strict=True):
        prober.add(
            found, kind, chosen(dense_blocks(columns, rows), (N, M), prober.labellings, most)
        )
    prober.add_majority(found)
    return {row["input"]: row for row in rows_of(found, WHERE, 200, 0)}, found


@pytest.fixture(scope="module")
def planted():
    return detected(*world(), permutations=5)


def test_the_probe_on_one_feature_finds_the_planted_one(planted):
    rows, found = planted
    one = rows[sparse_kind(SAE, 1)]
    assert found.picked[SAE] == [PLANTED] * OUTER
    assert one["auroc"] > 0.9 and one["auroc_low"] > 0.85
    assert rows[SAE]["auroc_low"] > 0.8
    assert rows[SAE]["brier"] < rows[MAJORITY]["brier"]


def test_noise_gives_chance_within_its_interval():
    rows, _ = detected(*world(7, planted=False), permutations=1)
    for kind in (SAE, *(sparse_kind(SAE, count) for count in (1, 2, 5, 10))):
        assert rows[kind]["auroc_low"] < 0.5 < rows[kind]["auroc_high"], kind


def test_permuted_labels_give_chance_where_the_labels_do_not(planted):
    rows, found = planted
    for kind in (SAE, sparse_kind(SAE, 1)):
        assert rows[kind]["permuted_low"] < 0.5 < rows[kind]["permuted_high"]
        assert len(found.permuted[kind]) == rows[kind]["permutations"] == 5
        assert rows[kind]["permuted_high"] < rows[kind]["auroc_low"]


def test_the_majority_knows_nothing(planted):
    rows, _ = planted
    assert rows[MAJORITY]["auroc"] == 0.5
    assert rows[MAJORITY]["balanced_accuracy"] == 0.5
    assert rows[MAJORITY]["permuted"] is None


def test_the_difference_from_raw_is_paired():
    x_NM, examples = world()
    same, _ = detected([x_NM, x_NM], examples, kinds=(SAE, RAW))
    assert [same[SAE][f"minus_raw{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert same[RAW]["minus_raw"] is None
    noise, _ = world(1, planted=False)
    better, _ = detected([x_NM, noise], examples, kinds=(SAE, RAW))
    assert better[SAE]["minus_raw_low"] > 0.2


def test_a_feature_that_few_columns_leave_out_is_still_found_by_the_sparse_probe():
    x_NM, examples = world()
    x_NM = x_NM.copy()
    x_NM[:, PLANTED] *= 0.5
    others = np.arange(M) != PLANTED
    x_NM[:, others] = np.tile(x_NM[:, others].mean(axis=1, keepdims=True), (1, M - 1)) * 0.01
    x_NM[:, 0] = np.random.default_rng(0).normal(scale=50, size=N)
    x_NM[:, 1] = np.random.default_rng(1).normal(scale=50, size=N)
    prober = Prober(examples, 2, 0, "item", nothing)
    rows = np.arange(N)
    columns = chosen(dense_blocks(x_NM, rows), (N, M), prober.labellings, 2)
    assert columns.number_U[columns.wide[0][0]].tolist() == [0, 1]
    assert PLANTED in columns.number_U[columns.narrow[0][0]]


def test_columns_are_chosen_on_the_training_part_alone():
    x_NM, examples = world(planted=False)
    labelling = Labelling.of(examples.label_N, examples.group_N, 0)
    moments = Moments.none([labelling], M)
    for rows in np.array_split(np.arange(N), 4):
        moments.add(rows, x_NM[rows])
    for fold in range(OUTER):
        train = labelling.fold_N != fold
        label = examples.label_N[train]
        means = [x_NM[train][label == one].mean(axis=0, dtype=float) for one in (True, False)]
        np.testing.assert_allclose(moments.difference(0, fold), abs(means[0] - means[1]), atol=1e-6)
        np.testing.assert_allclose(moments.variance(0, fold), x_NM[train].var(axis=0), rtol=1e-4)


def test_what_a_probe_learns_from_never_holds_a_repeat_of_what_it_predicts():
    _, examples = world()
    prober = Prober(examples, 3, 0, "item", nothing)
    for labelling in prober.labellings:
        folds = labelling.fold_N.reshape(-1, 2)
        assert (folds[:, 0] == folds[:, 1]).all()
        assert set(folds.ravel().tolist()) == set(range(OUTER))


def test_blocks_give_the_same_columns_in_whatever_parts():
    from scipy.sparse import csr_array

    x_NM, examples = world()
    prober = Prober(examples, 2, 0, "item", nothing)
    rows = np.arange(N)
    one = chosen(dense_blocks(x_NM, rows), (N, M), prober.labellings, 10)
    other = chosen(sparse_blocks(csr_array(x_NM), rows), (N, M), prober.labellings, 10)
    assert np.array_equal(one.x_NU, other.x_NU)
    assert np.array_equal(one.number_U, other.number_U)


def test_too_few_of_a_class_are_refused():
    _, examples = world()
    prober = Prober(examples, 2, 0, "item", nothing)
    with pytest.raises(TooFewRows, match="layer 1: of the examples that have rows there, 0 are of"):
        prober.begin(np.flatnonzero(examples.label_N)[:4], "layer 1")


@pytest.fixture
def scored():
    random = np.random.default_rng(3)
    label = random.random(400) < 0.3
    score = (random.normal(size=400) + label).round(1)  # with ties
    return label, 1 / (1 + np.exp(-score))


def test_figures_are_those_of_scikit_learn(scored):
    label, score = scored
    once = np.ones((1, 400))
    assert auroc(label, score) == pytest.approx(roc_auc_score(label, score))
    accuracy = balanced_accuracy(label, score > 0.6)(once)[0]
    assert accuracy == pytest.approx(balanced_accuracy_score(label, score > 0.6))
    assert brier(label, score)(once)[0] == pytest.approx(brier_score_loss(label, score))


def test_weights_are_repetitions(scored):
    label, score = scored
    weight = np.random.default_rng(0).integers(0, 4, 400)
    repeated = np.repeat(np.arange(400), weight)
    assert weighted_auroc(label, score)(weight[None].astype(float))[0] == pytest.approx(
        roc_auc_score(label[repeated], score[repeated])
    )


def test_the_bootstrap_draws_groups_and_holds_the_truth(scored):
    label, score = scored
    alone = Bootstrap(np.arange(400), 500, 0).estimate(weighted_auroc(label, score))
    assert alone.low < alone.value < alone.high
    error = np.sqrt(alone.value * (1 - alone.value) / (0.3 * 400))  # roughly
    assert 0.4 * error < alone.error < 1.6 * error
    doubled = Bootstrap(np.arange(800) // 2, 500, 0).estimate(
        weighted_auroc(np.repeat(label, 2), np.repeat(score, 2))
    )
    assert doubled.error > 0.8 * alone.error  # as rows of their own it were 0.7 of it
    paired = difference(weighted_auroc(label, score), weighted_auroc(label, score))
    assert Bootstrap(np.arange(400), 100, 0).estimate(paired).error == 0


def test_calibration_of_perfect_probabilities():
    score = np.repeat([0.25, 0.75], 400)
    label = np.tile([True, False, False, False], 200)
    label[400:] = ~label[400:]
    bins = reliability(label, score)
    assert [(one.n, one.predicted, one.observed) for one in bins] == [
        (400, 0.25, 0.25), (400, 0.75, 0.75),
    ]  # fmt: skip
    assert calibration_error(bins) == 0
    assert calibration_error(reliability(~label, score)) == 0.5


def test_the_mean_of_permutations_has_students_interval():
    found = mean_of([0.48, 0.5, 0.52])
    assert found.value == pytest.approx(0.5)
    assert found.high - found.value == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-5)
    assert np.isnan(mean_of([0.5]).low)


def test_predictions_of_the_base_rate_rank_nobody():
    base = np.array([0.2, 0.3, 0.2])
    assert above_base(base, base).tolist() == [0, 0, 0]


def test_near_repeats_share_a_group():
    texts = [
        "Ana has 23 apples. Ana buys 14 more. How many apples are there now?",
        "Ben takes the train to the sea and counts the boats in the harbour.",
        "ana has 7 apples. Ana buys 1 more.  How many apples are there now?",
        "Ben takes the train to the sea and counts the boats in the harbour.",
        "Nothing of this is like the others at all.",
    ]
    assert groups_of(texts).tolist() == [0, 1, 0, 1, 4]
