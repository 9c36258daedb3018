"""Packs on rows that come past: each source is read once, at one pace, and each SAE ends as if alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from raysae.sae import sae_config
from raysae.training import feeding
from raysae.training.ensemble import Ensemble, Member, StopRules
from raysae.training.ensemble.packed_rows import HandedRows
from raysae.training.ensemble.passing import PassingPacks
from raysae.training.rows import Rows
from tests.training.ensemble.test_engine import (
    TRAINING,
    VALIDATION,
    cut_off,
    numbers,
    same,
    trained,
)
from tests.training.fused.op_log import HOST_READS, OpLog


class Passing(Rows):
    """Rows that come past; ``readers`` counts who reads them, ``log`` notes every batch with its source.
    The batch number ``fails_at`` cannot be read; before number ``ends_at`` the rows end."""

    passing = True

    def __init__(self, blocks, log=None, fails_at=None, ends_at=None):
        super().__init__(blocks)
        self.log, self.fails_at, self.ends_at = [] if log is None else log, fails_at, ends_at
        self.readers, self.batches = 0, 0

    def taken(self, order, batch_size):
        windows = list(order)
        if windows[0].among.epoch < 0:  # they are looked at before the first
            yield from super().taken(iter(windows), batch_size)
            return
        self.readers += 1
        for batch_BD in super().taken(iter(windows), batch_size):
            self.batches += 1
            self.log.append(self)
            if self.fails_at == self.batches:
                raise OSError("the model is gone")
            if self.ends_at == self.batches:
                return
            yield batch_BD


ONE, OTHER = numbers(0), numbers(1)


def member(rows, seed=0, k=3, variant="topk", d_sae=24, checkpoint=None, **training):
    size = {"k": k} if "topk" in variant else {}
    config = sae_config({"variant": variant, "d_sae": d_sae, **size})
    settings = replace(TRAINING, **training)
    return Member(config, settings, rows, VALIDATION, seed, checkpoint=checkpoint)


def several(one, other, folder=None, **training):
    """Two sites, two seeds, unlike sizes and settings, and a variant that cannot be packed."""
    own = [
        (one, {}), (one, {"k": 5, "lr": 1e-3}), (one, {"seed": 1}), (one, {"d_sae": 32}),
        (other, {}), (other, {"variant": "batch_topk"}), (one, {"variant": "gated"}),
    ]  # fmt: skip
    return [
        member(rows, checkpoint=folder and folder / str(number), **settings, **training)
        for number, (rows, settings) in enumerate(own)
    ]


@pytest.fixture
def runs(monkeypatch):
    """What trains, as it was made."""
    made, make = [], Ensemble._run
    monkeypatch.setattr(
        Ensemble, "_run", lambda self, group: made.append(make(self, group)) or made[-1]
    )
    return made


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("training", [{}, {"precision": "bfloat16", "frozen": "decoder"}])
def test_each_ends_as_in_a_pack_of_its_own(runs, together, training):
    members = several(Passing(ONE), Passing(OTHER), **training)
    ended = [
        one for round_ in Ensemble(members, pack=True).rounds(together=together) for one in round_
    ]
    assert sorted(map(members.index, ended)) == list(range(len(members)))
    (run,) = runs
    assert isinstance(run, PassingPacks) and len(run.sources) == 3
    assert [len(pack.members) for pack in run.packs] == [4, 1, 1] and run.alone == members[6:]
    kinds = ["pack"] * 6 + ["torch"]
    assert [one.trainer.trained_by for one in members] == kinds
    for one, alone in zip(members, several(Rows(ONE), Rows(OTHER), **training), strict=True):
        same(one, trained([alone], pack=True)[0])


def test_each_source_is_read_once_and_none_far_ahead_of_another(monkeypatch):
    monkeypatch.setattr(feeding, "AHEAD_BYTES", 1)  # a batch at a time
    log = []
    one, other = Passing(ONE, log), Passing(OTHER, log)
    trained(several(one, other), pack=True)
    epochs = TRAINING.epochs
    assert one.readers == 2 * epochs and other.readers == epochs  # one a seed
    ahead = 0
    for read in log:
        ahead += 1 if read is one else -2  # two seeds read the first
        assert abs(ahead) <= 6, "a batch or two"
    assert len(log) == 3 * 8 * epochs


def test_a_member_that_fails_or_stops_leaves_the_others_to_the_bit():
    members = several(Passing(ONE), Passing(OTHER))
    members[1].training = replace(members[1].training, lr=1e30, warm_up=0.0)
    rules = StopRules(keep=lambda one, record: one is not members[4])
    list(Ensemble(members, pack=True, rules=rules).rounds())
    assert "not finite" in str(members[1].failure) and members[4].stopped
    alone = several(Rows(ONE), Rows(OTHER))
    for number in (0, 2, 3, 5, 6):
        same(members[number], trained([alone[number]], pack=True)[0])


def test_a_source_that_cannot_be_read_ends_its_own_members():
    members = several(Passing(ONE), Passing(OTHER, fails_at=9))
    list(Ensemble(members, pack=True).rounds())
    failed = [str(one.failure) if one.failure else None for one in members]
    assert failed == [None] * 4 + ["the model is gone"] * 2 + [None]
    same(members[0], trained([several(Rows(ONE), Rows(OTHER))[0]], pack=True)[0])


def test_a_source_whose_rows_end_early_ends_its_own_members():
    members = [member(Passing(ONE, ends_at=6)), member(Passing(OTHER), seed=1)]
    list(Ensemble(members, pack=True).rounds())
    short, whole = members
    assert short.trainer.tokens == 5 * 64 and short.history[-1]["step"] == 5
    assert short.failure is None and not short.active
    same(whole, trained([member(Rows(OTHER), seed=1)], pack=True)[0])


def test_what_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    expected = trained(several(Passing(ONE), Passing(OTHER)), pack=True)
    cut_off(several(Passing(ONE), Passing(OTHER), tmp_path), 11, pack=True)
    for one, whole in zip(
        trained(several(Passing(ONE), Passing(OTHER), tmp_path), pack=True), expected, strict=True
    ):
        same(one, whole)


def test_on_a_cpu_they_are_trained_one_by_one_as_ever(runs):
    members = several(Passing(ONE), Passing(OTHER))
    trained(members)
    assert not any(isinstance(run, PassingPacks) for run in runs)
    for one, alone in zip(members, several(Rows(ONE), Rows(OTHER)), strict=True):
        same(one, trained([alone])[0])


def test_batches_are_put_side_by_side_without_a_host_read():
    mean_D = torch.zeros(6, device="meta")
    members = [SimpleNamespace(trainer=SimpleNamespace(mean_D=mean_D, scale=2.0))] * 3
    batches = [torch.empty(4, 6, device="meta", dtype=torch.float16) for _ in range(2)]
    placed = HandedRows(members, batches, [0, 1, 0]).placed(None)
    with OpLog() as log:
        x_NBD, position = next(placed)
    assert x_NBD.shape == (3, 4, 6) and x_NBD.dtype == torch.float32 and position is None
    assert log.operations and not HOST_READS & {one.name for one in log.operations}
