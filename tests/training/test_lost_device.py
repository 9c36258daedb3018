"""Which errors cost a process its GPU, and that no training swallows one of them."""

import pytest
import torch

from raysae.sae import sae_config
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member
from raysae.training.lost_device import is_lost
from raysae.training.packed import PackedStep
from raysae.training.rows import Rows
from raysae.training.trainer import Trainer

ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress'"
)
ROWS = Rows(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(ILLEGAL, 700),
        RuntimeError(ILLEGAL),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    ],
    ids=str,
)
def test_a_context_is_lost(error):
    assert is_lost(error)
    try:
        raise ValueError("could not save") from error
    except ValueError as later:
        assert is_lost(later)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: invalid argument"),
        OSError("an illegal memory access in the cuda notes"),
        ValueError("k is 9, above d_sae 8"),
    ],
    ids=str,
)
def test_or_is_not(error):
    assert not is_lost(error)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("message", [ILLEGAL, "CUDA error: out of memory"])
def test_a_lost_gpu_ends_all_and_too_little_memory_one_program(monkeypatch, pack, message):
    def take(self, batch):
        raise RuntimeError(message)

    monkeypatch.setattr(PackedStep if pack else Trainer, "take", take)
    config = sae_config({"variant": "topk", "d_sae": 16, "k": 2})
    members = [Member(config, TrainingConfig(batch_size=20), ROWS, ROWS, seed) for seed in range(2)]
    ensemble = Ensemble(members, pack=pack)
    if message == ILLEGAL:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            list(ensemble.rounds())
        assert not any(one.failure for one in members)
    else:
        list(ensemble.rounds())
        assert all("out of memory" in str(one.failure) for one in members)
