"""Run in an environment with Triton: its kernels, interpreted, against what they do in plain torch.

``--long`` goes through all sizes: d_sae 70 to 65,536, k 1 to 512, both precisions (some minutes);
``--cuda`` runs the kernels on a GPU instead, ``--few`` the fewest of them.
"""

import os
import sys
from itertools import product
from pathlib import Path

os.environ["TRITON_INTERPRET"] = str(int("--cuda" not in sys.argv))  # read by Triton's import
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch.nn.functional import normalize

from raysae.sae import build_sae, sae_config
from raysae.training import gpu, packed
from raysae.training.config import TrainingConfig
from raysae.training.fused import adam, passes
from raysae.training.fused.batch_selection import select_batch
from raysae.training.fused.selection import select_rows
from raysae.training.packed import PackedStep

D_IN, D_SAE, ROWS, STEPS = 12, 300, 9, 6
FLOAT, HALF = torch.float32, torch.bfloat16
CUDA, LONG, FEW = (name in sys.argv for name in ("--cuda", "--long", "--few"))
DEVICE = torch.device("cuda" if CUDA else "cpu")
torch.set_default_device(DEVICE)


def random(*shape, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cpu").to(DEVICE)


def near(what, ours, theirs, tolerance=1e-5):
    ours, theirs = ours.float(), theirs.float()
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
    assert difference < tolerance, (what, difference)


def preactivations(saes, rows, d_sae, dtype, kind):
    pre_NBF, bias_NF = random(saes, rows, d_sae, seed=d_sae), random(saes, d_sae) * 0.1
    if kind == "ties":
        pre_NBF, bias_NF = (pre_NBF * 2).round(), bias_NF * 0
    if kind == "few":
        pre_NBF = pre_NBF - 3
    if kind == "nan":
        pre_NBF[0, 0, 3:6] = torch.tensor([torch.nan, -torch.nan, torch.inf])
    return pre_NBF.to(dtype), bias_NF


def selection(select, d_sae, k, dtype, kind, saes=2, rows=3):
    """The same entries, to the bit; the last row only pads the batch."""
    pre_NBF, bias_NF = preactivations(saes, rows, d_sae, dtype, kind)
    k_N = torch.tensor([k, max(k // 2, 1)][:saes])
    real = torch.tensor(rows - 1)
    ours, theirs = (select(pre_NBF, bias_NF, k_N, k, real, fast) for fast in (True, False))
    there = theirs.column_NE < d_sae
    for name, one, other in zip(ours._fields, ours, theirs, strict=True):
        kept = there if name == "row_NE" else torch.ones_like(one, dtype=torch.bool)
        same = torch.equal(one[kept].nan_to_num(9.0), other[kept].nan_to_num(9.0))
        assert same, (name, select, d_sae, k, kind)
    assert (ours.value_NE[0].isnan().sum() > 0) == (kind == "nan"), "NaN is above all numbers"
    assert int(ours.count_NB[:, -1].sum()) == 0


def selections():
    sizes = [(70, 9)] if FEW else [(70, 1), (70, 9), (1000, 512)]
    if LONG:
        sizes = list(product((70, 1000, 4096, 24_576, 65_536), (1, 32, 512)))
    for d_sae, k in sizes:
        for dtype, kind in product((FLOAT, HALF), ("plain", "ties", "few", "nan")):
            if LONG or (dtype == HALF) == (kind == "ties"):
                selection(select_rows, d_sae, min(k, d_sae), dtype, kind)
                selection(select_batch, d_sae, min(k, d_sae), dtype, kind)
    if not (LONG or FEW):
        selection(select_rows, 65_536, 64, HALF, "ties", saes=1, rows=2)


def the_passes(d_sae, k, d_in, dtype, batch, aux, saes=2, rows=4):
    """Decoding, gradients and Adam, each from the same arguments."""
    pre_NBF, bias_NF = preactivations(saes, rows, d_sae, FLOAT, "plain")
    k_N, real = torch.tensor([k, max(k // 2, 1)][:saes]), torch.tensor(rows - 1)
    entries = (select_batch if batch else select_rows)(pre_NBF, bias_NF, k_N, k, real, False)
    x_NBD, b_dec_ND = random(saes, rows, d_in, seed=1), random(saes, d_in, seed=2)
    W_dec_NFD = normalize(random(saes, d_sae, d_in, seed=3), dim=2)
    W_enc_NFD = random(saes, d_sae, d_in, seed=4)
    ours, theirs = (
        passes.decode(x_NBD, W_dec_NFD.to(dtype), b_dec_ND, entries, real, fast)
        for fast in (True, False)
    )
    there = entries.column_NE < d_sae
    near("error", ours.error_NBD, theirs.error_NBD, 1e-5 if dtype == FLOAT else 1e-2)
    near("loss", ours.loss_NB, theirs.loss_NB)
    near("dz", ours.dz_NE[there], theirs.dz_NE[there])
    more = additions(saes, d_sae, d_in) if aux else None
    order, start_NF = passes.by_latent(entries, d_sae)
    centered_NBD = random(saes, rows, d_in, seed=5).to(dtype)
    of_ours, of_theirs = (
        passes.latent_gradients(entries, ours, centered_NBD, order, start_NF, real, more, fast)
        for fast in (True, False)
    )
    has = of_theirs.square_NF >= 0
    assert torch.equal(of_ours.square_NF >= 0, has) and (aux or not has.all())
    for name in of_ours._fields:
        near(name, getattr(of_ours, name)[has], getattr(of_theirs, name)[has], 1e-4)
    sums = [
        passes.weighted_rows(W_enc_NFD.to(dtype), of_ours.bias_NF, fast) for fast in (True, False)
    ]
    near("sums", *sums, 1e-4)
    both = [moved(of_theirs, W_dec_NFD, W_enc_NFD, dtype, fast) for fast in (True, False)]
    for one, other in zip(*both, strict=True):
        near("adam", one, other, 1e-5 if one.dtype == FLOAT else 1e-2)


def additions(saes, d_sae, d_in, count=5):
    """What AuxK adds for five latents of each SAE."""
    slot_NF = torch.full((saes, d_sae), -1, dtype=torch.int32)
    slot_NF[:, 2 : 2 + count] = torch.arange(count, dtype=torch.int32)
    rows = random(saes, count, d_in, seed=6), random(saes, count, d_in, seed=7)
    return passes.More(slot_NF, *rows, random(saes, count, seed=8), random(saes, count, seed=9))


def moved(made, W_dec_NFD, W_enc_NFD, dtype, fast):
    """All that Adam changes; the last SAE no longer does."""
    saes = len(W_dec_NFD)
    dec, enc = (
        adam.Moving(p.clone(), torch.full_like(p, 0.01), torch.full_like(p, 0.001))
        for p in (W_dec_NFD, W_enc_NFD)
    )
    copies = (dec.p, enc.p) if dtype == FLOAT else (dec.p.to(dtype), enc.p.to(dtype))
    alive_N = torch.arange(saes) < max(saes - 1, 1)
    rates = adam.Rates(
        torch.full((saes,), 0.5), torch.full((saes,), 0.01), torch.tensor([0.7]), alive_N
    )
    adam.adam_rows(made, dec, enc, copies, rates, fast)
    return dec.p, dec.m, dec.v, enc.p, enc.m, enc.v, *copies


def all_passes():
    the_passes(70, 4, 12, HALF, batch=False, aux=True)
    the_passes(90, 9, 70, FLOAT, batch=True, aux=False)
    if LONG:
        for d_sae, k, d_in in ((70, 1, 12), (1000, 512, 70), (4096, 32, 768), (2000, 9, 5000)):
            for dtype, batch, aux in product((FLOAT, HALF), (False, True), (False, True)):
                the_passes(d_sae, k, d_in, dtype, batch, aux, saes=1, rows=3)


def trained(variant, with_kernels, sparse, precision="float32"):
    """Two SAEs with dead latents, one of which leaves; the last batch is smaller."""
    gpu.launches = lambda device: with_kernels
    packed.SPARSE_SHARE = 1.0 if sparse else 0.0
    config = sae_config({"variant": variant, "d_sae": D_SAE, "k": 4})
    training = TrainingConfig(lr=1e-2, batch_size=ROWS, precision=precision)
    with torch.device("cpu"):
        models = [build_sae(config, D_IN, seed).to(DEVICE) for seed in range(2)]
    since_fired = [torch.zeros(D_SAE, dtype=torch.int64) for _ in models]
    step = PackedStep(models, [training] * 2, [2 * ROWS, 3 * ROWS], since_fired, STEPS)
    assert step.kind.fast == with_kernels and step.kind.sparse == (with_kernels and sparse)
    rows_SNBD = random(STEPS, 2, ROWS, D_IN, seed=1)
    for number, x_NBD in enumerate(rows_SNBD):
        if number == STEPS - 1:
            step.release(1)
        step.take(x_NBD[:, : 5 if number == 3 else ROWS])
    return step


def steps_are_those_of_torch():
    """By kernels over the active latents, by kernels and whole products, and by plain torch."""
    cases = [("topk", True, "float32"), ("batch_topk", False, "float32")]
    if FEW:
        cases = cases[:1]
    if LONG:
        cases = list(product(("topk", "batch_topk"), (True, False), ("float32", "bfloat16")))
    for variant, sparse, precision in cases:
        ours = trained(variant, with_kernels=True, sparse=sparse, precision=precision)
        theirs = trained(variant, with_kernels=False, sparse=False, precision=precision)
        again = trained(variant, True, sparse, precision) if LONG else ours
        exact = precision == "float32"
        for name, expected in theirs.p.items():
            # Adam makes a step of what is rounding error alone, so single weights may be further apart
            apart = (ours.p[name] - expected).abs().mean() / expected.abs().mean()
            assert apart < (2e-5 if exact else 5e-2), (name, float(apart))
            assert torch.equal(ours.p[name], again.p[name]), "twice the same bits"
        near("loss", ours.loss_N, theirs.loss_N, 1e-4 if exact else 2e-2)
        if exact:
            assert torch.equal(ours.since_fired_NF, theirs.since_fired_NF)
        if ours.threshold_N is not None:
            near("threshold", ours.threshold_N, theirs.threshold_N, 1e-4 if exact else 2e-2)


selections()
all_passes()
steps_are_those_of_torch()
print("the kernels are right")
