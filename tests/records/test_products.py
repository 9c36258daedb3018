"""What makes a product: an older generation of the code counts where its products are still valid."""

import pytest

import raysae
from raysae.records.products import (
    Identities,
    search,
    search_differences,
    shared_differences,
    trained,
)
from raysae.sae import sae_config
from raysae.sites import Site
from raysae.training import TrainingConfig

SITE = Site(1, -1)
SAE = sae_config({"variant": "topk", "d_sae": 16, "k": 2})


def made(kind, generation=None, **training):
    found = trained(kind, "digest", [SITE], [0], SAE, TrainingConfig(**training))
    return found if generation is None else {**found, f"generation.{kind}": generation}


def before_sinks(found):
    """What made a product before ``training.sink_rows`` existed."""
    return {key: value for key, value in found.items() if key != "training.sink_rows"}


@pytest.mark.parametrize("kind", ["trial", "site"])
def test_products_from_before_inputs_were_centred_are_still_wanted(kind):
    old = {"made": before_sinks(made(kind, 1))}
    assert made(kind)[f"generation.{kind}"] == 2
    assert Identities().is_wanted(old, made(kind))
    assert Identities({f"generation.{kind}": [7, 8]}).is_wanted(old, made(kind))
    assert not Identities().is_wanted({"made": made(kind, 3)}, made(kind))
    assert not Identities().is_wanted(old, made(kind, sink_rows="leave_out"))
    assert not Identities().is_wanted(old, made(kind, epochs=2))


def test_a_run_and_a_search_from_then_are_the_same():
    recipe = raysae.Recipe.model_validate({"source": None, "store": "s"})
    now = search(recipe, "digest", [SITE])
    then = before_sinks({**now, "generation.trial": 1, "generation.site": 1})
    assert search_differences(then, now, {}) == {} == shared_differences(then, now, {})
    assert "generation.trial" in shared_differences({**then, "generation.trial": 9}, now, {})
