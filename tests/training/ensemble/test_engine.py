"""The engine: members side by side, each with its checkpoint, one that ends leaves the others alone."""

import time
from dataclasses import replace

import pytest
import torch

from raysae.sae import sae_config
from raysae.sae.batch_topk import BatchTopKSAE
from raysae.training import NonFiniteLossError, Trainer, TrainingConfig, has_training
from raysae.training.ensemble import Budget, Ensemble, Member, program, train_members
from raysae.training.ensemble import checkpoints as checkpoints_module
from raysae.training.rows import Rows

TRAINING = TrainingConfig(
    epochs=4, batch_size=64, lr=3e-3, evaluations=4, aux_window_tokens=128, compiled=False
)


def numbers(seed, count=500):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(40, 16, generator=torch.Generator().manual_seed(99))
    return (torch.rand(count, 40, generator=generator) < 0.08).float() @ atoms


ROWS, OTHER_ROWS, VALIDATION = Rows(numbers(0)), Rows(numbers(1)), Rows(numbers(2, 200))


def member(folder=None, rows=ROWS, seed=0, k=3, variant="topk", **training):
    config = sae_config({"variant": variant, "d_sae": 24, "k": k})
    checkpoint = None if folder is None else folder / f"{seed},{k},{rows is ROWS}"
    settings = replace(TRAINING, **training)
    return Member(config, settings, rows, VALIDATION, seed, checkpoint=checkpoint)


def four(folder=None, variant="topk"):
    """Two sites, two configs, unlike seeds."""
    return [
        member(folder, variant=variant), member(folder, k=2, variant=variant),
        member(folder, OTHER_ROWS, variant=variant), member(folder, OTHER_ROWS, 1, variant=variant),
    ]  # fmt: skip


def trained(members, **options):
    assert list(train_members(members, **options)) and not any(m.active for m in members)
    return members


def same(one, other):
    assert one.history == other.history
    for name, tensor in other.trainer.model.state_dict().items():
        assert torch.equal(one.trainer.model.state_dict()[name], tensor), name


class CutOffError(Exception):
    pass


def cut_off_after(batches):
    made = 0

    def count(tokens):
        nonlocal made
        made += 1
        if made > batches:
            raise CutOffError

    return count


def cut_off(members, batches, **options):
    with pytest.raises(CutOffError):
        trained(members, checkpoint_seconds=0, after_batch=cut_off_after(batches), **options)


def test_each_ends_as_if_alone():
    for one in trained(four()):
        alone = Trainer(one.config, one.training, one.rows, VALIDATION, seed=one.seed)
        assert list(alone.rounds()) == one.history
        for name, tensor in alone.model.state_dict().items():
            assert torch.equal(one.trainer.model.state_dict()[name], tensor)


def test_each_evaluation_that_all_have_passed_is_a_round():
    members = [member(), member(seed=1, epochs=2), member(rows=OTHER_ROWS, evaluations=2)]
    seen, ended = [], []
    for gone in Ensemble(members).rounds():
        seen.append([len(one.history) for one in members])
        ended.append([members.index(one) for one in gone])
    assert seen == [[1, 1, 1], [2, 2, 2], [3, 3, 2], [4, 4, 2]]
    assert ended == [[], [2], [], [0, 1]]


def test_records_and_tokens_are_told():
    records, tokens, members = [], [], four()
    trained(members, on_record=lambda *told: records.append(told), after_batch=tokens.append)
    assert sum(tokens) == 4 * 4 * 500
    for one in members:
        assert [record for other, record in records if other is one] == one.history


def test_one_that_fails_ends_alone():
    bad, good = member(lr=1e38), member(k=2)
    assert set(train_members([bad, good])) == {bad, good}
    assert isinstance(bad.failure, NonFiniteLossError) and good.failure is None
    (alone,) = trained([member(k=2)])
    same(good, alone)


class LostRows(Rows):
    """Rows that can no longer be read from the second epoch on."""

    def epoch(self, seed, epoch, *args, **kwargs):
        if epoch == 1:
            raise OSError("the disk is gone")
        return super().epoch(seed, epoch, *args, **kwargs)


def test_rows_that_cannot_be_read_end_those_that_read_them():
    lost = LostRows(numbers(0))
    members = trained([member(rows=lost), member(rows=lost, k=2), member(rows=OTHER_ROWS)])
    assert [str(one.failure) for one in members] == ["the disk is gone"] * 2 + ["None"]
    assert len(members[2].history) == 4


def test_one_that_cannot_begin_ends_alone():
    whole, narrow = member(), member(seed=1)
    narrow.validation = Rows(numbers(2)[:, :9])
    trained([narrow, whole])
    assert "d_in 16, validation rows 9" in str(narrow.failure) and whole.failure is None


def test_a_budget_is_for_all_who_share_it():
    members = [member(), member(rows=OTHER_ROWS), member(seed=1)]
    shared = Budget(0.0, members[:2])
    members[0].budget = members[1].budget = shared
    trained(members)
    assert shared.exceeded.startswith("it had trained for")
    assert [one.stopped is None for one in members] == [False, False, True]
    assert members[0].trainer.step == 1


@pytest.mark.parametrize("batches", [3, 20, 60])
def test_what_was_cut_off_continues_to_the_same_bits(tmp_path, batches):
    whole = trained(four())
    cut_off(four(tmp_path), batches)
    for one, expected in zip(trained(four(tmp_path)), whole, strict=True):
        same(one, expected)


@pytest.mark.parametrize("pack", [False, True])
def test_members_that_stand_at_unlike_steps_continue_to_the_same_bits(tmp_path, pack):
    """A kill while checkpoints are written, or members that are new, leave them so."""
    whole = trained(four(), pack=pack)
    cut_off(four(tmp_path)[:1], 9, pack=pack)
    cut_off(four(tmp_path)[1:3], 15, pack=pack)
    again = four(tmp_path)
    rounds = Ensemble(again, pack=pack).rounds()
    next(rounds)
    assert [again[0].trainer.step, again[3].trainer.step] == [9, 8]
    for _ in rounds:
        pass
    for one, expected in zip(again, whole, strict=True):
        if pack:
            near(one, expected)
        else:
            same(one, expected)


def near(one, other):
    """A program of other members sums in another order."""
    for name, tensor in other.trainer.model.state_dict().items():
        assert torch.allclose(one.trainer.model.state_dict()[name], tensor, atol=1e-4), name


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
@pytest.mark.parametrize("batches", [3, 16, 21])
def test_a_packed_program_is_saved_and_continues_to_the_same_bits(tmp_path, variant, batches):
    whole = trained(four(variant=variant), pack=True)
    begun = four(tmp_path, variant)
    cut_off(begun, batches, pack=True)
    assert all(has_training(one.checkpoint) for one in begun)
    again = trained(four(tmp_path, variant), pack=True)
    for one, expected in zip(again, whole, strict=True):
        same(one, expected)


def test_a_packed_program_without_memory_ends_alone(monkeypatch):
    """The other programs of the same process go on, and nothing is raised."""

    class Step(program.PackedStep):
        def __init__(self, models, *args, **kwargs):
            if isinstance(models[0], BatchTopKSAE):
                raise torch.OutOfMemoryError("no memory is left")
            super().__init__(models, *args, **kwargs)

    monkeypatch.setattr(program, "PackedStep", Step)
    members = [member(), member(k=2), member(variant="batch_topk"), member(seed=1)]
    trained(members, pack=True)
    assert [one.failure is None for one in members] == [True, True, False, True]
    assert [len(one.history) for one in members] == [4, 4, 0, 4]


def test_a_packed_checkpoint_continues_unpacked(tmp_path):
    whole = trained(four(), pack=True)
    cut_off(four(tmp_path), 21, pack=True)
    for one, expected in zip(trained(four(tmp_path), pack=False), whole, strict=True):
        near(one, expected)


def test_a_packed_member_that_is_not_finite_is_never_saved(tmp_path):
    bad, good = member(tmp_path, lr=1e30, warm_up=0.0), member(tmp_path, k=2, warm_up=0.0)
    cut_off([bad, good], 5, pack=True)
    assert isinstance(bad.failure, NonFiniteLossError)
    assert has_training(good.checkpoint)
    if has_training(bad.checkpoint):  # of a step before
        trainer = Trainer(bad.config, bad.training, ROWS, VALIDATION)
        checkpoints_module.load_training(trainer, bad.checkpoint)
        assert all(bool(t.isfinite().all()) for t in trainer.model.state_dict().values())


def test_a_checkpoint_that_is_of_no_use_is_replaced(tmp_path):
    one = member(tmp_path)
    cut_off([one], 9)
    (one.checkpoint / "training.safetensors").write_bytes(b"damaged")
    (again,), (expected,) = trained([member(tmp_path)]), trained([member()])
    same(again, expected)


def test_a_full_disk_costs_checkpoints_and_nothing_else(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints_module, "save_training", full)
    (one,), (expected,) = trained([member(tmp_path)], checkpoint_seconds=0), trained([member()])
    same(one, expected)
    assert not has_training(one.checkpoint)


def test_a_discarded_checkpoint_does_not_come_back(tmp_path):
    saved = []
    members = four(tmp_path)
    members[0].training = replace(TRAINING, epochs=1)
    for one in train_members(members, checkpoint_seconds=0, on_saved=saved.append):
        folder = one.checkpoint
        one.discard_checkpoint()
        assert not folder.exists()
    assert saved and not list(tmp_path.iterdir())


class Late(Rows):
    """Rows that come past, and are given only once ``others`` have ended."""

    passing = True

    def __init__(self, blocks, others=()):
        super().__init__(blocks)
        self.others = others

    def taken(self, order, batch_size):
        windows = list(order)
        until = time.monotonic() + 60
        while windows[0].among.epoch >= 0 and any(one.active for one in self.others):
            assert time.monotonic() < until
            time.sleep(0.01)
        yield from super().taken(iter(windows), batch_size)


def test_what_comes_past_late_holds_nobody_back():
    early = [member(rows=Late(numbers(0))), member(rows=Late(numbers(0)), seed=1)]
    late = member(rows=Late(numbers(1), early))
    ended = []
    for members in Ensemble([late, *early]).rounds(together=False):
        ended += members
        for one in members:
            assert one.trainer.step == one.trainer.steps
    assert sorted(map(ended.index, early)) == [0, 1] and ended[2] is late
    for one, alone in zip(
        [*early, late], [member(), member(seed=1), member(rows=OTHER_ROWS)], strict=True
    ):
        same(one, trained([alone])[0])


def test_what_was_released_has_ended():
    one = trained([member()])[0]
    one.release()
    assert not one.active and not one.begun
    one.stop("too late")
    assert one.stopped is None
