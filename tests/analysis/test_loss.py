"""The downstream loss equals one computed by plain transformers and hooks of the test's own."""

import math

import numpy as np
import pytest
import torch

from raysae import Site
from raysae.analysis.intervals import draws_of, limits, ratio
from raysae.analysis.phases.loss import Loss, LossSettings
from raysae.analysis.subject import Subject
from raysae.analysis.token_batches import continuation_of, texts_of
from raysae.errors import UserError
from raysae.records.run_files import RunFiles
from raysae.sae import build_sae, save_sae
from raysae.sae.config import TopKConfig
from raysae.transformer.loading import ModelSpec, load_model
from tests.analysis.test_splicing import identity
from tests.atlas.library.conftest import made

EVERY = {"sequences": 50}


def result_of(subject, folder, **settings):
    """The phase without Ray: its result, and its rows by site."""
    phase, chosen = Loss(), LossSettings(**settings)
    phase.check(subject, chosen)
    folders = {}
    for item in phase.items(subject, chosen):
        folders[item] = folder / item.key
        folders[item].mkdir()
        phase.work(subject, chosen, item, folders[item], lambda: None)
    return phase.collect(subject, chosen, folders)


@pytest.fixture(scope="module")
def result(pocket, tmp_path_factory):
    return result_of(pocket, tmp_path_factory.mktemp("loss"), **EVERY)


def row_of(result, layer, position, table="sites"):
    (row,) = [
        r for r in result.tables[table] if (r["layer"], r["position"]) == (layer, str(position))
    ]
    return row


def reference(subject, layers, position, replaced):
    """CE, KL and accuracy over single texts, each with hooks on the blocks' outputs."""
    model = load_model(ModelSpec("pocket")).eval()
    texts = texts_of(subject, "validation", 50, "auto")
    ce, clean_ce, kl, right, tokens = 0.0, 0.0, 0.0, 0, 0
    for text in texts:
        ids = torch.tensor(text.token_id.astype(np.int64))[None]
        length = len(text.source)
        places = list(range(length)) if position == "all" else [length + position]

        def hook(layer, places=places):
            def write(_module, _args, output):
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                hidden[0, places] = replaced(layer, hidden[0, places])
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            return write

        with torch.no_grad():
            clean = model(ids).logits[0, :-1].log_softmax(-1)
            handles = [
                model.transformer.h[layer].register_forward_hook(hook(layer)) for layer in layers
            ]
            changed = model(ids).logits[0, :-1].log_softmax(-1)
            for handle in handles:
                handle.remove()
        target = ids[0, 1:]
        ce -= float(changed.gather(1, target[:, None]).double().sum())
        clean_ce -= float(clean.gather(1, target[:, None]).double().sum())
        kl += float((clean.exp() * (clean - changed)).double().sum())
        right += bool((changed.argmax(-1) == target)[length - 1 :].all())
        tokens += len(target)
    return ce / tokens, clean_ce / tokens, kl / tokens, right / len(texts)


@pytest.mark.parametrize("site", [Site(1, "all"), Site(2, -1)])
def test_figures_equal_a_reference_written_by_hand(pocket, result, site):
    row, sae = row_of(result, site.layer, site.position), pocket.atlas[site]
    mean = torch.tensor(pocket.store.entry(site).mean)
    wanted = {
        "sae": lambda _, x: sae(x).reconstruction,
        "zero": lambda _, x: torch.zeros_like(x),
        "mean": lambda _, x: mean.float().expand_as(x),
    }
    found = {}
    for name, replaced in wanted.items():
        ce, clean, kl, accuracy = reference(pocket, [site.layer], site.position, replaced)
        found[name] = ce
        assert row[f"ce_{name}"] == pytest.approx(ce, rel=1e-5)
        assert row[f"kl_{name}"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert row[f"accuracy_{name}"] == pytest.approx(accuracy)
        assert row["ce_clean"] == pytest.approx(clean, rel=1e-5)
    recovered = (found["zero"] - found["sae"]) / (found["zero"] - clean)
    assert row["ce_recovered"] == pytest.approx(recovered, rel=1e-3)
    assert row["ce_recovered_low"] <= row["ce_recovered"] <= row["ce_recovered_high"]
    assert abs(row["with_error_term"]) < 1e-6


def test_all_layers_of_a_position_at_once(pocket, result):
    row = row_of(result, -1, "all", "together")
    saes = {layer: pocket.atlas[layer, "all"] for layer in (1, 2)}
    ce, _, _, _ = reference(pocket, [1, 2], "all", lambda layer, x: saes[layer](x).reconstruction)
    assert row["ce_sae"] == pytest.approx(ce, rel=1e-5)
    assert row["texts"] == row_of(result, 1, "all")["texts"]


def test_an_identity_sae_recovers_all_and_one_of_zeros_nothing(pocket_run, tmp_path):
    folder = pocket_run.copy(tmp_path / "run")
    nothing = build_sae(TopKConfig(d_sae=8, k=1), 128)
    with torch.no_grad():
        nothing.b_enc.fill_(-1e9)
    for site, sae in ((Site(1, "all"), identity(128)), (Site(2, "all"), nothing)):
        save_sae(sae, folder / "atlas" / site.folder)
    subject = Subject(str(folder), RunFiles(tmp_path), str(pocket_run.store.path))
    found = result_of(subject, tmp_path, sequences=10)
    assert row_of(found, 1, "all")["ce_recovered"] == pytest.approx(1, abs=1e-6)
    assert row_of(found, 1, "all")["kl_recovered"] == pytest.approx(1, abs=1e-6)
    assert row_of(found, 2, "all")["ce_recovered"] == 0


def test_without_what_follows_the_last_token_changes_nothing(pocket, tmp_path):
    found = result_of(pocket, tmp_path, sequences=10, continuation=None)
    assert row_of(found, 1, -1)["ce_recovered"] is None
    assert row_of(found, 1, -1)["answers"] == 0
    assert row_of(found, 1, "all")["ce_recovered"] < 1


def test_it_draws_and_says_what_it_found(result, tmp_path):
    Loss().draw(result, LossSettings(), "a small run", tmp_path)
    assert (tmp_path / "recovered.png").stat().st_size > 10_000
    assert "20 texts" in " ".join(result.section.sentences)
    assert result.figures["ce_recovered_mean"] == pytest.approx(
        np.mean([row["ce_recovered"] for row in result.tables["sites"]])
    )


def test_an_encoder_without_head_has_the_cosine_of_its_final_embedding(tiny_models, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny_models["bert"]).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(tiny_models["bert"]).save_pretrained(tmp_path / "encoder")
    run = made(
        tmp_path / "made",
        [f"source.model={tmp_path / 'encoder'}", "source.layers=[1]", "source.context_length=40"],
    )
    subject = Subject(str(run.folder), RunFiles(tmp_path / "files"), str(run.store.path))
    found = result_of(subject, tmp_path, **EVERY)
    row = row_of(found, 1, "all")
    assert row["final_cosine_sae"] > row["final_cosine_zero"]
    assert 0 < row["final_cosine_recovered"] <= 1
    assert "ce_sae" not in row
    assert "no language-model head" in found.section.notes[0]


def test_what_is_missing_is_refused(pocket, pocket_run, tmp_path):
    with pytest.raises(UserError, match="--store"):
        Loss().check(Subject(pocket.place, pocket.files), LossSettings())
    packed = pocket.source.model_copy(update={"packing": True})
    assert continuation_of(packed, "auto") is None
    with pytest.raises(UserError, match="packed"):
        continuation_of(packed, "{answer}")


def test_intervals_cover_the_mean_and_ratios_may_be_undefined():
    values = np.random.default_rng(0).normal(3, 1, (200, 1))
    low, high = limits((draws_of(200, 0) @ values)[:, 0] / 200)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(200), rel=0.2)
    assert np.isnan(ratio(np.array([1.0]), np.array([0.0]))[0])
