"""``fit_many``: each SAE ends as if it were alone, and leaves without the others noticing."""

import pytest
import torch

import raysae
from raysae.sae import sae_config
from raysae.training.config import TrainingConfig
from raysae.training.ensemble import engine, program
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


def test_unlike_saes_on_the_same_rows_read_each_batch_once():
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


def test_a_member_that_is_not_kept_leaves_at_that_evaluation():
    x = rows()
    first, second = many(SMALL, x, seeds=[0, 1], keep=lambda number, record: number == 1)
    assert first.stopped == "stopped by keep at step 16 of 32" and len(first.history) == 1
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


def near(one, other, tolerance=1e-5):
    for name, tensor in one.sae.state_dict().items():
        assert torch.allclose(tensor, other.sae.state_dict()[name], atol=tolerance), name
    for name, value in one.metrics.items():
        assert other.metrics[name] == pytest.approx(value, abs=1e-4), name


PACKED = {**TRAINING, "compiled": False, "aux_window_tokens": 128}


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_a_packed_program_is_its_members_alone(variant):
    """Rows, seeds, learning rates and k of their own, with dead latents for AuxK."""
    data = [rows(seed) for seed in range(3)]
    configs = [{"variant": variant, "d_sae": 64, "k": k} for k in (2, 3, 5)]
    trainings = [{**PACKED, "lr": lr} for lr in (1e-3, 3e-3, 2e-3)]
    fits = many(configs, data, trainings, seeds=[3, 4, 5], pack=True)
    for number, fit in enumerate(fits):
        own = alone(configs[number], data[number], trainings[number], seed=3 + number)
        near(fit, own, 1e-4)
        assert [r["tokens"] for r in fit.history] == [r["tokens"] for r in own.history]


def test_a_packed_program_trains_seeds_on_shared_rows_and_others_are_trained_beside():
    x = rows()
    configs = [SMALL, SMALL, {"variant": "relu_l1", "d_sae": 24}]
    fits = many(configs, x, PACKED, seeds=[0, 1, 2], pack=True)
    for seed, (config, fit) in enumerate(zip(configs, fits, strict=True)):
        near(fit, alone(config, x, PACKED, seed=seed), 1e-4)


def test_a_member_that_leaves_a_packed_program_leaves_the_others_as_they_are_to_the_bit():
    x = rows()
    too_fast = {**PACKED, "lr": 1e30, "warm_up": 0.0}
    whole = many(SMALL, x, [PACKED, PACKED, PACKED], seeds=[0, 0, 1], pack=True)
    bad, *others = many(SMALL, x, [too_fast, PACKED, PACKED], seeds=[0, 0, 1], pack=True)
    assert "not finite at step" in bad.stopped
    assert all(bool(tensor.isfinite().all()) for tensor in bad.sae.state_dict().values())
    for fit, expected in zip(others, whole[1:], strict=True):
        same(fit, expected)
    first, second = many(
        SMALL, x, PACKED, seeds=[0, 1], pack=True, keep=lambda number, record: number == 1
    )
    assert first.stopped == "stopped by keep at step 16 of 32" and second.stopped is None
    near(second, whole[2])
    assert first.metrics["explained_variance"] == first.history[-1]["explained_variance"]


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ValueError, match=r"GiB to train; cpu has .* a d_sae of [\d,]+ fits"):
        many({"variant": "topk", "d_sae": 2**40, "k": 3}, rows())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_program_on_a_gpu_is_the_same():
    data = [rows(seed) for seed in range(4)]
    fits = many(SMALL, data, {**PACKED, "epochs": 12}, device="cuda")
    on_cpu = many(SMALL, data, {**PACKED, "epochs": 12}, pack=True)
    for fit, expected in zip(fits, on_cpu, strict=True):
        near(fit, expected, 1e-3)


class LostRows(Rows):
    """Rows that can no longer be read from the second epoch on."""

    def epoch(self, seed, epoch, *args, **kwargs):
        if epoch == 1:
            raise OSError("the disk is gone")
        return super().epoch(seed, epoch, *args, **kwargs)


def test_rows_that_cannot_be_read_end_the_call():
    with pytest.raises(OSError, match="the disk is gone"):
        many([SMALL, SMALL], [rows(), LostRows(rows())])


def test_an_iterator_serves_members_on_the_same_batches_and_no_others():
    def batches():
        return iter(rows(count=640).split(32))

    settings = {"tokens": 640, "batch_size": 64, "lr": 1e-3, "shuffle_rows": 128}
    configs = [SMALL, {**SMALL, "k": 2}]
    for config, fit in zip(configs, many(configs, batches(), settings), strict=True):
        same(fit, alone(config, batches(), settings))
    with pytest.raises(ValueError, match="an iterator can be trained on once"):
        many(SMALL, batches(), settings, seeds=[0, 1])


def test_a_packed_program_has_its_time_measured_and_keeps_to_a_budget():
    x = rows()
    fits = many(SMALL, x, PACKED, seeds=[0, 1], pack=True, max_seconds=0.0)
    assert all(fit.stopped.startswith("at step 1 of 32 it had trained for") for fit in fits)


def out_of_memory_from(patch, call):
    """The packed steps from that number on find no memory."""
    made = []

    class Step(program.PackedStep):
        def __init__(self, *args, **kwargs):
            made.append(None)
            if len(made) >= call:
                raise torch.OutOfMemoryError("no memory is left")
            super().__init__(*args, **kwargs)

    patch.setattr(program, "PackedStep", Step)


def test_a_pack_without_memory_costs_its_own_members_alone(monkeypatch):
    """What ended before is in the error, and in a run the others go on."""
    released = []
    monkeypatch.setattr(engine, "release_cached", released.append)
    configs = [SMALL, {**SMALL, "d_sae": 24}, SMALL, {**SMALL, "d_sae": 24}]
    expected = many(configs, rows(), PACKED, pack=True)
    assert len(released) == 2, "after each of the two packs"
    out_of_memory_from(monkeypatch, 2)
    with pytest.raises(torch.OutOfMemoryError, match="no memory is left") as raised:
        many(configs, rows(), PACKED, pack=True)
    assert [fit is None for fit in raised.value.fits] == [False, True, False, True]
    for number in (0, 2):
        same(raised.value.fits[number], expected[number])
    assert raised.value.__notes__ == ["2 of 4 SAEs had ended; they are in error.fits"]
