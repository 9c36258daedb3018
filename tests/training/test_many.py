"""``fit_many``: each SAE ends as if it were alone, and leaves without the others noticing."""

import pytest
import torch

import raysae
from raysae.sae import sae_config
from raysae.training.config import TrainingConfig
from raysae.training.rows import Rows

TRAINING = {"epochs": 4, "batch_size": 64, "lr": 3e-3, "evaluations": 2}
SMALL = {"variant": "topk", "d_sae": 32, "k": 3}


def rows(seed=0, count=500):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(40, 16, generator=torch.Generator().manual_seed(99))
    active = torch.rand(count, 40, generator=generator) < 0.08
    return (torch.rand(count, 40, generator=generator) * active) @ atoms


def same(one, other):
    ours, theirs = one.sae.state_dict(), other.sae.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert one.metrics == other.metrics
    assert [record["step"] for record in one.history] == [r["step"] for r in other.history]


def alone(config, x, training=TRAINING, **options):
    return raysae.fit(config, x, training, validation=rows(100), progress=False, **options)


def many(configs, x, training=TRAINING, **options):
    options = {"validation": rows(100), "progress": False, **options}
    return raysae.fit_many(configs, x, training, **options)


@pytest.mark.parametrize("variant", ["topk", "batch_topk", "gated"])
def test_each_on_its_own_rows_ends_as_if_alone(variant):
    config = {"variant": variant, "d_sae": 32, **({} if variant == "gated" else {"k": 3})}
    data = [rows(seed) for seed in range(5)]
    for fit, x in zip(many(config, data), data, strict=True):
        assert fit.stopped is None
        same(fit, alone(config, x))


def test_seeds_on_the_same_rows():
    x = rows()
    fits = many(SMALL, x, seeds=[0, 1, 2])
    for seed, fit in enumerate(fits):
        same(fit, alone(SMALL, x, seed=seed))
    assert not torch.equal(fits[0].sae.W_dec, fits[1].sae.W_dec)


class CountedRows(Rows):
    """Rows that count how often a batch is read."""

    reads = 0

    def gather(self, index_B):
        self.reads += 1
        return super().gather(index_B)


def test_a_gang_of_unlike_saes_reads_each_batch_once():
    x = CountedRows(rows())
    configs = [{"variant": "topk", "d_sae": 16 * n, "k": n} for n in (1, 2, 3)]
    configs.append({"variant": "relu_l1", "d_sae": 24})
    fits = many(configs, x)
    batches = 4 * 8
    assert batches <= x.reads <= batches + 3  # and those of scale and median
    for config, fit in zip(configs, fits, strict=True):
        same(fit, alone(config, rows()))


def test_learning_rates_and_lengths_of_their_own():
    x, own = rows(), [{**TRAINING, "lr": 1e-3}, {**TRAINING, "epochs": 2}, TRAINING]
    for fit, training in zip(many(SMALL, x, own), own, strict=True):
        same(fit, alone(SMALL, x, training))


def test_a_member_that_is_no_longer_finite_leaves_the_others_alone():
    x = rows()
    too_fast = {**TRAINING, "lr": 1e30, "warm_up": 0.0}
    bad, *others = many(SMALL, x, [too_fast, TRAINING, TRAINING], seeds=[0, 0, 1])
    assert "a lower lr" in bad.stopped
    assert all(bool(tensor.isfinite().all()) for tensor in bad.sae.state_dict().values())
    for seed, fit in enumerate(others):
        same(fit, alone(SMALL, x, seed=seed))


def test_a_degenerate_member_leaves():
    x = rows()
    dying = {"variant": "jumprelu", "d_sae": 32, "initial_threshold": 1000.0}
    bad, good = many([dying, SMALL], x)
    assert bad.stopped.startswith("degenerate at step ") and bad.metrics["degenerate"]
    same(good, alone(SMALL, x))


def test_who_is_not_kept_leaves_at_that_evaluation():
    x = rows()
    first, second = many(SMALL, x, seeds=[0, 1], keep=lambda number, record: number == 1)
    assert first.stopped == "not kept at step 16 of 32" and len(first.history) == 1
    assert second.stopped is None
    same(second, alone(SMALL, x, seed=1))


def test_a_budget_of_seconds_ends_a_member_with_what_it_has():
    (fit,) = many(SMALL, [rows()], max_seconds=0.0)
    assert fit.stopped.startswith("at step 1 of 32 it had trained for")
    assert fit.metrics["explained_variance"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"configs": [SMALL, SMALL], "x": [rows()]}, "equal lengths; found sae_configs 2, train 1"),
        ({"configs": []}, "nothing to train"),
        ({"configs": [SMALL, {**SMALL, "k": 99}]}, "SAE 1: k is 99, above d_sae 32"),
        ({"x": [rows(), rows()[:, :9]]}, r"SAE 1: training rows have d_in 9, validation rows 16"),
        ({"validation": None}, "SAE 0: validation is missing"),
    ],
)
def test_bad_arguments_are_refused_before_any_training(arguments, message):
    settings = {"configs": SMALL, "x": rows(), **arguments}
    with pytest.raises(ValueError, match=message):
        many(settings.pop("configs"), settings.pop("x"), **settings)


def test_configs_may_be_objects_and_threads_are_as_before():
    before = torch.get_num_threads()
    (fit,) = many(sae_config(SMALL), rows(), TrainingConfig(**TRAINING))
    same(fit, alone(SMALL, rows()))
    assert torch.get_num_threads() == before
