"""The free memory of a device, by a simulated allocator."""

import pytest
import torch

from raysae.sae import sae_config
from raysae.training import Trainer, TrainingConfig
from raysae.training import trainer as trainer_module
from raysae.training.memory import free_bytes, packed_bytes, release_cached
from raysae.training.rows import Rows
from raysae.training.statistics import input_statistics
from raysae.training.step import Step
from scripts.compile_kernels import packed_on_meta
from tests.simulated_gpu import LiveBytes, SimulatedGPU

GIB = 2**30


def test_blocks_that_torch_has_cached_are_free(monkeypatch):
    gpu = SimulatedGPU(16 * GIB, others=GIB, allocated=2 * GIB, cached=9 * GIB).install(monkeypatch)
    assert gpu.free() == 4 * GIB
    assert free_bytes("cuda") == free_bytes("cuda:0") == 13 * GIB


def test_a_process_with_a_part_of_a_gpu_has_what_is_left_of_it(monkeypatch):
    gpu = SimulatedGPU(16 * GIB, others=GIB, allocated=2 * GIB, cached=GIB).install(monkeypatch)
    gpu.fraction = 0.25
    assert free_bytes("cuda") == 2 * GIB
    gpu.others = 13 * GIB
    assert free_bytes("cuda") == GIB, "the others have taken more than their part"


def test_what_is_cached_is_given_back_on_gpus_alone(monkeypatch):
    gpu = SimulatedGPU(16 * GIB, cached=9 * GIB).install(monkeypatch)
    release_cached("cpu")
    assert gpu.emptied == 0
    release_cached("cuda:0")
    assert (gpu.emptied, gpu.free()) == (1, 16 * GIB)


def test_rows_that_would_fill_a_gpu_stay_in_memory(monkeypatch):
    SimulatedGPU(GIB, others=GIB - 1000).install(monkeypatch)
    rows = Rows(torch.randn(40, 8))
    assert rows.to("cuda") is rows, "1,280 bytes of 1,000"


SHAPES = [(32, 2048, 8, 512), (256, 2048, 8, 8), (256, 2048, 8, 256), (256, 2048, 100, 256)]
"""d_in, d_sae, k, batch: many latents of a batch, many weights, both; and many that are active."""


def live_bytes(shape, precision, variant, aux):
    """Bytes of what a packed step keeps for each of two SAEs, and of its temporaries at their peak."""
    d_in, d_sae, k, batch = shape
    x_NBD = torch.empty(2, batch, d_in, device="meta")
    rows = torch.empty((), dtype=torch.int64, device="meta")
    with LiveBytes() as bytes_of, torch.no_grad():
        step = packed_on_meta(
            d_in, d_sae, k, batch, saes=2, variant=variant, precision=precision
        )  # fmt: skip
        kept, bytes_of.peak = bytes_of.live, bytes_of.live
        step._train(x_NBD, rows, d_sae if aux else 0)
    return kept / 2, (bytes_of.peak - kept) / 2


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pack_takes_no_more_than_is_planned_and_not_much_less(shape, precision, variant):
    """By an allocator that counts each tensor: temporaries once without AuxK, once with all dead."""
    (d_in, d_sae, k, batch), most = shape, 1.3 if variant == "topk" else 2.5
    kept, plain = live_bytes(shape, precision, variant, aux=False)
    _, whole = live_bytes(shape, precision, variant, aux=True)
    training = TrainingConfig(batch_size=batch, precision=precision)
    for aux, taken in ((0.0, kept + 2 * plain), (0.1, kept + plain + whole)):
        settings = {"variant": variant, "d_sae": d_sae, "k": k, "aux_coefficient": aux}
        planned = packed_bytes(d_in, sae_config(settings), training)
        assert taken <= planned < most * taken, (aux, planned / taken)
        assert planned < packed_bytes(d_in, sae_config(settings), training, fast=False)


class NoStep(Step):
    """A step on a device that computes nothing."""

    name = "none"

    def gradients(self, *args):
        raise NotImplementedError

    update = gradients


def test_rows_on_the_device_are_one_copy_for_all_trainers(monkeypatch):
    monkeypatch.setattr(
        trainer_module, "step_of", lambda model, training, device: NoStep(model, training)
    )
    training = TrainingConfig(batch_size=32)
    train, validation = Rows(torch.randn(300, 8)), Rows(torch.randn(90, 8))
    statistics = input_statistics(train, validation, 0, training)
    config = sae_config({"variant": "topk", "d_sae": 16, "k": 2})
    with LiveBytes() as bytes_of:
        trainers = [
            Trainer(
                config, training, train, validation, seed=seed, device="meta", statistics=statistics
            )
            for seed in range(4)
        ]
    places = {id(rows) for one in trainers for rows in (one.train, one.validation)}
    assert len(places) == 2 and trainers[0].train.blocks[0].is_meta
    assert bytes_of.live < 1.5 * (train.nbytes + validation.nbytes)
    gone = id(trainers[0].train)
    del trainers
    again = train.to("meta")
    assert again is train.to("meta") and again is not train, gone
