"""Run in an environment with Triton: its kernels, interpreted, against what they do in plain torch.

``--long`` goes through all sizes, d_sae 70 to 65,536 and k 1 to 512: each with every kind of numbers,
every kind in both precisions. ``--part=2/8`` runs the second of eight parts alone. ``--cuda`` runs the
kernels on a GPU instead, ``--few`` the fewest of them. All cases of a part are run; those that fail are
named at the end.
"""

import os
import sys
import time
import traceback
from functools import partial
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

D_IN, D_SAE, ROWS, STEPS = 12, 60, 9, 5
FLOAT, HALF = torch.float32, torch.bfloat16
CUDA, LONG, FEW = (name in sys.argv for name in ("--cuda", "--long", "--few"))
PART = next((word.removeprefix("--part=") for word in sys.argv if "--part=" in word), "1/1")
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
    """The selections as cases: each one's name, and what runs it."""
    sizes = [(70, 9)] if FEW else [(70, 1), (70, 9), (1000, 512)]
    if LONG:
        sizes = list(product((70, 1000, 4096, 24_576, 65_536), (1, 32, 512)))
    for select, (number, (d_sae, k)) in product((select_rows, select_batch), enumerate(sizes)):
        for place, kind in enumerate(("plain", "ties", "few", "nan")):
            half = (number + place) % 2 if LONG else kind == "ties"
            yield case(selection, select, d_sae, min(k, d_sae), HALF if half else FLOAT, kind)
    if not (LONG or FEW):
        yield case(selection, select_rows, 65_536, 64, HALF, "ties", saes=1, rows=2)


def case(check, *arguments, **named):
    """A check with its arguments, and its name."""
    words = [getattr(one, "__name__", str(one)) for one in (check, *arguments)]
    words += [f"{name}={value}" for name, value in named.items()]
    return " ".join(words), partial(check, *arguments, **named)


def the_passes(d_sae, k, d_in, dtype, batch, aux, saes=2, rows=4, frozen=False):
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
        passes.latent_gradients(
            entries, ours, centered_NBD, order, start_NF, real, more, fast, frozen
        )
        for fast in (True, False)
    )
    has = of_theirs.square_NF >= 0
    assert torch.equal(of_ours.square_NF >= 0, has) and (aux or not has.all())
    for name in of_ours._fields:
        if name == "dec_NFD" and frozen:
            assert not of_ours.dec_NFD.numel() and not of_theirs.dec_NFD.numel()
            continue
        near(name, getattr(of_ours, name)[has], getattr(of_theirs, name)[has], 1e-4)
    sums = [
        passes.weighted_rows(W_enc_NFD.to(dtype), of_ours.bias_NF, fast) for fast in (True, False)
    ]
    near("sums", *sums, 1e-4)
    both = [moved(of_theirs, W_dec_NFD, W_enc_NFD, dtype, fast, frozen) for fast in (True, False)]
    for one, other in zip(*both, strict=True):
        near("adam", one, other, 1e-5 if one.dtype == FLOAT else 1e-2)


def additions(saes, d_sae, d_in, count=5):
    """What AuxK adds for five latents of each SAE."""
    slot_NF = torch.full((saes, d_sae), -1, dtype=torch.int32)
    slot_NF[:, 2 : 2 + count] = torch.arange(count, dtype=torch.int32)
    rows = random(saes, count, d_in, seed=6), random(saes, count, d_in, seed=7)
    return passes.More(slot_NF, *rows, random(saes, count, seed=8), random(saes, count, seed=9))


def moved(made, W_dec_NFD, W_enc_NFD, dtype, fast, frozen):
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
    adam.adam_rows(made, dec, enc, copies, rates, fast, frozen)
    assert torch.equal(dec.p, W_dec_NFD) == frozen
    return dec.p, dec.m, dec.v, enc.p, enc.m, enc.v, *copies


def all_passes():
    """The passes as cases."""
    yield case(the_passes, 70, 4, 12, HALF, batch=False, aux=True)
    yield case(the_passes, 90, 9, 70, FLOAT, batch=True, aux=False)
    yield case(the_passes, 70, 4, 12, HALF, batch=False, aux=True, frozen=True)
    if LONG:
        yield case(the_passes, 4096, 32, 768, HALF, True, True, saes=1, rows=3)
        for d_sae, k, d_in in ((70, 1, 12), (600, 512, 70), (500, 32, 768), (200, 9, 5000)):
            for dtype, batch, aux in product((FLOAT, HALF), (False, True), (False, True)):
                yield case(the_passes, d_sae, k, d_in, dtype, batch, aux, saes=1, rows=3)


def pack(variant, with_kernels, sparse, precision, frozen=None):
    """Two SAEs that have dead latents after a few steps."""
    gpu.launches = lambda device: with_kernels
    packed.SPARSE_SHARE = 1.0 if sparse else 0.0
    config = sae_config({"variant": variant, "d_sae": D_SAE, "k": 4})
    training = TrainingConfig(lr=1e-2, batch_size=ROWS, precision=precision, frozen=frozen)
    with torch.device("cpu"):
        models = [build_sae(config, D_IN, seed).to(DEVICE) for seed in range(2)]
    for model in models:
        model.W_dec.requires_grad_(not frozen)
    since_fired = [torch.zeros(D_SAE, dtype=torch.int64) for _ in models]
    step = PackedStep(models, [training] * 2, [2 * ROWS, 3 * ROWS], since_fired, STEPS)
    assert step.kind.fast == with_kernels and step.kind.sparse == (with_kernels and sparse)
    step.kind = step.kind._replace(sparse=sparse)  # plain torch rounds where the kernels do
    return step


def state(step):
    """All tensors that a step changes, by name."""
    held = {"since_fired": step.since_fired_NF, "threshold": step.threshold_N, "loss": step.loss_N}
    for name, one in step.moving.items():
        held |= {name: one.p, f"m {name}": one.m, f"v {name}": one.v}
    for number, copy in enumerate(step.copies):
        held[f"copy {number}"] = copy
    return {name: one for name, one in held.items() if one is not None and one.numel()}


def batches():
    """The batches ``[saes, rows, d_in]`` of a few steps; one is smaller."""
    for number, x_NBD in enumerate(random(STEPS, 2, ROWS, D_IN, seed=1)):
        yield number, x_NBD[:, : 5 if number == 3 else ROWS]


def steps():
    """By kernels over the active latents, and by kernels and whole products, as cases."""
    cases = [("topk", True, "float32"), ("batch_topk", False, "float32")]
    if FEW:
        cases = cases[:1]
    if LONG:
        cases = list(product(("topk", "batch_topk"), (True, False), ("float32", "bfloat16")))
    for one in cases:
        yield case(a_step_is_that_of_torch, *one)
    if LONG:
        for sparse in (True, False):
            yield case(a_step_is_that_of_torch, "topk", sparse, "bfloat16", frozen="decoder")


def a_step_is_that_of_torch(variant, sparse, precision, frozen=None):
    """Each step from the same weights: in bfloat16 rounding soon chooses other latents, and two trainings
    then differ by more than what one wrong sum would do. At the last step an SAE has left."""
    ours, theirs = (pack(variant, fast, sparse, precision, frozen) for fast in (True, False))
    for number, x_NBD in batches():
        for step in (ours, theirs):
            if number == STEPS - 1:
                step.release(1)
            step.take(x_NBD)
        of_theirs = state(theirs)
        for name, tensor in state(ours).items():
            alike(f"{name} after step {number}", tensor, of_theirs[name], precision)
            of_theirs[name].copy_(tensor)
    if LONG and precision == "bfloat16":
        again = pack(variant, True, sparse, precision)
        twice = pack(variant, True, sparse, precision)
        for _, x_NBD in list(batches())[-2:]:
            again.take(x_NBD)
            twice.take(x_NBD)
        for name, tensor in state(again).items():
            assert torch.equal(tensor, state(twice)[name]), (name, "twice the same bits")


def alike(what, one, other, precision):
    """The same but for rounding: of which latents fired and of the loss there is next to none."""
    if one.dtype == torch.int64:
        assert torch.equal(one, other), what
        return
    # Triton's interpreter cuts float32 off to bfloat16, where a GPU rounds it: AuxK reads such an error
    if what.startswith(("loss", "threshold")):
        near(what, one, other, 1e-5 if precision == "float32" else 1e-3)
        return
    # Adam makes a step of what is rounding error alone, so single weights may be further apart
    apart = float((one - other).float().abs().mean() / other.float().abs().mean().clamp_min(1e-12))
    assert apart < (2e-5 if precision == "float32" else 1e-2), (what, apart)


def run():
    """Run the cases of this part; the number of those that failed."""
    number, parts = map(int, PART.split("/"))
    failed = []
    for name, check in [*selections(), *all_passes(), *steps()][number - 1 :: parts]:
        started = time.process_time()
        try:
            check()
        except Exception:
            traceback.print_exc()
            failed.append(name)
        if LONG:
            print(f"{time.process_time() - started:7.2f} s  {name}", flush=True)
    for name in failed:
        print(f"FAILED: {name}")
    return len(failed)


if run():
    sys.exit(1)
print("the kernels are right")
