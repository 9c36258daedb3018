"""A single SAE is a pack of one, to the bit a member of a pack of many; who leaves computes nothing."""

from dataclasses import replace

import pytest
import torch

from raysae.sae import sae_config
from raysae.training import NonFiniteLossError, Trainer, TrainingConfig, fitting
from raysae.training.alone import step_alone
from raysae.training.checkpoint import load_training, save_training
from raysae.training.ensemble import Ensemble, Member, StopRules, program
from raysae.training.iterator_rows import IteratorRows
from tests.training.ensemble.test_engine import OTHER_ROWS, ROWS, VALIDATION, member, same, trained

VARIANTS = ["topk", "batch_topk"]
SETTINGS = {"batch_size": 64, "lr": 3e-3, "evaluations": 2, "aux_window_tokens": 128}


def alone(one):
    """The same member in a pack of its own."""
    (ended,) = trained(
        [Member(one.config, one.training, one.rows, VALIDATION, one.seed)], pack=True
    )
    return ended


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_members_of_a_pack_are_packs_of_one_to_the_bit(variant, precision):
    """Rows, seed, k, learning rate with its schedule, clip and AuxK's coefficient of their own."""
    own = [
        {}, {"seed": 1, "k": 5, "lr": 1e-3, "warm_up": 0.3, "decay": 0.0},
        {"rows": OTHER_ROWS, "gradient_clip": 10.0},
    ]  # fmt: skip
    members = [member(variant=variant, precision=precision, **one) for one in own]
    members[1].config = replace(members[1].config, aux_coefficient=0.5)
    members[2].config = replace(members[2].config, aux_coefficient=0.0)
    for one in trained(members, pack=True):
        same(one, alone(one))
        assert one.trainer.sae().metadata["training"]["trained_by"] == "pack"


def test_fit_trains_a_pack_of_one_and_continues_it(tmp_path):
    def trainer():
        return Trainer(*shape, ROWS, VALIDATION)

    shape = member().config, member().training
    whole, parts = [], []
    first = trainer()
    assert [r["step"] for r in fitting._records(first, whole, lambda _: 0, True)] == [8, 16, 24, 32]
    assert whole == alone(member()).history
    half = trainer()
    for record in fitting._records(half, parts, lambda _: 0, True):
        save_training(half, tmp_path / "half", parts)
        if record["step"] == 16:
            break
    again = trainer()
    history = load_training(again, tmp_path / "half")
    list(fitting._records(again, history, lambda _: 0, True))
    assert history == whole and torch.equal(again.model.W_enc, first.model.W_enc)
    assert not list(fitting._records(again, history, lambda _: 0, True)), "it has ended"


def test_a_pack_of_one_stops_before_the_update():
    training = replace(member().training, lr=1e30, warm_up=0.0)
    trainer = Trainer(member().config, training, ROWS, VALIDATION)
    with pytest.raises(NonFiniteLossError, match="not finite at step"):
        list(fitting._records(trainer, [], lambda _: 0, True))
    assert trainer.model.W_enc.isfinite().all()


def test_the_step_of_one_that_is_only_timed_is_that_of_a_pack_of_one():
    one, endless = member(), replace(member().training, tokens=10**12)
    trainers = [Trainer(one.config, t, ROWS, VALIDATION) for t in (one.training, endless)]
    for trainer in trainers:
        assert step_alone(trainer) == trainer.take, "on a CPU"
        take = step_alone(trainer, pack=True)
        for batch_BD in trainer.feed:
            take(batch_BD)
            if trainer.step == one.training.steps(len(ROWS)):
                break
    assert trainers[0].record() | {"loss": 0} == alone(one).history[-1] | {"loss": 0}
    assert trainers[1].step == trainers[0].step and trainers[1].model.W_enc.isfinite().all()


def iterator(rows=640):
    numbers = torch.cat([ROWS.read(0, 500), OTHER_ROWS.read(0, 500)])
    return IteratorRows(iter(numbers[:rows].split(100)), 640)


@pytest.mark.parametrize("rows", [640, 300])
def test_a_pack_is_fed_with_rows_that_are_read_once(rows):
    """Also where they end early; who leaves does not read them anew."""
    settings = TrainingConfig(tokens=640, shuffle_rows=128, **SETTINGS)

    def members(source):
        configs = [sae_config({"variant": "topk", "d_sae": 24, "k": k}) for k in (2, 3)]
        return [Member(config, settings, source, VALIDATION) for config in configs]

    both, source = trained(members(iterator(rows)), pack=True), iterator(rows)
    for number, one in enumerate(both):
        assert one.trainer.tokens == rows and one.trainer.step == -(-rows // 64)
        (single,) = trained([members(iterator(rows))[number]], pack=True)
        same(one, single)
    leaving, staying = members(source)
    rules = StopRules(keep=lambda one, record: one is staying)
    for _ in Ensemble([leaving, staying], pack=True, rules=rules).rounds():
        pass
    same(staying, both[1])


def test_a_pack_shrinks_when_members_leave(monkeypatch):
    sizes, members = [], [member(seed=seed) for seed in range(4)]
    take = program.PackedStep.take
    monkeypatch.setattr(
        program.PackedStep, "take", lambda self, x: (sizes.append(len(x)), take(self, x))[1]
    )
    until = {members[0]: 8, members[2]: 16, members[3]: 16}
    rules = StopRules(keep=lambda one, record: record["step"] < until.get(one, 99))
    for _ in Ensemble(members, pack=True, rules=rules).rounds():
        pass
    assert sizes == [4] * 8 + [3] * 8 + [1] * 16
    assert [len(one.history) for one in members] == [1, 4, 2, 2]
    same(members[1], alone(member(seed=1)))
    storages = {one.trainer.model.W_enc.untyped_storage().nbytes() for one in members}
    assert storages == {members[0].trainer.model.W_enc.nbytes}, "none keeps those of all in memory"
    expected = alone(member(seed=2))
    assert members[2].history == expected.history[:2]


def test_rows_in_memory_and_rows_that_are_fed_are_trained_on_alike():
    one = member()
    fed = Member(one.config, replace(one.training, sink_rows="leave_out"), ROWS, VALIDATION)
    trained([one, fed], pack=True)
    assert [r["explained_variance"] for r in one.history] == [
        r["explained_variance"] for r in fed.history
    ]
