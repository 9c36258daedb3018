"""The plan: one definition of the same batches, of one shape, and of what fits."""

import dataclasses

import pytest
import torch

from raysae.sae import sae_config
from raysae.sae.metrics import Sinks
from raysae.training import TrainingConfig
from raysae.training.ensemble import Member
from raysae.training.ensemble import plan as plan_module
from raysae.training.ensemble.plan import batch_settings, plan
from raysae.training.iterator_rows import IteratorRows
from raysae.training.rows import Rows

TRAINING = TrainingConfig(epochs=2, batch_size=64)
NUMBERS = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
ROWS, OTHER_ROWS = Rows(NUMBERS), Rows(NUMBERS)


SINKS = Sinks(torch.zeros(8, dtype=torch.float64), 4.0)


def member(rows=ROWS, seed=0, k=2, variant="topk", **training):
    config = sae_config(
        {"variant": variant, "d_sae": 16, **({"k": k} if "topk" in variant else {})}
    )
    return Member(config, dataclasses.replace(TRAINING, **training), rows, ROWS, seed)


def groups(*members, pack=False, side_by_side=True):
    planned = plan(members, "cpu", pack, side_by_side=side_by_side)
    return [([members.index(m) for m in group.members], group.packed) for group in planned]


def test_the_same_batches_are_those_of_equal_rows_seed_size_passes_and_window():
    settings = [{"epochs": 3}, {"tokens": 500}, {"batch_size": 32}, {"shuffle_rows": 100}]
    same = [member(), member(k=3), member(variant="gated"), member(lr=1.0, evaluations=3)]
    other = [member(seed=1), member(rows=OTHER_ROWS), *(member(**one) for one in settings)]
    planned = groups(*same, *other)
    assert planned == [([0, 1, 2, 3], False), *(([4 + n], False) for n in range(len(other)))]


def test_the_settings_of_the_batches_are_all_that_change_them():
    """Any setting that changes the batches which the rows give is among ``batch_settings``."""

    def batches(training):
        rows = ROWS.without(SINKS) if training.sink_rows == "leave_out" else ROWS
        passes = range(training.passes(len(rows)))
        every = [rows.epoch(0, n, training.batch_size, training.shuffle_rows) for n in passes]
        taken = [batch for epoch in every for batch in epoch][: training.steps(len(rows))]
        return [batch.tolist() for batch in taken]

    changes = {
        "epochs": 3, "tokens": 500, "batch_size": 32, "shuffle_rows": 100, "lr": 1.0,
        "warm_up": 0.1, "decay": 0.1, "evaluations": 2, "gradient_clip": 1.0,
        "precision": "bfloat16", "compiled": False, "dead_window_tokens": 5,
        "aux_window_tokens": 5, "sparsity_warm_up": 0.3, "sink_rows": "leave_out",
        "frozen": "decoder",
    }  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(TrainingConfig)}
    for name, value in changes.items():
        changed = dataclasses.replace(TRAINING, **{name: value})
        alike = batch_settings(changed) == batch_settings(TRAINING)
        assert alike == (batches(changed) == batches(TRAINING)), name


def test_members_of_one_shape_are_one_packed_program():
    members = [member(), member(rows=OTHER_ROWS, seed=3, k=5, lr=0.1), member(variant="gated")]
    assert groups(*members, pack=True) == [([0, 1], True), ([2], False)]
    assert groups(*members, pack=None) == [([0, 2], False), ([1], False)]
    unlike = {"lr": 0.1, "warm_up": 0.3, "decay": 0.0, "gradient_clip": 1.0}
    assert groups(member(), member(**unlike), pack=True) == [([0, 1], True)]
    left_out = [member(sink_rows="leave_out"), member(k=3, sink_rows="leave_out")]
    assert groups(*left_out, member(), pack=True) == [([0, 1], True), ([2], True)]
    frozen = [member(frozen="decoder"), member(frozen="decoder", k=3)]
    assert groups(*frozen, member(), pack=True) == [([0, 1], True), ([2], True)]
    assert groups(member(), member(compiled=False), pack=True) == [([0], True), ([1], True)]
    half = Rows(NUMBERS.half())
    assert groups(member(), member(rows=half), pack=True) == [([0], True), ([1], True)]


def test_what_does_not_fit_is_packed_in_parts_or_not_at_all(monkeypatch):
    members = [member(seed=seed) for seed in range(5)]
    room = int(2 * plan_module._bytes(members[:1], "cpu") / 0.9) + 1  # a tenth is a reserve
    monkeypatch.setattr(plan_module, "free_bytes", lambda device: room)
    assert groups(*members, pack=True, side_by_side=False) == [
        ([0, 1], True), ([2, 3], True), ([4], True)
    ]  # fmt: skip
    assert groups(*members, pack=True) == [([seed], False) for seed in range(5)]
    room //= 4
    assert groups(*members, pack=True, side_by_side=False) == groups(*members)


def test_rows_that_pass_by_once_serve_one_group():
    once = IteratorRows(iter([NUMBERS]), 300)
    assert groups(member(rows=once), member(rows=once, k=3)) == [([0, 1], False)]
    with pytest.raises(ValueError, match="an iterator can be trained on once"):
        groups(member(rows=once), member(rows=once, seed=1))
    assert groups(member(rows=once), member(rows=once, k=3), pack=True) == [([0, 1], True)]
    with pytest.raises(ValueError, match="an iterator can be trained on once"):
        groups(member(rows=once), member(rows=once, seed=1), pack=True)


def passing(count=300, pace=()):
    rows = Rows(NUMBERS[:count])
    rows.passing, rows.pace = True, pace
    return rows


def test_rows_that_come_past_for_several_are_trained_on_together(monkeypatch):
    one, other = passing(), passing()
    members = [member(rows=one), member(rows=other, seed=1, k=5), member(rows=one, variant="gated")]
    assert groups(*members, pack=True) == [([0, 1, 2], True)]
    assert groups(*members, pack=None) == [([0, 2], False), ([1], False)]
    packs, alone = plan_module.packs_of([*members, member(rows=one, precision="bfloat16")])
    assert [len(pack) for pack in packs] == [2, 1] and alone == members[2:]
    unlike = [member(rows=passing(200)), member(rows=passing(pace=(0, 300))), member(rows=one)]
    assert groups(*unlike, pack=True) == [([0], True), ([1], True), ([2], True)]
    assert groups(member(rows=one), member(rows=one, epochs=3), pack=True) == [
        ([0], True), ([1], True)
    ]  # fmt: skip
    monkeypatch.setattr(plan_module, "free_bytes", lambda device: 100)
    assert groups(*members, pack=True) == [([0, 2], False), ([1], False)], "no room for packs"


def test_a_pack_counts_the_rows_that_are_not_on_its_device_yet():
    two = [member(), member(rows=OTHER_ROWS)]
    alone, together = (plan_module._bytes(members, "cpu") for members in (two[:1], two))
    assert together == 2 * alone + 2 * ROWS.nbytes, "side by side they are one more copy"
    assert plan_module._bytes(two[:1], "cuda") == alone + ROWS.nbytes
    two[0].validation = OTHER_ROWS
    assert plan_module._bytes(two[:1], "cuda") == alone + 2 * ROWS.nbytes
