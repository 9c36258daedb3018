"""The definitions: what the figures must be, on data where the answer is known."""

import math

import pytest
import torch

from raysae.sae.metrics import ReconstructionSums, Sinks, cosines, evaluate, mean_of_rows


@pytest.fixture
def x():
    return torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)) * 3 + 5


def test_the_mean_predictor_scores_exactly_zero(x):
    mean = x.double().mean(dim=0)
    batches = x.split(300)
    model_mean = sum(b.double().sum(dim=0) for b in batches) / len(x)
    sums = evaluate(lambda b: (model_mean.expand(len(b), -1), torch.zeros(len(b), 4)), batches)
    assert torch.allclose(mean, model_mean)
    assert sums.metrics()["explained_variance"] == 0.0
    assert sums.metrics()["fvu"] == 1.0


def test_a_constant_predictor_off_the_mean_scores_below_zero(x):
    sums = evaluate(lambda b: (torch.zeros_like(b), torch.zeros(len(b), 4)), [x])
    assert sums.metrics()["explained_variance"] < -1


def test_perfect_reconstruction(x):
    metrics = evaluate(lambda b: (b, torch.ones(len(b), 4)), [x]).metrics()
    assert metrics["explained_variance"] == metrics["explained_variance_legacy"] == 1.0
    assert metrics["mse"] == 0 and metrics["cosine"] == pytest.approx(1)
    assert metrics["l0"] == 4 and metrics["sparsity"] == 1.0


def test_explained_variance_is_a_ratio_of_sums_over_the_whole_split(x):
    x_hat = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    calls = iter(x_hat.split(128))
    metrics = evaluate(lambda b: (next(calls), torch.ones(len(b), 1)), x.split(128)).metrics()
    residual = (x - x_hat).double().square().sum()
    total = (x.double() - x.double().mean(dim=0)).square().sum()
    assert metrics["explained_variance"] == pytest.approx(float(1 - residual / total), abs=1e-12)
    assert metrics["mse"] == pytest.approx(float(residual) / x.numel(), rel=1e-12)
    per_row = (x - x_hat).double().square().sum(1) / (x.double() - x.double().mean(0)).square().sum(
        1
    )
    assert metrics["explained_variance_legacy"] == pytest.approx(float((1 - per_row).mean()))


def test_batching_does_not_change_the_figures(x):
    def model(batch):
        return batch * 0.9, (batch > 5).float()

    whole, parts = evaluate(model, [x]).metrics(), evaluate(model, x.split(7)).metrics()
    assert whole == pytest.approx(parts, rel=1e-12)


def test_data_without_variance_leaves_explained_variance_undefined():
    x = torch.ones(10, 3)
    assert math.isnan(evaluate(lambda b: (b, b), [x]).metrics()["explained_variance"])


def test_dead_latents_and_density():
    features = torch.zeros(100, 3)
    features[:, 0] = 1
    features[0, 1] = 1
    x = torch.randn(100, 2)
    sums = ReconstructionSums.of_rows(x)
    sums.update(x, x, features)
    assert sums.dead_fraction() == pytest.approx(1 / 3)
    assert sum(sums.density_histogram()["latents"]) == 2


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        evaluate(lambda b: (b, b), [torch.zeros(0, 3)])


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1e-12, 1e-8, 1.0, 1e30, 1e300])
def test_the_cosine_of_rows_of_any_size_is_right(size):
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x + torch.randn(50, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right = (x * y).sum(dim=1) / (x.norm(dim=1) * y.norm(dim=1))
    assert torch.allclose(cosines(x * size, y * size), right, atol=1e-12)
    assert torch.allclose(cosines(x * size, y), right, atol=1e-12)
    rows = x * size
    metrics = evaluate(lambda b: (b * 0.5, torch.ones(len(b), 1)), [rows]).metrics()
    assert metrics["cosine"] == pytest.approx(1.0, abs=1e-12)


def test_the_cosine_with_a_row_of_zeros_is_0_and_of_two_1():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1e-40, 0.0]])
    y = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    assert cosines(x.double(), y.double()).tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("mean", [0.0, 100.0, 1e6])
def test_a_large_mean_costs_the_figures_nothing(mean):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    error = 0.3 * torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    calls = iter((x + mean + error).split(300))
    sums = evaluate(lambda b: (next(calls), torch.ones(len(b), 1)), (x + mean).split(300))
    right = 1 - error.square().sum() / (x - x.mean(dim=0)).square().sum()
    assert sums.metrics()["explained_variance"] == pytest.approx(float(right), abs=1e-9)


def test_two_halves_of_the_rows_differ_by_what_their_own_figures_do():
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    scaled = torch.linspace(0.2, 0.9, 40)[:, None] * rows
    sums = ReconstructionSums(mean_of_rows([rows]))
    for part in (slice(0, 16), slice(16, 40)):
        sums.update(rows[part], scaled[part], rows[part])
    offset = rows.double() - mean_of_rows([rows])
    error = (rows.double() - scaled.double()).square().sum(dim=1)
    total = offset.square().sum(dim=1)
    halves = [1 - float(error[at::2].sum() / total[at::2].sum()) for at in (0, 1)]
    assert sums.halves_differ() == pytest.approx(abs(halves[0] - halves[1]))
    same = ReconstructionSums.of_rows(torch.ones(4, 2))
    same.update(torch.ones(4, 2), torch.ones(4, 2), torch.ones(4, 2))
    assert math.isnan(same.halves_differ())


def test_the_host_waits_once_for_each_kind_of_sum_of_a_batch(x, monkeypatch):
    """On a GPU each wait costs more than a sum; with sinks there are two kinds."""
    reads, sinks = [], Sinks(torch.zeros(16, dtype=torch.float64), 40.0)
    for name in ("tolist", "item", "__bool__", "__int__", "__float__"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *args, read=read: (reads.append(1), read(*args))[1]
        )
    evaluate(lambda b: (b, torch.zeros(len(b), 4)), x.split(100), x.mean(dim=0), sinks)
    assert len(reads) == 2 * 10
