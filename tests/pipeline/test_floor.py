"""The least time of a run's training elsewhere, from arithmetic and memory alone."""

import pytest

from raysae.config import load_recipe, parse_recipe
from raysae.pipeline.floor import H100, run_work, training_work
from raysae.sae import sae_config
from raysae.training import TrainingConfig


def test_a_training_is_bound_by_arithmetic_or_by_memory():
    sae = sae_config({"variant": "topk", "d_sae": 4096, "k": 8})
    large = training_work(512, sae, TrainingConfig(tokens=8192, batch_size=8192), 10_000)
    assert large.flop == 10 * 512 * 4096 * 8192
    assert large.seconds == pytest.approx(large.flop / H100.flops["float32"])
    small = training_work(512, sae, TrainingConfig(tokens=8192, batch_size=1), 10_000)
    assert small.flop == large.flop
    assert small.seconds == pytest.approx(8192 * 64 * 512 * 4096 / H100.bandwidth)


def test_a_run_is_its_trials_and_its_atlas():
    configs = [{"sae.d_sae": 32, "sae.k": 2}, {"sae.d_sae": 64, "sae.k": 2}]
    recipe = parse_recipe({"sweep": {"sampler": "list", "configs": configs}})
    alone = run_work(recipe, 16, 1000, 0)
    tokens = recipe.training.training_tokens(1000)
    assert alone.flop == pytest.approx(10 * 16 * (32 + 64) * tokens)
    atlas = run_work(recipe, 16, 1000, 4).flop - alone.flop
    assert atlas == pytest.approx(4 * 10 * 16 * (48 + 64) / 2 * tokens)


def test_r1_on_an_h100():
    work = run_work(load_recipe("configs/gpt2_medium_all_layers.yaml"), 1024, 8_000_000, 24)
    assert work.flop == pytest.approx(28 * 10 * 1024 * 5120 * 20 * 8e6)
    assert 3000 < work.seconds < 4000
