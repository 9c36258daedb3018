"""Training: it recovers a known dictionary, repeats to the bit, and stops before it spoils weights."""

import math

import pytest
import torch
from safetensors.torch import save_file

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.errors import UserError
from raysae.sae.config import TopKConfig
from raysae.sae.dictionary import mmcs
from raysae.sae.metrics import evaluate
from raysae.training import NonFiniteLossError, Trainer, TrainingConfig
from raysae.training.initialisation import geometric_median
from raysae.training.iterator_rows import IteratorRows
from raysae.training.rows import Rows
from raysae.training.statistics import input_statistics
from raysae.training.trainer import evaluation_rows


@pytest.fixture(scope="module")
def rows():
    return SuperpositionWorld(d_in=16, atoms=32, p=0.1).rows(1000)


QUICK = TrainingConfig(epochs=3, batch_size=64, lr=1e-3, evaluations=4)
SMALL = TopKConfig(d_sae=32, k=3)


def test_the_same_arguments_give_the_same_bits(rows):
    first, again = (raysae.fit(SMALL, rows, QUICK, validation=rows[:100], seed=7) for _ in range(2))
    assert first.metrics == again.metrics and first.history == again.history
    for name, tensor in first.sae.state_dict().items():
        assert torch.equal(tensor, again.sae.state_dict()[name])
    other = raysae.fit(SMALL, rows, QUICK, validation=rows[:100], seed=8)
    assert not torch.equal(other.sae.W_dec, first.sae.W_dec)


def test_how_the_rows_are_cut_into_blocks_never_shows(rows):
    whole = raysae.fit(SMALL, rows, QUICK, validation=rows[:100])
    parts = raysae.fit(SMALL, list(rows.split(170)), QUICK, validation=list(rows[:100].split(30)))
    assert whole.metrics == parts.metrics
    assert torch.equal(whole.sae.W_dec, parts.sae.W_dec)


def test_the_figures_are_those_of_the_sae_that_comes_back(rows):
    fit = raysae.fit(SMALL, rows, QUICK, validation=rows[:300])
    again = evaluate(lambda x: fit.sae(x)[:2], [rows[:300]]).metrics()
    assert again["explained_variance"] == pytest.approx(fit.metrics["explained_variance"], abs=1e-7)
    assert fit.metrics["l0"] <= SMALL.k
    assert {row["step"] for row in fit.history} == {12, 24, 36, 48}
    assert fit.history[-1]["tokens"] == 3000 == fit.metrics["dead_window_tokens"]


def test_training_improves_on_the_start(rows):
    fit = raysae.fit(SMALL, rows, QUICK, validation=rows[:300])
    assert fit.metrics["explained_variance"] > fit.history[0]["explained_variance"] > 0


def test_decoder_rows_keep_unit_norm(rows):
    fit = raysae.fit(SMALL, rows, QUICK, validation=rows[:100])
    assert torch.allclose(fit.sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-6)


def test_a_non_finite_loss_stops_before_the_update(rows):
    poisoned = rows.clone()
    trainer = Trainer(SMALL, QUICK, Rows(poisoned), Rows(rows[:100]))
    poisoned[500:] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step"):
        list(trainer.rounds())
    assert all(tensor.isfinite().all() for tensor in trainer.sae().state_dict().values())


def test_data_without_variance_trains_without_nan():
    ones = torch.ones(200, 16)
    fit = raysae.fit(SMALL, ones, QUICK, validation=ones)
    assert all(tensor.isfinite().all() for tensor in fit.sae.state_dict().values())


@pytest.mark.parametrize("added", [0.0, 3.0, 1e4])
def test_inputs_have_mean_zero_and_mean_square_norm_d_in(rows, added):
    moved = rows.double() + added
    found = input_statistics(Rows(moved), Rows(moved[:100]), 0, TrainingConfig())
    inputs = (moved - found.mean_D) * found.scale
    assert float(inputs.mean(dim=0).norm()) < 1e-9
    assert float(inputs.square().sum(dim=1).mean()) == pytest.approx(16, rel=1e-9)


def test_the_geometric_median_shrugs_off_outliers():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    x[:20] += 1000
    assert geometric_median(x).norm() < 0.5 < x.mean(dim=0).norm()


def test_the_learning_rate_rises_and_falls():
    config = TrainingConfig(lr=1.0)
    fractions = [config.lr_fraction(step, 100) for step in range(100)]
    assert fractions[0] == pytest.approx(0.2) and max(fractions) == fractions[50] == 1.0
    assert fractions[99] == pytest.approx(0.05)


def test_the_automatic_learning_rate_follows_the_dictionary():
    assert TrainingConfig().peak_lr(2**14) == pytest.approx(2e-4)
    assert TrainingConfig().peak_lr(2**12) == pytest.approx(4e-4)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"lr": -1.0}, {"warm_up": 0.9}, {"batch_size": 0}])
def test_impossible_trainings_are_refused(bad):
    with pytest.raises(ValueError):
        TrainingConfig(**bad)


def test_rows_that_do_not_fit_together_are_refused(rows):
    with pytest.raises(ValueError, match="d_in"):
        raysae.fit(SMALL, rows, QUICK, validation=torch.zeros(10, 15))
    with pytest.raises(ValueError, match="no rows"):
        raysae.fit(SMALL, rows[:0], QUICK, validation=rows)


SETTINGS = {"batch_size": 64, "lr": 1e-3, "evaluations": 4}


def fit_of(train, **settings):
    return raysae.fit(
        SMALL, train, {**SETTINGS, **settings}, validation=VALIDATION, seed=7, progress=False
    )


VALIDATION = SuperpositionWorld(d_in=16, atoms=32, p=0.1).rows(200, part=1)


def test_tokens_stand_in_for_epochs(rows):
    by_epochs, by_tokens = fit_of(rows, epochs=3), fit_of(rows, tokens=3000)
    assert torch.equal(by_epochs.sae.W_dec, by_tokens.sae.W_dec)
    part = fit_of(rows, tokens=1500)
    assert part.history[-1]["tokens"] == 1000 + 8 * 64 and part.history[-1]["step"] == 24
    assert part.metrics["dead_window_tokens"] == 1512
    assert fit_of(rows, tokens=100).history[-1]["step"] == 2


def test_an_iterator_is_trained_on_as_it_comes(rows):
    taken = []

    def batches():
        while True:
            for part in rows.split(30):
                taken.append(len(part))
                yield part

    fit = fit_of(batches(), tokens=5000, shuffle_rows=256)
    assert fit.history[-1]["tokens"] == 5000 and fit.history[-1]["step"] == 79
    assert sum(taken) < 5000 + 2 * 30
    assert fit.metrics["explained_variance"] > fit.history[0]["explained_variance"] > 0
    again = fit_of(iter(rows.repeat(5, 1).split(250)), tokens=5000, shuffle_rows=256)
    assert torch.equal(again.sae.W_dec, fit.sae.W_dec)  # how it is cut into batches never shows


def test_an_iterator_is_shuffled_within_windows_and_resumed(rows):
    numbered = torch.arange(1000.0)[:, None].expand(-1, 4)

    def stream(taken=0):
        streamed = IteratorRows(iter(numbered.split(77)), 1000)
        return list(streamed.epoch(3, 0, 64, shuffle_rows=200, taken=taken))

    batches = stream()
    assert [len(batch) for batch in batches] == [64] * 15 + [40]
    first = torch.cat(batches)[:200, 0]
    assert first.tolist() != sorted(first.tolist()) and set(first.tolist()) == set(range(200))
    assert sorted(torch.cat(batches)[:, 0].tolist()) == list(range(1000))
    assert torch.equal(torch.cat(stream(taken=5 * 64)), torch.cat(batches[5:]))


def test_an_iterator_that_ends_early_keeps_what_was_trained(rows):
    with pytest.warns(UserWarning, match=r"ended 500 rows before the 1,500"):
        fit = fit_of(iter(rows.split(100)), tokens=1500)
    assert fit.history[-1]["tokens"] == 1000
    assert fit.metrics["explained_variance"] > 0


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "gave none"),
        ([torch.zeros(3)], r"gave \[3\]"),
        ([torch.zeros(3, 16), torch.zeros(3, 15)], r"must be a tensor \[rows, 16\]"),
        (["rows"], "gave str"),
    ],
)
def test_an_iterator_of_something_else_is_refused(batches, words):
    with pytest.raises(ValueError, match=words):
        fit_of(iter(batches), tokens=100)


def test_what_is_missing_is_said(rows):
    with pytest.raises(ValueError, match="how many tokens"):
        fit_of(iter([rows]))
    with pytest.raises(ValueError, match="validation is missing"):
        raysae.fit(SMALL, rows)
    with pytest.raises(ValueError, match="training has no setting 'epoch'"):
        fit_of(rows, epoch=3)


def test_a_site_brings_its_own_rows(tmp_path):
    world = SuperpositionWorld(d_in=16, atoms=32, p=0.1)
    write_synthetic_store(tmp_path / "store", world, 2000)
    store = raysae.open_store(tmp_path / "store")
    site = store.sites[0]
    by_site = raysae.fit(SMALL, store.site(site), SETTINGS, progress=False)
    by_rows = raysae.fit(
        SMALL, store.train(site), SETTINGS, validation=store.validation(site), progress=False
    )
    streamed = raysae.fit(SMALL, store.site(site, memory=1000), SETTINGS, progress=False)
    of_truth = ("mmcs", "recovered", "mcc", "uniqueness", "f1", "f1_precision", "f1_recall")
    found = {key: by_site.metrics.pop(key) for key in of_truth}
    assert (found["mmcs"], found["recovered"]) == mmcs(world.truth(), by_site.sae.W_dec)
    assert found == {key: streamed.metrics.pop(key) for key in found}
    assert by_site.metrics == by_rows.metrics == streamed.metrics
    with pytest.raises(UserError, match="no site layer 9"):
        store.site(raysae.Site(9, "all"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no readable 'atoms'"),
        ({"atom": torch.zeros(3, 16)}, "no readable 'atoms'"),
        ({"atoms": torch.zeros(3, 15)}, r"expected \[atoms, 16\]"),
    ],
)
def test_a_damaged_truth_is_named(tmp_path, content, words):
    write_synthetic_store(tmp_path / "store", SuperpositionWorld(d_in=16, atoms=32), 100)
    truth = tmp_path / "store" / "truth.safetensors"
    truth.write_bytes(content) if isinstance(content, bytes) else save_file(content, truth)
    store = raysae.open_store(tmp_path / "store")
    with pytest.raises(UserError, match=words):
        store.site(store.sites[0])


def test_the_bar_shows_progress_and_can_be_turned_off(rows, capsys):
    raysae.fit(SMALL, rows, SETTINGS, validation=VALIDATION)
    shown = capsys.readouterr().err
    assert "topk 32" in shown and "EV=" in shown and "1.00k/1.00k" in shown
    fit_of(rows)
    assert capsys.readouterr().err == ""


def test_an_sae_whose_latents_are_all_dead_is_degenerate(rows):
    config = {"variant": "jumprelu", "d_sae": 32, "initial_threshold": 1000.0}
    fit = raysae.fit(config, rows, SETTINGS, validation=VALIDATION, progress=False)
    assert fit.metrics["degenerate"] and fit.metrics["l0"] == 0
    assert math.isnan(fit.metrics["explained_variance"]) and math.isnan(fit.metrics["fvu"])
    assert fit.metrics["dead_fraction_validation"] == 1.0


def test_an_sae_says_how_it_was_trained(rows):
    fit = fit_of(rows, epochs=2)
    training = fit.sae.metadata["training"]
    assert (training["steps"], training["tokens"], training["seed"]) == (32, 2000, 7)
    assert fit.sae.metadata["metrics"] == fit.metrics


def test_evaluations_on_a_gpu_have_at_least_the_rows_of_a_training_batch():
    assert [evaluation_rows(d_sae, 64) for d_sae in (16, 1024, 24_576)] == [4096, 256, 64]
    assert evaluation_rows(24_576, 2048) == 2048 and evaluation_rows(24_576, 8192) == 4096
