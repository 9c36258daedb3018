"""Run in the peers' environment, which has Triton: its kernels, interpreted, against plain torch."""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from raysae.sae import build_sae, sae_config
from raysae.training import gpu
from raysae.training.config import TrainingConfig
from raysae.training.packed import PackedStep

D_IN, D_SAE, ROWS, STEPS = 12, 70, 9, 5


def selection_keeps_the_k_largest() -> None:
    pre_NBF = torch.randn(2, 5, D_SAE, generator=torch.Generator().manual_seed(0))
    pre_NBF[0, 0] = 0.5  # all equal: the first are kept
    pre_NBF[0, 1] = -1.0
    pre_NBF[0, 2, :2] = 7.0
    k_N = torch.tensor([3, 9])
    kept_NBF = gpu.select_rows(pre_NBF, k_N)
    for number, k in enumerate(k_N.tolist()):
        for pre_F, kept_F in zip(pre_NBF[number], kept_NBF[number], strict=True):
            expected = pre_F.topk(k).values.relu()
            assert torch.equal(
                kept_F[kept_F > 0].sort().values, expected[expected > 0].sort().values
            )
            assert torch.equal(kept_F[kept_F > 0], pre_F[kept_F > 0])
    assert kept_NBF[0, 0].nonzero().squeeze(1).tolist() == [0, 1, 2]


def selection_at_any_width() -> None:
    """Few and many of short and of the longest rows, with values that are equal."""
    for d_sae, k in ((70, 1), (1000, 512), (4096, 32), (gpu.LARGEST_ROW, 64)):
        pre_NBF = torch.randn(1, 2, d_sae, generator=torch.Generator().manual_seed(k))
        pre_NBF[0, 1] = (pre_NBF[0, 1] * 4).round()
        (kept_BF,) = gpu.select_rows(pre_NBF, torch.tensor([k]))
        for pre_F, kept_F in zip(pre_NBF[0], kept_BF, strict=True):
            expected = pre_F.topk(k).values.relu()
            assert torch.equal(kept_F.topk(k).values, expected) and int((kept_F > 0).sum()) <= k
            assert torch.equal(kept_F[kept_F > 0], pre_F[kept_F > 0])


def selection_keeps_nan() -> None:
    """Of either sign, above all numbers, as torch's topk does; so the loss is NaN."""
    pre_NBF = torch.randn(1, 4, D_SAE, generator=torch.Generator().manual_seed(0))
    pre_NBF[0, 0, 9] = torch.nan
    pre_NBF[0, 1, 9] = -torch.tensor(torch.nan)
    pre_NBF[0, 2, 9:20] = torch.nan
    pre_NBF[0, 3, 9] = torch.inf
    kept_NBF = gpu.select_rows(pre_NBF, torch.tensor([3]))
    assert kept_NBF[0].isnan().sum(dim=1).tolist() == [1, 1, 3, 0]
    assert (kept_NBF[0] != 0).sum(dim=1).tolist() == [3, 3, 3, 3]
    assert kept_NBF[0, 3, 9] == torch.inf


def trained(with_kernels: bool) -> PackedStep:
    gpu.INTERPRETED = with_kernels
    config = sae_config({"variant": "topk", "d_sae": D_SAE, "k": 4})
    training = TrainingConfig(lr=1e-2, batch_size=ROWS)
    models = [build_sae(config, D_IN, seed) for seed in range(2)]
    since_fired = [torch.zeros(D_SAE, dtype=torch.int64) for _ in models]
    step = PackedStep(models, [training] * 2, [3 * ROWS] * 2, since_fired, STEPS)
    rows_SNBD = torch.randn(STEPS, 2, ROWS, D_IN, generator=torch.Generator().manual_seed(1))
    for number, x_NBD in enumerate(rows_SNBD):
        if number == STEPS - 1:
            step.release(1)
        step.take(x_NBD)
    return step


def steps_are_those_of_torch() -> None:
    ours, theirs = trained(with_kernels=True), trained(with_kernels=False)
    for name, expected in theirs.p.items():
        difference = float((ours.p[name] - expected).abs().max())
        assert difference < 2e-6, (name, difference)
    assert torch.allclose(ours.loss_N, theirs.loss_N, rtol=1e-5)
    assert torch.equal(ours.since_fired_NF, theirs.since_fired_NF)


gpu.WIDEST_PART = 16  # so that rows of d_sae have several parts
selection_keeps_the_k_largest()
selection_at_any_width()
selection_keeps_nan()
steps_are_those_of_torch()
print("the kernels are right")
