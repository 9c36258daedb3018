"""Texts through model and atlas in one call: the latents are those of the store's rows."""

import numpy as np
import pytest
import torch

import raysae
from raysae import Site, UserError
from raysae.activations.splits import SPLITS
from raysae.transformer.loading import ModelSpec, load_model, load_tokenizer

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
"""A float16 store keeps 11 bits: a row computed in another batch may differ by one rounding step."""


@pytest.fixture(scope="module")
def atlas(run):
    return raysae.open_atlas(run.folder)


@pytest.fixture(scope="module")
def texts(run):
    """Some texts of the store, by their number there."""
    table = run.store.sequences(run.store.manifest.sequences[0])
    return dict(
        zip(table["sequence"].to_pylist()[:12], table["text"].to_pylist()[:12], strict=True)
    )


def rows_of(store, site, sequence):
    """The store's rows of one sequence at a site, in the order of their tokens, and these tokens."""
    found = []
    for shard in store.entry(site).shards:
        for split in SPLITS:
            if getattr(shard.rows, split):
                table = store.read(shard, split)
                mine = np.array(table["sequence"]) == sequence
                rows_ND = store.rows(store.segments(shard, split))[torch.from_numpy(mine)]
                found += zip(np.array(table["token_index"])[mine].tolist(), rows_ND, strict=True)
    found.sort(key=lambda one: one[0])
    return [token for token, _ in found], torch.stack([row for _, row in found]).float()


def test_latents_are_those_of_the_stores_rows(atlas, run, texts):
    encoded = atlas.encode(texts.values())
    assert list(encoded) == atlas.sites
    for site, latents in encoded.items():
        dense_NF = latents.dense()
        for number, sequence in enumerate(texts):
            tokens, x_ND = rows_of(run.store, site, sequence)
            mine = latents.sequence == number
            assert latents.token_index[mine].tolist() == tokens
            torch.testing.assert_close(dense_NF[mine], atlas[site].encode(x_ND), **CLOSE)
        assert latents.indices.shape == (2, len(latents.values)) and bool(
            (latents.values > 0).all()
        )


def test_one_forward_pass_gives_all_sites(atlas, texts):
    sites = [(1, -1), Site(2, -1)]
    atlas.encode("Tom has 3 apples.", sites)  # the test passes are behind us
    passes = []
    model = atlas._transformer.model
    handles = [
        block.register_forward_pre_hook(lambda *_, number=number: passes.append(number))
        for number, block in enumerate(model.transformer.h)
    ]
    atlas.encode(texts.values(), sites)
    for handle in handles:
        handle.remove()
    assert passes == [0, 1, 2], "each block once, and none above the highest layer"


def test_one_pass_reads_several_hookpoints(wide_run):
    atlas = raysae.open_atlas(wide_run.folder)
    table = wide_run.store.sequences(wide_run.store.manifest.sequences[0])
    number, text = table["sequence"][0].as_py(), table["text"][0].as_py()
    for site, latents in atlas.encode(text).items():
        _, x_ND = rows_of(wide_run.store, site, number)
        torch.testing.assert_close(latents.dense(), atlas[site].encode(x_ND), **CLOSE)
    one = atlas.encode(text, [(1, -1, "mlp_out")])
    assert list(one) == [Site(1, -1, "mlp_out")]


def test_many_texts_are_encoded_as_each_alone(atlas, texts, monkeypatch):
    import raysae.atlas.library.encoding as encoding

    given = list(texts.values())
    monkeypatch.setattr(encoding, "TOKENS_TOGETHER", 100)
    monkeypatch.setattr(encoding, "DENSE_VALUES", 100)
    together = atlas.encode(given, [(1, "all")])[Site(1, "all")]
    assert together.sequence.unique().tolist() == list(range(len(given)))
    for number, text in enumerate(given):
        alone = atlas.encode(text, [(1, "all")])[Site(1, "all")]
        mine = together.sequence == number
        assert together.token_id[mine].tolist() == alone.token_id.tolist()
        torch.testing.assert_close(together.dense()[mine], alone.dense(), **CLOSE)


def test_a_text_too_short_for_a_position_has_no_row_there(atlas):
    encoded = atlas.encode(["", "7", "Tom has 3 apples."])
    assert encoded[Site(1, -1)].sequence.tolist() == [1, 2]
    assert encoded[Site(1, "all")].sequence.unique().tolist() == [1, 2]
    with pytest.raises(UserError, match="there is no text"):
        atlas.encode([])


def test_a_given_model_is_the_same(atlas, texts):
    spec, text = ModelSpec("pocket"), next(iter(texts.values()))
    model, tokenizer = load_model(spec), load_tokenizer(spec)
    tokenizer(text, truncation=True, max_length=9)  # a used tokenizer holds this truncation
    recorded = atlas.encode(text)
    for given in ({"model": model}, {"model": model, "tokenizer": tokenizer}, {"model": "pocket"}):
        for site, latents in atlas.encode(text, **given).items():
            assert torch.equal(latents.dense(), recorded[site].dense())


def test_another_model_is_refused_unless_forced(atlas):
    other = load_model(ModelSpec("pocket"))
    with torch.no_grad():
        next(other.parameters()).add_(0.5)
    with pytest.raises(UserError, match=r"the weights of 'pocket' have the sha256 .*force=True"):
        atlas.encode("Tom has 3 apples.", model=other)
    encoded = atlas.encode("Tom has 3 apples.", model=other, force=True)
    assert not torch.equal(
        encoded[Site(2, -1)].dense(), atlas.encode("Tom has 3 apples.")[Site(2, -1)].dense()
    )


def test_another_tokenizer_is_refused(atlas):
    other = load_tokenizer(ModelSpec("pocket"))
    other.add_tokens(["elephant"])
    with pytest.raises(UserError, match="the tokenizer of 'pocket'"):
        atlas.encode("an elephant", tokenizer=other)


def test_without_a_recipe_nothing_says_how_texts_are_read(run, tmp_path):
    run.copy(tmp_path / "run")
    alone = raysae.open_atlas((tmp_path / "run" / "atlas").rename(tmp_path / "alone"))
    with pytest.raises(UserError, match="nothing records which model"):
        alone.encode("Tom has 3 apples.")
    assert len(alone.encode("Tom has 3 apples.", model="pocket")[Site(1, -1)]) == 1


def test_the_recipe_of_a_given_store_is_the_stores_own(run, tmp_path, texts):
    folder = run.copy(tmp_path / "run")
    from raysae.config.loading import load_run

    recipe = load_run(folder)
    given = recipe.model_copy(update={"source": None, "store": str(run.store.path)})
    (folder / "config.yaml").write_text(given.to_yaml())
    text = next(iter(texts.values()))
    latents = raysae.open_atlas(folder).encode(text)[Site(2, -1)]
    expected = raysae.open_atlas(run.folder).encode(text)[Site(2, -1)]
    assert torch.equal(latents.dense(), expected.dense())


def test_a_missing_site_is_told_before_the_model_is_loaded(run):
    atlas = raysae.open_atlas(run.folder)
    with pytest.raises(KeyError, match="its layers are"):
        atlas.encode("Tom has 3 apples.", [(1, -1), (40, -1)])
    assert atlas._transformer is None
