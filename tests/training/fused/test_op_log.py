"""A step on torch's meta device: no host read, no shape that depends on data, few bytes moved."""

import pytest
import torch

from scripts.compile_kernels import packed_on_meta
from tests.training.fused.op_log import HOST_READS, step_log

WIDE = {"d_in": 768, "d_sae": 24_576, "k": 32, "batch": 4096}
GB = 10**9


@pytest.fixture(scope="module")
def wide():
    return step_log(packed_on_meta(**WIDE), 4096)


def test_the_wide_step_moves_at_most_two_gigabytes(wide):
    """Each operand once: a float32 Adam alone moves .9 of them."""
    assert wide.nbytes <= 2 * GB, wide.largest(20)
    kernels = {"select_rows", "decode_rows", "latent_gradients", "weighted_rows", "adam_rows"}
    assert {one.kernel for one in wide.launches} == kernels
    assert sum(one.nbytes for one in wide.launches) > 0.8 * wide.nbytes


def test_a_wide_step_allocates_the_preactivations_and_the_gradients_and_little_else(wide):
    d_in, d_sae, batch = WIDE["d_in"], WIDE["d_sae"], WIDE["batch"]
    expected = 2 * batch * d_sae + 2 * 4 * d_sae * d_in
    made = sum(one.made for one in wide.operations)
    assert expected < made < 1.35 * expected
    large = [one for one in wide.operations if one.made > 0.1 * expected]
    assert [one.name for one in large] == ["bmm", "empty", "empty"]


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
@pytest.mark.parametrize("columns", [0, 64])
@pytest.mark.parametrize("k", [4, 40])
def test_no_operation_waits_for_the_host_and_equal_steps_have_equal_shapes(variant, columns, k):
    """With and without AuxK, over the active latents and by whole products, for several SAEs."""
    step = packed_on_meta(96, 512, k, 128, saes=3, variant=variant)
    assert step.kind.sparse == (k == 4)
    first, again = (step_log(step, 128, columns) for _ in range(2))
    assert not HOST_READS & set(first.names) and first.shapes == again.shapes
    assert "topk" not in first.names, "nothing is ranked by sorting"
    sorts = [one for one in first.operations if one.name == "sort"]
    entries = 3 * 128 * k
    sizes = {shapes[0] for _, shapes, *_ in sorts}
    assert sizes == ({(entries,)} if k == 4 else set()) | ({(3, 512)} if columns else set())


def test_aux_k_moves_what_its_columns_take():
    step = packed_on_meta(**WIDE)
    none, few, more = (step_log(step, 4096, columns).nbytes for columns in (0, 64, 1024))
    assert none < few < none + 0.7 * GB and few < more < none + 1.1 * GB


def test_batch_top_k_reads_the_batch_a_few_times_and_sorts_none_of_it():
    log = step_log(packed_on_meta(**WIDE, variant="batch_topk"), 4096)
    assert log.names["count_digits"] == 3 and log.nbytes <= 3 * GB
    assert sum(one.nbytes for one in log.operations if one.name == "sort") < 0.01 * GB


def test_rows_too_wide_for_a_program_are_trained_by_torch():
    assert packed_on_meta(8192, 128, 2, 16).kind.fast
    assert not step_log(packed_on_meta(10_000, 128, 2, 16), 16).launches


def test_packs_on_meta_hold_weights_moments_and_copies_alone():
    step = packed_on_meta(64, 256, 2, 16, saes=2)
    held = {id(one) for moving in step.moving.values() for one in (moving.p, moving.m, moving.v)}
    assert len(held) == 12 and {copy.dtype for copy in step.copies} == {torch.bfloat16}
    step = packed_on_meta(64, 256, 2, 16, saes=2, precision="float32")
    assert step.copies[0] is step.p["W_dec"] and step.copies[1] is step.p["W_enc"]


@pytest.mark.parametrize("columns", [0, 64])
@pytest.mark.parametrize("k", [4, 40])
def test_a_frozen_decoder_costs_no_gradient_no_moments_and_no_host_read(columns, k):
    shape = {"d_in": 96, "d_sae": 512, "k": k, "batch": 128, "saes": 3}
    learns, frozen = (
        step_log(packed_on_meta(**shape, frozen=frozen), 128, columns) for frozen in (False, True)
    )
    assert not HOST_READS & set(frozen.names) and frozen.nbytes < 0.75 * learns.nbytes
    assert frozen.names["bmm"] == learns.names["bmm"] - (columns > 0) - (k == 40)
    step = packed_on_meta(**shape, frozen=True)
    assert not step.moving["W_dec"].m.numel() and not step.moving["W_dec"].v.numel()
    (adam,) = [one for one in frozen.launches if one.kernel == "adam_rows"]
    assert step.p["W_dec"].shape not in [
        one.shape for name, one in adam.tensors.items() if "dec" in name
    ]
