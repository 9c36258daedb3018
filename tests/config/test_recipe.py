"""The recipe: what it accepts, how it is overridden, what it says of mistakes."""

from pathlib import Path

import pytest
import yaml

from raysae.config import Recipe, describe_fields, load_recipe
from raysae.errors import UserError
from raysae.sae import VARIANTS
from raysae.sweep.search.proposals import make_proposer

CONFIGS = sorted(Path("configs").glob("*.yaml"))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"sae.kk": 3}, "did you mean sae.k"),
        ({"sae.variant": "gated", "sae.k": 3}, "gated has no such setting; it has variant, d_sae"),
        ({"sae.variant": "quantum"}, "variant is unknown; known are topk, batch_topk"),
        ({"sae.variant": 3}, "variant is unknown"),
        ({"name": "x"}, "only keys under sae. and training."),
    ],
)
def test_what_a_trial_cannot_have_is_said(parameters, words):
    with pytest.raises(UserError, match=words):
        Recipe().with_parameters(parameters)


def test_another_variant_takes_over_the_settings_that_it_has():
    recipe = load_recipe(None, ["sae.d_sae=64", "sae.k=7"])
    sae, _ = recipe.with_parameters({"sae.variant": "matryoshka"})
    assert (sae.variant, sae.d_sae, sae.k) == ("matryoshka", 64, 7)
    sae, _ = recipe.with_parameters({"sae.variant": "gated", "sae.l1_coefficient": 2})
    assert (sae.variant, sae.d_sae, sae.l1_coefficient) == ("gated", 64, 2)


def test_every_variant_is_told_in_the_help():
    rows = {key: (default, text) for key, default, text in describe_fields()}
    assert all(f"{name}:" in rows["sae.variant"][1] for name in VARIANTS)
    assert rows["sae.l0_coefficient"] == ("1.0", rows["sae.l0_coefficient"][1])
    assert "(jumprelu)" in rows["sae.l0_coefficient"][1]
    assert all(text for key, (_, text) in rows.items() if key.startswith(("sae.", "training.")))


def test_the_resolved_copy_gives_the_same_recipe(tmp_path):
    recipe = load_recipe(None, ["sweep.trials=3", "training.lr=1e-4", "source.layers=[1]"])
    (tmp_path / "copy.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "copy.yaml") == recipe


def test_the_quickstart_config_is_the_default():
    assert load_recipe("configs/quickstart.yaml") == Recipe()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_proposes(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    proposer = make_proposer(recipe)
    sae, training = recipe.with_parameters(proposer.propose(0, {}))
    assert getattr(sae, "k", 1) <= sae.d_sae and training.epochs >= 1


def test_r3s_eight_configs_are_shipped_as_published():
    recipe = load_recipe("configs/gpt2_thoughts_topk.yaml")
    assert [tuple(config.values()) for config in recipe.sweep.configs] == [
        (512, 150), (512, 100), (384, 75), (256, 75), (256, 50), (192, 40), (256, 30), (192, 20)
    ]  # fmt: skip
    assert (recipe.training.epochs, recipe.training.batch_size, recipe.training.lr) == (
        25,
        256,
        1e-3,
    )


def test_an_override_replaces_one_key_and_leaves_its_neighbours():
    recipe = load_recipe(None, ["training.lr=1e-4", "sweep.space.sae.k={choices: [3]}"])
    assert recipe.training.lr == 1e-4
    assert recipe.training.epochs == Recipe().training.epochs
    assert recipe.sweep.space["sae.k"].choices == (3,)
    assert recipe.sweep.space["sae.d_sae"] == Recipe().sweep.space["sae.d_sae"]


def test_a_text_template_needs_no_quotes_on_the_command_line():
    for template in ("{question}", "Q: {question}", "Q: {question} A: {answer}"):
        assert load_recipe(None, [f"source.text={template}"]).source.text == template


def test_a_config_file_lends_its_name(tmp_path):
    (tmp_path / "my run.yaml").write_text("seed: 3")
    assert load_recipe(tmp_path / "my run.yaml").name == "my-run"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.trails=3", "sweep.trails: unknown key; did you mean sweep.trials?"),
        ("sae.kk=3", "did you mean sae.k?"),
        ("sea.k=3", "did you mean sae?"),
        ("resources.gang=3", "resources.gang is 3, but sweep.proposal_lag is 2"),
        ("sae.k=600", "k is 600, above d_sae 512"),
        ("sae.k=many", "sae.k: .* valid integer"),
        ("sweep.space.sae.k={low: 3}", "sweep.space.sae.k.high: Field required"),
        ("sweep.space.sae.k={low: 3, high: 1}", "low 3 is above high 1"),
        ("source.positions=[]", "names nothing"),
        ("source.layers=[1, 1]", "names one twice"),
        ("source.validation=0", "held-out"),
        ("name=../escape", "name"),
        ("source=null", "neither source nor store"),
        ("sweep.sampler=list", "configs is empty"),
        ("sweep.sampler=grid sweep", "sampler"),
        ("nonsense", "expected key=value"),
        ("sweep.trials=[", "not a valid YAML value"),
        ("training.lr=-1", "must be a positive number"),
        ("resources.gpus_per_trial=-1", "gpus_per_trial"),
        ("resources.gpus_per_trial=1.5", "a trial is trained on one GPU: give 1 or a fraction"),
        ("resources.gpus_per_trial=2", "several GPUs train as many trials"),
    ],
)
def test_mistakes_are_named(override, words):
    with pytest.raises(UserError, match=words):
        load_recipe(None, [override])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a", "expected keys and values"),
        ("a: [", "not valid YAML"),
        ("seeed: 1", "did you mean seed"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as error:
        load_recipe(path)
    assert str(path) in str(error.value)


def test_every_key_is_described():
    rows = describe_fields()
    keys = {key for key, _, _ in rows}
    assert {"name", "sae.k", "training.lr", "sweep.space", "resources.gpus_per_trial"} <= keys
    assert all(text for _, _, text in rows)
    flat = yaml.safe_load(Recipe().to_yaml())
    assert {key.split(".")[0] for key in keys} == set(flat)
