"""SAEs exchanged with SAELens, sparsify and dictionary_learning: the same features, reconstructions and
figures on both sides, and where figures differ, by what their definitions say."""

import math

import pytest
import torch

from raysae import open_atlas
from raysae.sae.metrics import evaluate, mean_of_rows
from tests.peers.conftest import ATLAS, TAKEN
from tests.peers.peer_program import BATCHES, CASES
from tests.sae.lively import lively

CLOSE = {"rtol": 0, "atol": 1e-5}


def named(*formats):
    """Every SAE exchanged in ``formats``: whose it is, the format, its name."""
    return [
        pytest.param(whose, format, name, id=f"{whose}-{format}-{name}".replace(" ", "_"))
        for whose, names_by_format in (("ours", TAKEN), ("theirs", CASES))
        for format in formats
        for name in names_by_format[format]
    ]


def ours_of(sae, x, batches=BATCHES):
    return evaluate(lambda rows: sae(rows)[:2], x.split(batches)).metrics()


@pytest.mark.parametrize(
    ("whose", "format", "name"), named("saelens", "sparsify", "dictionary_learning")
)
def test_features_and_reconstructions_are_the_same(exchange, whose, format, name):
    reconstruction, features, _ = exchange.sae(whose, format, name)(exchange.x)
    answer = exchange.answer(whose, format, name)
    assert features.count_nonzero() > len(exchange.x), "an SAE that is hardly active proves nothing"
    torch.testing.assert_close(features, answer["features"], **CLOSE)
    torch.testing.assert_close(reconstruction, answer["reconstruction"], **CLOSE)


@pytest.mark.parametrize(("whose", "format", "name"), named("saelens"))
def test_figures_equal_those_of_saelens(exchange, whose, format, name):
    ours = ours_of(exchange.sae(whose, format, name), exchange.x)
    theirs = exchange.figures(whose, format, name)["evaluation"]
    assert 1 - theirs["explained_variance"] == pytest.approx(ours["fvu"], rel=1e-6)
    assert theirs["l0"] == pytest.approx(ours["l0"], rel=1e-6)
    assert theirs["cossim"] == pytest.approx(ours["cosine"], rel=1e-5)


@pytest.mark.parametrize(("whose", "format", "name"), named("saelens"))
def test_a_batch_alone_has_the_figures_of_the_saelens_trainer(exchange, whose, format, name):
    ours = exchange.sae(whose, format, name)(exchange.x).metrics
    theirs = exchange.figures(whose, format, name)["training"]
    assert 1 - theirs["metrics/explained_variance"] == pytest.approx(ours["fvu"], rel=1e-6)
    legacy = theirs["metrics/explained_variance_legacy"]
    assert 1 - legacy == pytest.approx(1 - ours["explained_variance_legacy"], rel=1e-6)
    assert theirs["metrics/l0"] == pytest.approx(ours["l0"], rel=1e-6)


@pytest.mark.parametrize(("whose", "format", "name"), named("sparsify"))
def test_figures_equal_those_of_sparsify(exchange, whose, format, name):
    ours = ours_of(exchange.sae(whose, format, name), exchange.x)
    theirs = exchange.figures(whose, format, name)
    assert theirs["fvu"] == pytest.approx(ours["fvu"], rel=1e-6)
    assert 1 - theirs["fvu"] == pytest.approx(ours["explained_variance"], rel=1e-6)
    assert theirs["l0"] == pytest.approx(ours["l0"], rel=1e-6)


def test_saelens_knows_where_our_activations_came_from(exchange):
    told = exchange.figures("ours", "saelens", "topk")
    assert (told["hook_name"], told["model_name"]) == ("blocks.8.hook_resid_post", "gpt2")


def test_we_know_where_their_activations_came_from(exchange):
    assert exchange.sae("theirs", "saelens", "gated").metadata["model"] == {"id": "m"}
    assert exchange.sae("theirs", "dictionary_learning", "AutoEncoder").metadata["layer"] == 8


@pytest.mark.parametrize("site", ATLAS, ids=str)
def test_an_atlas_goes_to_saelens_and_comes_back(exchange, site):
    atlas = open_atlas(exchange.folder / "atlas" / "saelens")
    name = atlas.files.saes[site].name
    features = lively(ATLAS[site])(exchange.x).features
    told = exchange.figures("atlas", "saelens", name)
    assert told["hook_name"] == f"blocks.{site.layer}.hook_resid_post"
    assert (told["model_name"], told["context_size"]) == ("gpt2", 128)
    assert told["dataset_path"] == "some/texts"
    answer = exchange.answer("atlas", "saelens", name)
    torch.testing.assert_close(features, answer["features"], **CLOSE)
    torch.testing.assert_close(features, atlas[site](exchange.x).features, **CLOSE)


# Where the definitions differ


def test_the_mse_of_saelens_sums_over_dimensions(exchange):
    sae, theirs = (
        exchange.sae("ours", "saelens", "topk"),
        exchange.figures("ours", "saelens", "topk"),
    )
    ours = ours_of(sae, exchange.x)
    assert theirs["evaluation"]["mse"] == pytest.approx(ours["mse"] * sae.d_in, rel=1e-6)


def test_legacy_explained_variance_of_saelens_is_centred_on_each_batch(exchange):
    sae, theirs = (
        exchange.sae("ours", "saelens", "topk"),
        exchange.figures("ours", "saelens", "topk"),
    )
    legacy = [
        sae(batch).metrics["explained_variance_legacy"] for batch in exchange.x.split(BATCHES)
    ]
    weighted = sum(n * ev for n, ev in zip(BATCHES, legacy, strict=True)) / sum(BATCHES)
    found = theirs["evaluation"]["explained_variance_legacy"]
    assert found == pytest.approx(weighted, rel=1e-6)
    ours = ours_of(sae, exchange.x)["explained_variance_legacy"]
    assert abs(found - ours) > 1e-3


def test_rows_without_variance_are_explained_for_saelens_and_undefined_here(exchange):
    constant = torch.ones_like(exchange.x)
    ours = evaluate(lambda x: (x, x), [constant]).metrics()["explained_variance"]
    assert exchange.figures("ours", "saelens", "topk")["constant"] == 1.0 and math.isnan(ours)


def test_the_fvu_of_sparsify_is_that_of_one_batch(exchange):
    sae, theirs = (
        exchange.sae("ours", "sparsify", "topk"),
        exchange.figures("ours", "sparsify", "topk"),
    )
    batches = exchange.x.split(BATCHES)
    assert theirs["fvu of batches"] == pytest.approx([sae(b).metrics["fvu"] for b in batches])
    mean = sum(theirs["fvu of batches"]) / len(BATCHES)
    assert abs(mean - ours_of(sae, exchange.x)["fvu"]) > 1e-3


def test_dictionary_learning_forgives_a_constant_error(exchange):
    sae = exchange.sae("ours", "dictionary_learning", "topk")
    theirs = exchange.figures("ours", "dictionary_learning", "topk")
    error = exchange.x - sae(exchange.x).reconstruction.detach()
    ours = ours_of(sae, exchange.x)
    forgiven = len(error) * float(mean_of_rows([error]).square().sum())
    total = float((exchange.x - mean_of_rows([exchange.x])).square().sum())
    expected = ours["explained_variance"] + forgiven / total
    assert theirs["frac_variance_explained"] == pytest.approx(expected, rel=1e-5)
    assert theirs["frac_variance_explained"] > ours["explained_variance"] + 1e-3
    assert theirs["l0"] == pytest.approx(ours["l0"], rel=1e-6)
