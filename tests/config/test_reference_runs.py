"""The configs of the five reference runs: the figures of the published reports, and twins that run."""

import os
import subprocess
import sys

import pytest

import raysae
from raysae.config import load_recipe
from raysae.pipeline.estimate import configs_of
from raysae.records.tables import read_sites, read_table, read_trials

R1, R2, R3, R4, R5 = (
    load_recipe(f"configs/{name}.yaml")
    for name in (
        "gpt2_medium_all_layers", "gpt2_gsm8k_expansions", "gpt2_thoughts_topk", "four_models",
        "gpt2_medium_pile",
    )
)  # fmt: skip


def trained(recipe):
    return recipe.training.epochs, recipe.training.batch_size, recipe.training.lr


def test_r1_is_every_layer_with_a_bound_on_l0():
    assert trained(R1) == (20, 128, 1e-4)
    assert (R1.sae.variant, R1.sae.d_sae, R1.source.max_tokens) == ("jumprelu", 5120, 10_005_776)
    assert R1.source.sequences is None and R1.source.layers == "all" and R1.atlas.layers is None
    assert R1.source.positions == ("all",) and R1.select.max_l0 < 1024
    assert R1.source.live  # 983.6 GB in float32 are not written first


def test_r2_compares_at_equal_tokens_and_an_equal_rule():
    configs = configs_of(R2)
    assert {one["sae.d_sae"] for one in configs} == {768 * times for times in (4, 6, 8)}
    settings = [R2.with_parameters(one) for one in configs]
    for sae, training in settings:
        assert (training.epochs, training.batch_size, training.warm_up, training.decay) == (
            3, 64, 0.05, 0.0
        )  # fmt: skip
        assert training.peak_lr(sae.d_sae) == pytest.approx(2e-4 / (sae.d_sae / 2**14) ** 0.5)
    for width in (3072, 4608, 6144):
        apart = {s.decorrelation_coefficient > 0 for s, _ in settings if s.d_sae == width}
        assert apart == {True, False}
    assert R2.source.layers == (6,) and R2.training.precision == "bfloat16"


def test_r3_holds_out_a_test_set_beside_800_and_200():
    source, rows = R3.source, R3.source.sequences
    assert round(rows * (1 - source.validation - source.test)) == 800
    assert round(rows * source.validation) == 200 and rows * source.test > 200
    assert (R3.sweep.layer, R3.sweep.position, len(source.positions)) == (8, -3, 6)


def test_r4_has_every_model_on_every_text():
    assert len(R4.models) == 12 and trained(R4) == (20, 32, 1e-4)
    widths = {"gpt2-medium": 1024, "pythia-1.4b": 2048, "gemma-2b": 2048, "phi-2": 2560}
    for name in R4.models:
        one = R4.of_model(name)
        assert one.sae.d_sae == 8 * widths[name.rpartition("-")[0]]
        assert one.sae.decorrelation_coefficient == 0.01 and one.source.layers[0] > 0
        assert {"sae.l1_coefficient": 1e-4} in configs_of(one)
    assert len({R4.of_model(name).store for name in R4.models}) == 12


def test_r5_is_the_published_one():
    assert trained(R5) == (5, 128, 1e-3) and R5.seed == 42
    assert configs_of(R5) == [{"sae.d_sae": 2048, "sae.k": 32}]
    source = R5.source
    assert (source.hookpoint, source.layers, source.context_length, source.max_tokens) == (
        "resid_pre", (12,), 64, 8125
    )  # fmt: skip


RECORDER = """#!/usr/bin/env bash
printf '%s\\0' "$@" > "$(mktemp "$ARGUMENTS/XXXXXX")"
"""


@pytest.fixture
def twins(tmp_path):
    """The recipes of the shortest twins, by name, as the script hands them to the command."""
    (tmp_path / "python").write_text(RECORDER)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "given").mkdir()
    subprocess.run(
        ["scripts/reference_runs.sh", "--shortest"], check=True, stdout=subprocess.DEVNULL,
        env={
            **os.environ, "PYTHON": str(tmp_path / "python"), "ARGUMENTS": str(tmp_path / "given"),
            "OUT": str(tmp_path / "runs"),
        },
    )  # fmt: skip
    given = [file.read_text().split("\0")[:-1] for file in (tmp_path / "given").iterdir()]
    commands = [words[2:] for words in given if words[:2] == ["-m", "raysae.sweep"]]
    recipes = [load_recipe(words[0], words[1 : words.index("--log")]) for words in commands]
    return {recipe.name: recipe for recipe in recipes}


def test_the_twins_keep_the_shape_of_their_configs(twins):
    assert sorted(twins) == ["R1", "R2", "R3", "R4", "R5"]
    for name, recipe in (("R1", R1), ("R2", R2), ("R3", R3), ("R5", R5)):
        twin = twins[name]
        assert twin.sae.variant == recipe.sae.variant and twin.sweep.sampler == recipe.sweep.sampler
        assert twin.source.hookpoint == recipe.source.hookpoint and twin.seed == recipe.seed
        assert twin.source.packing == recipe.source.packing
    assert len(configs_of(twins["R2"])) == 6 and len(configs_of(twins["R3"])) == 8
    assert len(twins["R4"].models) == 2


@pytest.mark.long
def test_the_twins_run_and_tell_their_figures(connected_ray, tmp_path, twins):
    for recipe in twins.values():
        assert raysae.sweep(recipe).failures == []
    done = subprocess.run(
        [sys.executable, "scripts/reference_figures.py", tmp_path / "runs"], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for figure in ("\nR1 (", "early", "above Welch's floor", "sites: EV", "latents live on"):
        assert figure in done.stdout
    trials = read_trials(tmp_path / "runs" / "R2" / "trials.parquet")
    assert len(trials) == 6 and len({(row["tokens"], row["steps"]) for row in trials}) == 1
    assert len(read_table(tmp_path / "runs" / "R4" / "models.parquet")) == 2
    sites = read_sites(tmp_path / "runs" / "R3" / "atlas" / "metrics.parquet")
    assert len(sites) == 6 and all(row.done for row in sites)
