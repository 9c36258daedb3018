"""Hard worlds have the properties that their options say, and the truth beside the store is the truth."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import raysae
from raysae.activations.hard_world import HardWorld
from raysae.activations.store_command import main
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.verify import verify
from raysae.activations.world_options import HARD
from raysae.errors import UserError
from raysae.sites import ALL, Site

FAMILIES = {"d_in": 24, "atoms": 60, "roots": 4, "children": 3, "depth": 2, "exclusive": 0.5}


def world(**settings):
    return HardWorld(**{**FAMILIES, "max_rate": 0.5, "min_rate": 0.02, **settings})


def test_children_fire_only_with_their_parents_and_some_exclude_each_other():
    hard = world()
    _, fired = hard.sample(5000)
    parent = hard.parent_of
    assert (parent >= 0).sum() == 12 + 36 and len(hard.exclusive_parents) == 8
    for child in np.flatnonzero(parent >= 0):
        assert not (fired[:, child] & ~fired[:, parent[child]]).any()
    together = {p: int(fired[:, np.flatnonzero(parent == p)].sum(dim=1).max()) for p in range(16)}
    assert all(together[p] <= 1 for p in hard.exclusive_parents)
    assert max(together.values()) > 1


def test_rates_follow_zipfs_law_and_are_met():
    hard = HardWorld(d_in=8, atoms=40, rate_exponent=1.0, max_rate=0.4, min_rate=0.05)
    assert hard.rates[0] == pytest.approx(0.4) and hard.rates[-1] == pytest.approx(0.05)
    assert hard.rates[1] - 0.05 == pytest.approx(0.35 * (1 / 2 - 1 / 40) / (1 - 1 / 40))
    _, fired = hard.sample(20_000)
    assert np.allclose(fired.double().mean(dim=0), hard.rates, atol=0.015)


def test_a_childs_rate_is_met_though_its_parent_is_rarer():
    hard = world(max_rate=0.5, min_rate=0.02, depth=1, exclusive=0.0)
    _, fired = hard.sample(20_000)
    assert np.allclose(fired.double().mean(dim=0), hard.rates, atol=0.02)


def test_a_low_rank_makes_atoms_fire_together():
    def correlation(**settings):
        _, fired = HardWorld(d_in=8, atoms=30, min_rate=0.2, max_rate=0.2, **settings).sample(
            20_000
        )
        return np.abs(np.corrcoef(fired.numpy().T) - np.eye(30)).mean()

    assert correlation(correlation_rank=4, correlation_scale=0.4) > 4 * correlation()


def test_magnitudes_bias_noise_and_sinks():
    plain = {"d_in": 16, "atoms": 8, "min_rate": 1e-9, "max_rate": 1e-9, "spread": 0.0}
    rows, _ = HardWorld(**plain, bias=3.0, sinks=0.1, sink_norm=50.0, noise=0.5).sample(4000)
    far = rows.norm(dim=1) > 40
    assert 0.07 < far.double().mean() < 0.13
    assert rows[~far].mean(dim=0).norm() == pytest.approx(3.0, abs=0.05)
    assert (rows[~far] - rows[~far].mean(dim=0)).square().sum(dim=1).mean() == pytest.approx(
        0.25, rel=0.05
    )
    one = HardWorld(d_in=4, atoms=1, max_rate=1.0, min_rate=1.0, magnitude=2.0, spread=0.3)
    size = one.sample(4000)[0].norm(dim=1)
    assert size.mean() == pytest.approx(2, abs=0.03) and size.std() == pytest.approx(0.3, abs=0.03)


def test_children_are_as_large_as_their_parents():
    settings = {"d_in": 64, "atoms": 2, "roots": 1, "children": 1, "near_orthogonal": True}
    rates = {"max_rate": 1.0, "min_rate": 1.0, "spread": 0.3, "spread_varies": 0.0}
    for scaled in (True, False):
        hard = HardWorld(**settings, **rates, scaled=scaled)
        part = (hard.sample(3000)[0] @ hard.truth().T).numpy().T
        assert (np.corrcoef(part)[0, 1] > 0.5) is np.bool_(scaled)


@pytest.mark.parametrize(("atoms", "d_in"), [(12, 16), (48, 16)])
def test_near_orthogonal_atoms_reach_welchs_bound(atoms, d_in):
    truth = HardWorld(d_in=d_in, atoms=atoms, near_orthogonal=True).truth().double()
    cosine = (truth @ truth.T).fill_diagonal_(0)
    least = max(atoms - d_in, 0) / (d_in * (atoms - 1))
    assert torch.allclose(truth.norm(dim=1), torch.ones(atoms, dtype=torch.float64))
    assert cosine.square().sum() / atoms / (atoms - 1) == pytest.approx(least, abs=1e-6)


def test_the_truth_lies_beside_the_store(tmp_path):
    hard = world()
    write_synthetic_store(tmp_path / "s", hard, 600, sites=2)
    store = raysae.open_store(tmp_path / "s")
    atoms, rows, fired = store.known_truth()
    assert torch.equal(atoms, hard.truth()) and rows.shape == (600, 24)
    again, where = hard.sample(600)
    assert torch.equal(rows, again) and torch.equal(fired, where)
    content = json.loads((tmp_path / "s" / "truth.json").read_text())
    assert content["parent"] == hard.parent_of.tolist() and content["sample_rows"] == 600
    assert content["measured_l0"] == pytest.approx(
        float(fired.sum(dim=1).double().mean()), abs=1e-3
    )
    assert verify(store.files) == []
    first, second = (store.train(Site(layer, ALL)) for layer in (0, 1))
    assert not torch.equal(first[:50], second[:50])


def test_a_plain_world_has_the_rows_it_always_had(tmp_path):
    """A file's bytes follow pyarrow's version, which is in its footer; the rows do not."""
    write_synthetic_store(tmp_path / "s", SuperpositionWorld(d_in=4, atoms=8, p=0.2, seed=3), 200)
    held = load_file(tmp_path / "s" / "truth.safetensors")
    assert list(held) == ["atoms"]
    rows = raysae.open_store(tmp_path / "s").train(Site(0, ALL)).numpy()
    assert hashlib.sha256(rows.tobytes()).hexdigest().startswith("c7938360941c56102586")
    assert not (tmp_path / "s" / "truth.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.pop("fired"), "no readable 'rows' and 'fired'"),
        (lambda held: held.update(rows=held["rows"][:-1]), "make the store again"),
        (lambda held: held.update(fired=held["fired"].float()), "make the store again"),
        (lambda held: held.update(rows=held["rows"] * torch.nan), "finite"),
    ],
)
def test_a_damaged_sample_is_named(tmp_path, change, words):
    write_synthetic_store(tmp_path / "s", world(), 100)
    file = tmp_path / "s" / "truth_sample.safetensors"
    held = load_file(file)
    change(held)
    save_file(held, file)
    with pytest.raises(UserError, match=words):
        raysae.open_store(tmp_path / "s").known_truth()


def test_the_command_makes_a_hard_world(tmp_path, capsys):
    out = ["synthetic", "--out", str(tmp_path / "s"), "--rows", "200", "--d-in", "8"]
    assert main([*out, "--atoms", "20", "--roots", "2", "--unscaled", "--near-orthogonal"]) == 0
    said = capsys.readouterr().out
    assert "20 atoms" in said and "in a row on average" in said
    source = raysae.open_store(tmp_path / "s").manifest.source["world"]
    assert source["roots"] == 2 and source["scaled"] is False and source["near_orthogonal"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-rate", "1.5"], "--max-rate 1.5: expected a probability"),
        (["--min-rate", "0.5"], "--min-rate 0.5 is above max_rate"),
        (["--exclusive", "2"], "--exclusive 2.0: expected a share"),
        (["--roots", "50"], "--roots 50 with 4 children over 1 generations need 250 atoms"),
        (["--depth", "0"], "--depth 0: expected a number from 1"),
        (["--noise", "-1"], "--noise -1.0: expected a number from 0"),
        (["--p", "0.1", "--bias", "1"], "--bias makes a hard world"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        main(["synthetic", "--out", str(tmp_path / "s"), *options])


def test_the_help_names_the_defaults():
    plain = HardWorld()
    for name, text in HARD.items():
        default = getattr(plain, name, None)
        if default is not None and not isinstance(default, bool):
            assert text.endswith(f"({default:g})"), name
