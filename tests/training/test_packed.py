"""The packed step, on the CPU: what it does where no GPU is needed to show it."""

import pytest
import torch

from raysae.sae import build_sae, sae_config
from raysae.training.config import TrainingConfig
from raysae.training.packed import PackedStep

D_IN, D_SAE, ROWS, STEPS = 12, 40, 16, 12


def packed(variant="topk", ks=(3, 5), windows=(3 * ROWS, 4 * ROWS), **training):
    """A packed step of two SAEs with k and AuxK windows of their own."""
    models = [
        build_sae(sae_config({"variant": variant, "d_sae": D_SAE, "k": k}), D_IN, seed)
        for seed, k in enumerate(ks)
    ]
    settings = TrainingConfig(**{"lr": 1e-2, "batch_size": ROWS, **training})
    since_fired = [torch.zeros(D_SAE, dtype=torch.int64) for _ in models]
    return PackedStep(models, [settings] * len(models), windows, since_fired, STEPS)


def batches(count=STEPS, rows=ROWS):
    return torch.randn(count, 2, rows, D_IN, generator=torch.Generator().manual_seed(1))


def same(one, other):
    for name, expected in other.p.items():
        assert torch.equal(one.p[name], expected), name
    assert torch.equal(one.since_fired_NF, other.since_fired_NF)
    assert torch.equal(one.loss_N, other.loss_N)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_a_weight_that_is_nan_stops_its_sae_before_the_update(variant, name):
    step, whole = packed(variant), packed(variant)
    first, *others = batches(4)
    step.take(first)
    whole.take(first)
    step.p[name][1].view(-1)[3] = torch.nan
    before = {name: tensor[1].clone() for name, tensor in step.p.items()}
    for x_NBD in others:
        step.take(x_NBD)
        whole.take(x_NBD)
    assert step.failed_N.tolist() == [-1, 1]
    for name, tensor in step.p.items():
        assert torch.equal(tensor[1].isnan(), before[name].isnan()), name
        assert torch.equal(tensor[0], whole.p[name][0]), "the other SAE goes on to the same bits"
