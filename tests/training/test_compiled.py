"""The compiled step is the reference step: the same gradients and updates, whatever the threads."""

import copy
import math
import subprocess
import sys

import pytest
import torch

import raysae
from raysae.sae import build_sae, sae_config
from raysae.training import Trainer, TrainingConfig
from raysae.training.compiled import CompiledStep, step_of
from raysae.training.kernels import build, kernels, why_missing
from raysae.training.rows import Rows
from raysae.training.step import ReferenceStep

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels: {why_missing()}")

SHAPES = [(48, 128, 4, 100), (33, 70, 3, 17), (48, 128, 60, 100), (64, 256, 256, 20), (5, 7, 1, 1)]
"""d_in, d_sae, k, batch: sparse, odd, dense, all active, one row."""


def steps(variant, d_in, d_sae, k, precision="float32"):
    """A reference and a compiled step from the same start."""
    config = sae_config({"variant": variant, "d_sae": d_sae, "k": k})
    training = TrainingConfig(precision=precision, gradient_clip=1.0)
    model = build_sae(config, d_in, 0)
    model.b_enc.data = 0.1 * torch.randn(d_sae, generator=torch.Generator().manual_seed(5))
    other = copy.deepcopy(model)
    return ReferenceStep(model, training), CompiledStep(other, training, kernels())


def batch(rows, d_in, seed=0):
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tolerance):
    scale = theirs.detach().norm().clamp_min(1e-12)
    assert float((ours - theirs).detach().norm() / scale) < tolerance


@pytest.mark.parametrize("dead_fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_steps_are_those_of_the_reference(variant, shape, dead_fraction):
    d_in, d_sae, k, rows = shape
    reference, compiled = steps(variant, d_in, d_sae, k)
    reference.scale = compiled.scale = 1.3
    for number in range(4):
        x_BD = batch(rows, d_in, number)
        dead_F = torch.rand(d_sae, generator=torch.Generator().manual_seed(number)) < dead_fraction
        expected = reference.gradients(x_BD, dead_F, 1.0)
        assert compiled.gradients(x_BD, dead_F, 1.0) == pytest.approx(expected, rel=2e-5)
        reference.update(1e-3)
        compiled.update(1e-3)
        assert torch.equal(compiled.fired_F, reference.fired_F)
    for name, tensor in reference.model.state_dict().items():
        # Adam makes whole steps of gradients that are rounding errors
        close(compiled.model.state_dict()[name], tensor, 1e-4)


@pytest.mark.parametrize("dense", [False, True])
def test_sparse_and_dense_are_the_same(dense):
    reference, compiled = steps("topk", 48, 128, 20)
    compiled.dense = dense
    x_BD, dead_F = batch(64, 48), torch.zeros(128, dtype=torch.bool)
    reference.gradients(x_BD, dead_F, 1.0)
    compiled.gradients(x_BD, dead_F, 1.0)
    clip = min(1.0, 1.0 / compiled.norm)
    close(clip * compiled.g_enc_FD.T, reference.model.W_enc.grad, 1e-5)
    along_FD = compiled.parallel_F[:, None] * compiled.model.W_dec
    close(clip * (compiled.g_dec_FD - along_FD), reference.model.W_dec.grad, 1e-5)
    close(clip * compiled.g_b_dec_D, reference.model.b_dec.grad, 1e-5)
    close(clip * compiled.g_bias_F, reference.model.b_enc.grad, 1e-5)


@pytest.mark.parametrize("k", [4, 60])
@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_bfloat16_is_no_further_from_float32_than_autocast(variant, k):
    exact, _ = steps(variant, 48, 128, k)
    autocast, compiled = steps(variant, 48, 128, k, "bfloat16")
    x_BD, dead_F = batch(512, 48), torch.arange(128) < 20
    for step in (exact, autocast, compiled):
        step.gradients(x_BD, dead_F, 1.0)
    clip = min(1.0, 1.0 / compiled.norm)
    truth_DF = exact.model.W_enc.grad
    theirs = float((autocast.model.W_enc.grad - truth_DF).norm())
    assert float((clip * compiled.g_enc_FD.T - truth_DF).norm()) < 1.1 * theirs


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_equal_values_at_the_edge_are_taken_until_there_are_k(variant):
    _, compiled = steps(variant, 8, 32, 3)
    model = compiled.model
    model.W_enc.data.fill_(0.0)
    model.b_enc.data.fill_(0.5)
    compiled.gradients(batch(10, 8), torch.zeros(32, dtype=torch.bool), 1.0)
    entries = compiled.last_B[:10] - compiled.first_B[:10]
    assert int(entries.sum()) == 30
    assert variant == "batch_topk" or entries.tolist() == [3] * 10


def test_nothing_active_is_no_gradient_but_b_dec():
    _, compiled = steps("batch_topk", 8, 32, 3)
    compiled.model.b_enc.data.fill_(-100.0)
    loss, norm = compiled.gradients(batch(10, 8), torch.zeros(32, dtype=torch.bool), 1.0)
    compiled.update(1e-3)
    assert loss > 0 and norm > 0
    assert not compiled.fired_F.any() and float(compiled.model.threshold) == 0


def trained(threads=1, **settings):
    rows = batch(2000, 24)
    torch.set_num_threads(threads)
    try:
        training = {"epochs": 3, "batch_size": 128, "lr": 1e-3, "evaluations": 1, **settings}
        config = {"variant": "batch_topk", "d_sae": 64, "k": 4}
        return raysae.fit(config, rows, training, validation=batch(300, 24, 9), progress=False)
    finally:
        torch.set_num_threads(1)


def test_a_whole_training_is_that_of_the_reference():
    ours, reference = trained(), trained(compiled=False)
    assert ours.sae.metadata["training"]["trained_by"] == "compiled"
    assert reference.sae.metadata["training"]["trained_by"] == "torch"
    close(ours.sae.W_dec, reference.sae.W_dec, 1e-3)
    figures = "explained_variance", "l0", "dead_fraction"
    for name in figures:
        assert ours.metrics[name] == pytest.approx(reference.metrics[name], abs=1e-3)


def test_the_number_of_threads_shows_only_in_matrix_products():
    close(trained(threads=2).sae.W_dec, trained().sae.W_dec, 1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_not_followed(bad):
    rows = batch(256, 24)
    trainer = Trainer(
        sae_config({"variant": "topk", "d_sae": 64, "k": 4}), TrainingConfig(batch_size=64),
        Rows(rows), Rows(rows),
    )  # fmt: skip
    before = trainer.model.W_dec.clone()
    broken = rows[:64].clone()
    broken[3, 5] = bad
    with pytest.raises(raysae.training.NonFiniteLossError, match="rows themselves"):
        trainer.take(broken)
    assert torch.equal(trainer.model.W_dec, before)


BROKEN = [
    ("W_enc", lambda weight: weight[0, 3:4]), ("b_enc", lambda weight: weight[3:4]),
    ("W_dec", lambda weight: weight[3, 0:1]), ("b_dec", lambda weight: weight[0:1]),
    ("b_enc", lambda weight: weight[3:40]),
]  # fmt: skip
"""A weight, and the part of it that is set to NaN: of one latent, of more than k latents."""


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("k", [4, 40], ids=["sparse", "dense"])
@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_a_weight_that_is_nan_stops_both_before_the_update(variant, k, sign):
    for name, part in BROKEN:
        for step in steps(variant, 16, 128, k):
            part(step.model.get_parameter(name).data).fill_(torch.nan).copysign_(torch.tensor(sign))
            loss, norm = step.gradients(batch(30, 16), None, 1.0)
            assert not (math.isfinite(loss) and math.isfinite(norm)), (step.name, name)


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_a_preactivation_that_is_nan_stops_both_though_the_weights_are_finite(variant):
    """Infinity minus infinity: no single weight or row is NaN."""
    for step in steps(variant, 16, 128, 4):
        step.model.W_enc.data[:2, 7] = torch.tensor([3e38, -3e38])
        x_BD = torch.zeros(30, 16)
        x_BD[11, :2] = 1e3
        loss, norm = step.gradients(x_BD, None, 1.0)
        assert not (math.isfinite(loss) and math.isfinite(norm)), step.name


def test_variants_without_kernels_are_trained_by_torch():
    for variant, settings in {"jumprelu": {}, "matryoshka": {"k": 4}}.items():
        model = build_sae(sae_config({"variant": variant, "d_sae": 64, **settings}), 16, 0)
        assert isinstance(step_of(model, TrainingConfig(), "cpu"), ReferenceStep)


def without_a_compiler(tmp_path, code):
    """``code`` in a process that finds no compiler and no library compiled before."""
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_without_a_compiler_torch_trains_and_the_reason_is_known(tmp_path):
    out = without_a_compiler(
        tmp_path,
        "import torch, raysae\n"
        "from raysae.training.kernels import why_missing\n"
        "rows = torch.randn(500, 8)\n"
        "fit = raysae.fit({'variant': 'topk', 'd_sae': 16, 'k': 2}, rows, validation=rows,"
        " progress=False)\n"
        "print(fit.sae.metadata['training']['trained_by'], '|', why_missing())",
    )
    assert out.startswith("torch | there is no C++ compiler")


def test_the_library_is_built_once(tmp_path):
    path = build.build(tmp_path)
    written = path.stat().st_mtime_ns
    assert build.build(tmp_path) == path and path.stat().st_mtime_ns == written
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_compiler_that_fails_is_named_with_what_it_said(tmp_path, monkeypatch):
    compiler = tmp_path / "broken-cxx"
    compiler.write_text("#!/bin/sh\necho 'no such thing as C++' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.BuildError, match=r"broken-cxx could not build .*no such thing"):
        build.build(tmp_path / "cache")
