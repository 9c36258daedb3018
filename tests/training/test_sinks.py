"""Sink rows are told, measured apart and, on request, left out; ordinary rows do not suffer."""

import pytest
import torch

import raysae
from raysae.activations.synthetic import SuperpositionWorld
from raysae.activations.writer import write_store
from raysae.sae import sae_config
from raysae.sae.metrics import ReconstructionSums, Sinks
from raysae.training import Trainer, TrainingConfig, load_training, save_training
from raysae.training.iterator_rows import IteratorRows
from raysae.training.rows import OrdinaryRows, Rows
from raysae.training.statistics import Health, health_of

WORLD = SuperpositionWorld(d_in=16, atoms=32, p=0.1)
CLEAN, HELD_OUT = WORLD.rows(4096), WORLD.rows(1024, part=1)
SIZE = float((CLEAN - CLEAN.mean(dim=0)).norm(dim=1).median())
TRAINING = {"epochs": 8, "batch_size": 128, "lr": 3e-3, "evaluations": 2}
GATED = {"variant": "gated", "d_sae": 32, "l1_coefficient": 1.0}


def with_sinks(rows, seed):
    """The rows, 1 in 128 of them 50 times as far out, and which."""
    generator = torch.Generator().manual_seed(seed)
    sinks = torch.randperm(len(rows), generator=generator)[: len(rows) // 128]
    direction = torch.nn.functional.normalize(
        torch.randn(16, generator=torch.Generator().manual_seed(1)), dim=0
    )
    rows = rows.clone()
    rows[sinks] += 50 * SIZE * direction
    return rows, sinks


X, SINKS_OF_X = with_sinks(CLEAN, 2)
V, SINKS_OF_V = with_sinks(HELD_OUT, 3)


def fitted(config, train=X, validation=V, **training):
    settings = {**TRAINING, **training}
    return raysae.fit(config, train, settings, validation=validation, progress=False)


def ordinary_ev(sae, rows, sinks):
    """The definition, by hand."""
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[sinks] = False
    x = rows[kept].double()
    error = x - sae(rows).reconstruction[kept].double()
    return float(1 - error.square().sum() / (x - x.mean(dim=0)).square().sum())


@pytest.mark.parametrize("moved", [0.0, 100.0])
def test_both_figures_are_told(moved):
    config = {"variant": "topk", "d_sae": 32, "k": 3}
    metrics = (fit := fitted(config, X + moved, V + moved)).metrics
    assert metrics["sink_fraction"] == 8 / 1024
    by_hand = ordinary_ev(fit.sae, V + moved, SINKS_OF_V)
    assert metrics["explained_variance_ordinary"] == pytest.approx(by_hand, abs=1e-3)
    assert metrics["explained_variance"] > metrics["explained_variance_ordinary"] + 0.05
    assert all("explained_variance_ordinary" in record for record in fit.history)


def test_without_sinks_both_figures_are_one():
    metrics = fitted(GATED, CLEAN, HELD_OUT).metrics
    assert metrics["sink_fraction"] == 0.0
    assert metrics["explained_variance_ordinary"] == metrics["explained_variance"]


def test_ordinary_rows_set_the_scale_so_that_a_coefficient_means_the_same():
    clean, spoiled = fitted(GATED, CLEAN, HELD_OUT), fitted(GATED)
    scales = [fit.sae.metadata["training"]["input_scale"] for fit in (clean, spoiled)]
    assert scales[1] == pytest.approx(scales[0], rel=0.02)


def batches(rows):
    return iter(rows.repeat(8, 1).split(100))


@pytest.mark.parametrize("way", ["tensor", "blocks", "iterator", "half"])
def test_left_out_rows_are_never_trained_on(way):
    training, kept = {"sink_rows": "leave_out"}, torch.ones(len(X), dtype=torch.bool)
    kept[SINKS_OF_X] = False
    if way == "iterator":
        training |= {"tokens": 30_000, "epochs": 1, "shuffle_rows": 1000}
    ways = {"tensor": X, "blocks": list(X.split(300)), "iterator": batches(X), "half": X.half()}
    fit = fitted(GATED, ways[way], **training)
    assert fit.history[-1]["tokens"] == (30_000 if way == "iterator" else 8 * int(kept.sum()))
    only_ordinary = fitted(GATED, batches(X[kept]) if way == "iterator" else X[kept], **training)
    near = pytest.approx(only_ordinary.metrics["explained_variance_ordinary"], abs=0.02)
    assert fit.metrics["explained_variance_ordinary"] == near
    assert fit.metrics["sink_fraction"] == 8 / 1024, "evaluated on all rows, both figures told"


def test_streamed_rows_leave_out_the_same(tmp_path):
    site = raysae.Site(0, "all")
    write_store(
        tmp_path / "store", {site: torch.cat([X, V])}, provenance="imported", source={},
        split={"validation": 0.2, "test": 0.0}, shard_rows=700,
    )  # fmt: skip
    store = raysae.open_store(tmp_path / "store")
    training = {**TRAINING, "sink_rows": "leave_out", "shuffle_rows": 500}
    config = {"variant": "topk", "d_sae": 32, "k": 3}
    loaded, streamed = (
        raysae.fit(config, store.site(site, **memory), training, progress=False)
        for memory in ({}, {"memory": 1000})
    )
    assert loaded.metrics == streamed.metrics and loaded.metrics["sink_fraction"] > 0
    rows = store.entry(site).rows.train
    assert 8 * rows * 0.98 < loaded.history[-1]["tokens"] < 8 * rows


@pytest.mark.parametrize("way", ["tensor", "iterator"])
def test_leaving_out_resumes_to_the_bit(tmp_path, way):
    config = {"variant": "topk", "d_sae": 32, "k": 3}
    settings = TrainingConfig(**TRAINING, sink_rows="leave_out", tokens=20_000, shuffle_rows=1000)

    def trainer():
        rows = Rows(X) if way == "tensor" else IteratorRows(batches(X), 20_000)
        return Trainer(sae_config(config), settings, rows, Rows(V))

    (whole, half), saved = (trainer(), trainer()), tmp_path / "saved"
    history = [next(half.rounds())]
    save_training(half, saved, history)
    resumed = trainer()
    again = [*load_training(resumed, saved), *resumed.rounds()]
    assert again == list(whole.rounds()) and len(again) == 2
    assert torch.equal(resumed.model.W_dec, whole.model.W_dec)


def test_leaving_out_helps_ordinary_rows():
    kept, left_out = fitted(GATED), fitted(GATED, sink_rows="leave_out")
    name = "explained_variance_ordinary"
    assert left_out.metrics[name] > kept.metrics[name] + 0.02


@pytest.mark.parametrize("pack", [None, True])
def test_members_that_leave_out_share_batches_and_end_as_if_alone(pack):
    """To the bit where they are not packed."""
    configs = [GATED, {"variant": "topk", "d_sae": 32, "k": 3}]
    training = {**TRAINING, "sink_rows": "leave_out"}
    fits = raysae.fit_many(configs, X, training, validation=V, pack=pack, progress=False)
    for config, fit in zip(configs, fits, strict=True):
        alone = fitted(config, sink_rows="leave_out").sae.W_dec
        apart = 1e-4 if pack and config != GATED else 0.0
        assert torch.allclose(fit.sae.W_dec, alone, rtol=0.0, atol=apart)


@pytest.mark.parametrize("taken", [0, 1, 250, 300, 777])
def test_the_rows_left_are_read_in_order_and_resumed_anywhere(taken):
    rows = torch.arange(1000.0)[:, None].expand(-1, 3)
    kept = torch.arange(1000) % 7 != 0
    source = OrdinaryRows(Rows(list(rows.split(130))), kept)
    assert len(source) == int(kept.sum()) == 857
    assert torch.equal(torch.cat(list(source.batches(100))), rows[kept])
    assert torch.equal(source.read(10, 10), rows[:0])

    def order(taken):
        return torch.cat(list(source.epoch(3, 0, 64, shuffle_rows=200, taken=taken)))[:, 0]

    assert sorted(order(0).tolist()) == rows[kept][:, 0].tolist() != order(0).tolist()
    assert torch.equal(order(taken), order(0)[taken:])


def test_rows_without_sinks_are_the_rows_themselves():
    rows = Rows(CLEAN)
    assert rows.without(Sinks(torch.zeros(16, dtype=torch.float64), 1e9)) is rows


def test_the_health_of_rows_is_told():
    health = health_of(Rows(X + 100.0))
    assert health.sink_fraction == 32 / 4096 and 40 < health.sink_size < 60
    assert health.mean_ratio > 100 and len(health.notes) == 2
    assert "0.78% of the rows are sinks" in str(health) and "leave_out" in str(health)
    usual = health_of(Rows(CLEAN))
    assert usual.notes == [] and "no sink rows" in str(usual)
    assert isinstance(health_of(Rows(torch.ones(10, 4))), Health)


def test_fit_tells_it_where_it_shows_progress(capsys):
    raysae.fit(GATED, X, {**TRAINING, "epochs": 1}, validation=V)
    assert "train: 0.78% of the rows are sinks" in capsys.readouterr().err
    raysae.fit_many([GATED] * 2, X, {**TRAINING, "epochs": 1}, validation=V)
    assert capsys.readouterr().err.count("train: 0.78% of the rows are sinks") == 1
    raysae.fit(GATED, X, {**TRAINING, "epochs": 1}, validation=V, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_second_kind_of_rows_is_no_sink(noise):
    """Were they left out of the scale, the inputs would be far too large."""
    rows = noise * torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    rows[:300] = CLEAN[:300]
    assert health_of(Rows(rows)).sink_fraction == 0.0
    metrics = fitted(GATED, rows, rows[::2]).metrics
    assert metrics["explained_variance"] > 0.5 and metrics["sink_fraction"] == 0.0


def test_batches_change_nothing_in_the_figures_of_ordinary_rows():
    rule = Sinks(CLEAN.double().mean(dim=0), 10 * SIZE)
    found = []
    for size in (1024, 100):
        sums = ReconstructionSums(V.double().mean(dim=0), rule)
        for batch in V.split(size):
            sums.update(batch, batch * 0.9, batch)
        found.append(sums.metrics())
    assert found[0] == pytest.approx(found[1], rel=1e-12)
