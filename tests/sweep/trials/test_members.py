"""A trial's members, one for each site and seed: means, the worst site, agreement, continuing."""

from dataclasses import replace

import pytest
import torch

from raysae.activations.synthetic import SuperpositionWorld
from raysae.records.members import Members, OutOfTimeError
from raysae.sae import sae_config
from raysae.sites import Site
from raysae.sweep.trials.gang import Gang
from raysae.training import NonFiniteLossError, Trainer, TrainingConfig
from raysae.training.ensemble import Member
from raysae.training.rows import Rows

HERE, THERE = Site(0, "all"), Site(1, "all")
TRAINING = TrainingConfig(epochs=6, batch_size=64, lr=3e-3, evaluations=4)
WORLD = SuperpositionWorld(d_in=16, atoms=24, p=0.08)


DATA = {
    site: (Rows(WORLD.rows(500, 2 * site.layer)), Rows(WORLD.rows(200, 2 * site.layer + 1)))
    for site in (HERE, THERE)
}


def asked(sites=(HERE,), seeds=(0,), k=2, data=DATA, **training):
    config = sae_config({"variant": "topk", "d_sae": 24, "k": k})
    settings = replace(TRAINING, **training)
    return {
        (site, seed): Member(config, settings, *data[site], seed)
        for site in sites
        for seed in seeds
    }


def trained(*trials, seconds=60, alive=lambda: None):
    list(Gang(trials, seconds, alive).rounds())


def same_bits(one, other):
    state, expected = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_one_member_is_the_training_itself(tmp_path):
    members = Members(asked(), tmp_path / "saved")
    trained(members)
    (one,) = asked().values()
    alone = Trainer(one.config, one.training, one.rows, one.validation, seed=one.seed)
    assert list(alone.rounds()) == members.history
    assert members.final_metrics() == alone.final_metrics()
    assert not list((tmp_path / "saved").iterdir())


def test_figures_are_means_with_the_worst_site(tmp_path):
    members = Members(asked((HERE, THERE), (0, 1)), tmp_path)
    trained(members)
    figures = members.final_metrics()
    each = {key: t.final_metrics()["explained_variance"] for key, t in members.trainers.items()}
    assert figures["explained_variance"] == pytest.approx(sum(each.values()) / 4)
    by_site = [(each[site, 0] + each[site, 1]) / 2 for site in (HERE, THERE)]
    assert figures["explained_variance_worst"] == pytest.approx(min(by_site))
    assert 0 < figures["stability_chance"] < figures["stability"] < 1
    apart = [abs(each[site, 0] - each[site, 1]) / 2**0.5 for site in (HERE, THERE)]
    assert figures["explained_variance_seeds"] == pytest.approx(sum(apart) / 2)
    assert figures["decoder_projection_seeds"] >= 0 <= figures["stability_halves"]
    alone = members.first.final_metrics()
    assert 0 < alone["decoder_cosine_mean_abs"] < 1 and "stability_chance" not in alone
    assert members.cost["tokens_trained"] == 4 * 6 * 500


def test_the_decoders_figures_are_computed_once(tmp_path, monkeypatch):
    from raysae.training import trainer

    counted, real = [], trainer.decoder_statistics
    monkeypatch.setattr(trainer, "decoder_statistics", lambda W: counted.append(len(W)) or real(W))
    members = Members(asked(seeds=(0, 1)), tmp_path)
    trained(members)
    members.final_metrics()
    for one in members.trainers.values():  # as a commit does
        one.release()
        one.final_metrics()
    assert counted == [24, 24]


def test_stability_is_that_of_the_saes(tmp_path):
    import raysae

    members = Members(asked(seeds=(0, 1)), tmp_path)
    trained(members)
    one, other = (trainer.sae() for trainer in members.trainers.values())
    expected = raysae.stability(one, other, WORLD.rows(200, 1))
    assert members.final_metrics()["stability"] == pytest.approx(expected, abs=1e-6)


def counted(*trials):
    """Train the trials; the number of batches that took."""
    made = 0

    def count():
        nonlocal made
        made += 1

    trained(*trials, alive=count)
    return made


class CutOffError(Exception):
    pass


def cut_off_after(steps):
    made = 0

    def count():
        nonlocal made
        made += 1
        if made > steps:
            raise CutOffError

    return count


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("steps", [3, 20, 31])
def test_what_was_cut_off_continues_to_the_same_bits(tmp_path, seeds, steps):
    whole = Members(asked(seeds=seeds), tmp_path / "whole")
    trained(whole)
    begun = Members(asked(seeds=seeds), tmp_path / "saved")
    with pytest.raises(CutOffError):
        trained(begun, seconds=0, alive=cut_off_after(steps))
    again = Members(asked(seeds=seeds), tmp_path / "saved")
    batches = counted(again)
    assert again.history == whole.history
    assert batches < len(seeds) * whole.first.steps  # it did not begin anew
    assert all(same_bits(again.trainers[key], trainer) for key, trainer in whole.trainers.items())
    again.discard_checkpoints()
    assert not any((tmp_path / "saved").iterdir())


class CountedRows(Rows):
    """Rows that count the batches read of them."""

    counted = 0

    def taken(self, order, batch_size):
        for batch_BD in super().taken(order, batch_size):
            self.counted += 1
            yield batch_BD


def test_a_gang_reads_each_batch_once_and_each_trial_ends_as_alone(tmp_path):
    rows = CountedRows(DATA[HERE][0].blocks)
    data = {HERE: (rows, DATA[HERE][1])}
    gang = [Members(asked(seeds=(0, 1), k=k, data=data), tmp_path / str(k)) for k in (1, 2, 3)]
    trained(*gang)
    steps = gang[0].first.steps
    assert rows.counted == 2 * steps + 2  # and a batch for each seed's statistics
    for k, members in zip((1, 2, 3), gang, strict=True):
        alone = Members(asked(seeds=(0, 1), k=k), tmp_path / "alone")
        trained(alone)
        assert members.history == alone.history
        for key, trainer in alone.trainers.items():
            assert same_bits(members.trainers[key], trainer)
            assert members.trainers[key].tokens == trainer.tokens


def test_a_trial_that_fails_or_runs_out_of_time_leaves_its_gang_alone(tmp_path):
    bad = Members(asked(lr=1e38), tmp_path / "bad")
    brief = Members(asked(), tmp_path / "brief", max_seconds=1e-9)
    sound, alone = (Members(asked(), tmp_path / name) for name in ("sound", "alone"))
    trained(bad, brief, sound)
    trained(alone)
    assert isinstance(bad.failure, NonFiniteLossError)
    assert isinstance(brief.failure, OutOfTimeError)
    assert sound.history == alone.history and same_bits(sound.first, alone.first)


def test_a_gang_of_which_some_were_saved_later_continues_to_the_same_bits(tmp_path):
    """A kill while checkpoints are written leaves trials at different steps."""
    whole = [Members(asked(k=k), tmp_path / "whole") for k in (1, 2)]
    trained(*whole)
    for k, steps in ((1, 9), (2, 17)):
        with pytest.raises(CutOffError):
            trained(Members(asked(k=k), tmp_path / str(k)), seconds=0, alive=cut_off_after(steps))
    again = [Members(asked(k=k), tmp_path / str(k)) for k in (1, 2)]
    batches = counted(*again)
    assert batches == sum(members.first.steps for members in again) - 9 - 17
    for members, expected in zip(again, whole, strict=True):
        assert members.history == expected.history
        assert same_bits(members.first, expected.first)


def test_a_trial_whose_training_fails_names_it_and_ends_with_it(tmp_path):
    members = asked((HERE, THERE), (0, 1))
    bad = members[THERE, 1]
    members[THERE, 1] = Member(
        bad.config, replace(bad.training, lr=1e38), bad.rows, bad.validation, bad.seed
    )
    trial = Members(members, tmp_path / "trial")
    trained(trial)
    assert str(trial.failure).startswith(f"seed 1 at {THERE}: ") and not trial.active
    # they had come to their first evaluation
    assert {t.step for t in trial.trainers.values()} <= {1, 2, 3, 12}
