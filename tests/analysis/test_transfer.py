"""Transfer: figures on other rows, features matched across models, and the controls that find nothing."""

import numpy as np
import pytest
import torch

import raysae
from raysae import UserError
from raysae.activations import open_store
from raysae.activations.writer import write_store
from raysae.analysis.alignment import by_character, same_texts
from raysae.analysis.phases.transfer import Transfer, TransferSettings
from raysae.analysis.results import made_of, write_result
from raysae.analysis.shuffled import shuffled
from raysae.analysis.site_latents import SiteLatents, row_parts
from raysae.analysis.subject import Subject
from raysae.analysis.transfer_rows import on_rows, overlap
from raysae.records.run_files import RunFiles
from raysae.sites import ALL
from raysae.transformer.sequence import TokenSequence
from tests.analysis.worlds import atoms, codes, done, knowing, layer, subject_of
from tests.atlas.library.conftest import run  # noqa: F401  (the fixture)

D_IN, ATOMS, ROWS = 32, 24, 800


@pytest.fixture(scope="module")
def other_texts(tmp_path_factory):
    """An atlas that knows 24 atoms, and another store in which only the first 12 occur."""
    folder = tmp_path_factory.mktemp("transfer")
    known = atoms(ATOMS, D_IN, 0)
    code = codes(ROWS, ATOMS, 0.15, 0)
    subject = subject_of(folder, {layer(0): code @ known}, {layer(0): knowing(known, 6)})
    half = codes(ROWS, ATOMS, 0.95, 1)
    half[:, ATOMS // 2 :] = 0
    write_store(
        folder / "other", {layer(0): half @ known}, provenance="synthetic", source={},
        split={"validation": 0.5, "test": 0.0},
    )  # fmt: skip
    return subject, TransferSettings(store=str(folder / "other"))


def test_figures_on_the_other_store_are_the_saes_own(other_texts):
    subject, _ = other_texts
    site, sae = layer(0), subject.atlas[layer(0)]
    rows = list(row_parts(subject.store, site, ("validation",), 10_000))
    found = on_rows(sae, rows, lambda: None).figures(0)
    expected = sae(subject.store.validation(site).float()).metrics
    assert found["explained_variance"] == pytest.approx(expected["explained_variance"], abs=1e-5)
    assert found["l0"] == pytest.approx(expected["l0"])
    assert found["explained_variance_low"] < found["explained_variance"] < 1
    assert found["rows"] == found["sequences"] == len(rows[0])


def test_overlap_counts_what_fires_on_both():
    class Fires:
        def __init__(self, fires):
            self.fires_F = np.array(fires)

    found = overlap(Fires([9, 5, 1, 0, 0, 3]), Fires([8, 4, 2, 0, 7, 0]), 0)
    assert (found["live_own"], found["live_other"], found["live_both"]) == (4, 4, 3)
    assert found["live_overlap"] == 3 / 5 and found["live_chance"] == pytest.approx(0.5)
    ranks = np.corrcoef([5, 4, 2, 1, 3], [5, 3, 2, 4, 1])[0, 1]
    assert found["density_correlation"] == pytest.approx(ranks)


def test_transfer_to_other_texts(other_texts, tmp_path):
    subject, settings = other_texts
    Transfer().check(subject, settings)
    result = Transfer().collect(subject, settings, done(Transfer(), subject, settings, tmp_path))
    (row,) = result.tables["data"]
    assert row["own_dead_share"] == 0 and row["other_dead_share"] > 0.2
    assert row["live_both"] < ATOMS and row["live_overlap_low"] < row["live_overlap"]
    assert result.figures["other_explained_variance"] == row["other_explained_variance"]
    folder = write_result(
        subject.files, Transfer(), {}, result, {},
        lambda folder: Transfer().draw(result, settings, "a world", folder),
    )  # fmt: skip
    assert {one.name for one in folder.iterdir()} == {
        "data.parquet", "data.png", "data.svg", "result.json",
    }  # fmt: skip


def test_another_store_makes_another_result(other_texts, tmp_path):
    subject, settings = other_texts
    write_store(
        tmp_path / "third", {layer(0): torch.ones(60, D_IN)}, provenance="synthetic", source={},
        split={"validation": 0.5, "test": 0.0},
    )  # fmt: skip
    third = TransferSettings(store=str(tmp_path / "third"))
    made = [made_of(subject, Transfer(), one)["inputs.store"] for one in (settings, third)]
    assert made == [open_store(one.store).digest for one in (settings, third)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to transfer to"),
        ({"atlas": "nowhere"}, r"give also transfer\.store"),
        ({"store": "nowhere"}, "nowhere"),
        ({"store": "narrow"}, "must be of the same model"),
        ({"store": "elsewhere"}, "has no validation rows of the atlas's 1 sites"),
        ({"other": "itself"}, "holds no texts"),
    ],
)  # fmt: skip
def test_what_is_missing_is_refused(other_texts, tmp_path, options, said):
    subject, _ = other_texts
    for name, site, width in (("narrow", layer(0), 5), ("elsewhere", layer(7), D_IN)):
        write_store(
            tmp_path / name, {site: torch.ones(40, width)}, provenance="synthetic", source={},
            split={"validation": 0.5, "test": 0.0},
        )  # fmt: skip
    places = {key: str(tmp_path / value) for key, value in options.items()}
    if "other" in options:
        places = {"other": subject.place, "other_store": subject.store_place}
    with pytest.raises(UserError, match=said):
        Transfer().check(subject, TransferSettings(**places))


@pytest.fixture(scope="module")
def itself(run, tmp_path_factory):  # noqa: F811
    """A small run on the pocket GPT-2 compared with itself, the pooled position alone."""
    folder = tmp_path_factory.mktemp("itself")
    site = raysae.Site(1, ALL)
    sae = raysae.open_atlas(run.folder)[site]
    files = folder / "atlas" / site.folder
    sae.save(files)
    subject = Subject(str(files.parents[1]), RunFiles(folder), str(run.store.path), seed=1)
    settings = TransferSettings(other=str(run.folder), permutations=5, universal=0.9)
    Transfer().check(subject, settings)
    folders = done(Transfer(), subject, settings, folder / "items")
    return subject, settings, Transfer().collect(subject, settings, folders)


def test_a_model_shares_every_feature_with_itself_and_few_with_shuffled_weights(itself):
    _, _, result = itself
    (row,) = result.tables["models"]
    assert row["site"] == row["other_site"] and row["rows"] == row["own_rows"]
    assert row["universal"] == row["pairs"] == row["features"]
    assert all(one["feature"] == one["other_feature"] for one in result.tables["matches"])
    assert row["permuted_universal"] == 0
    assert row["shuffled_universal"] < row["pairs"] / 3
    assert result.figures["universal_share"] == 1


def test_on_its_own_store_an_atlas_loses_what_it_does(run, tmp_path):  # noqa: F811
    subject = Subject(str(run.folder), RunFiles(tmp_path), str(run.store.path))
    settings = TransferSettings(store=str(run.store.path), atlas=str(run.folder), ce_texts=6)
    result = Transfer().collect(subject, settings, done(Transfer(), subject, settings, tmp_path))
    row = next(one for one in result.tables["data"] if one["site"].endswith("all"))
    assert row["loss_missing"] is None and row["own_ce_texts"] == 6
    for name in ("ce_recovered", "explained_variance", "dead_share", "ce_recovered_low"):
        assert row[f"own_{name}"] == row[f"other_{name}"] == row[f"other_sae_other_{name}"]
    assert 0 < row["own_ce_recovered"] < 1 and row["density_correlation"] == pytest.approx(1)
    assert any("ce_recovered" in sentence for sentence in result.section.sentences)


def test_models_are_drawn_also_where_a_share_is_0_or_1(itself, tmp_path):
    _, settings, result = itself
    row = result.tables["models"][0]
    ends = {"pairs": 107, "universal": 0, "shuffled_universal": 107, "permuted_universal": 0}
    result.tables["models"].append({**row, **ends})
    Transfer().draw(result, settings, "the pocket GPT-2", tmp_path)
    result.tables["models"].pop()
    assert {one.name for one in tmp_path.iterdir()} == {"models.png", "models.svg"}


def sequence(number: int, text: str, ends: list[int]) -> TokenSequence:
    starts = np.array([0, *ends[:-1]], np.int32)
    known = np.ones(len(ends), bool)
    return TokenSequence(
        number, [number], text, np.zeros(len(ends), np.int32), starts, np.array(ends, np.int32),
        known, np.zeros(len(ends), np.int32),
    )  # fmt: skip


def test_tokens_are_aligned_where_they_end_at_the_same_character():
    from scipy.sparse import csr_array

    long = "A text of some length, cut at another place."
    first = [
        sequence(4, "two words", [3, 9]),
        sequence(5, long, [1, 6, 20]),
        sequence(6, "none", [4]),
    ]
    second = [sequence(9, long[:30], [6, 6, 20, 30]), sequence(7, "two words", [-1, 4, 9])]
    one, other, sequences = same_texts(first, second)
    assert set(sequences) == {9, 7} and one.text_of[5] == other.text_of[9]

    def rows(ends, *tokens):
        numbers = [name for name, count in tokens for _ in range(count)]
        index = [token for _, count in tokens for token in range(count)]
        active = csr_array(np.arange(1.0, len(numbers) + 1)[:, None])
        latents = SiteLatents(active, np.array(numbers), np.array(index, np.int32))
        return by_character(latents, ends)

    mine, theirs = rows(one, (4, 2), (5, 3), (6, 1)), rows(other, (7, 3), (9, 4))
    text, longer = one.text_of[4], one.text_of[5]
    ends = {(text, 3), (text, 9), (longer, 1), (longer, 6), (longer, 20)}
    assert set(zip(mine.sequence.tolist(), mine.token_index.tolist(), strict=True)) == ends
    found = zip(theirs.sequence.tolist(), theirs.token_index.tolist(), strict=True)
    values = dict(zip(found, theirs.active_NF.toarray()[:, 0].tolist(), strict=True))
    assert values == {
        (text, 4): 2, (text, 9): 3, (longer, 6): 5, (longer, 20): 6, (longer, 30): 7,
    }  # fmt: skip


def test_shuffled_weights_are_the_same_values_elsewhere():
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.LayerNorm(9))
    other = shuffled(model, 0)
    weights = dict(model.named_parameters())
    for name, weight in other.named_parameters():
        assert torch.equal(weight.flatten().sort()[0], weights[name].flatten().sort()[0])
    assert not torch.equal(other[0].weight, model[0].weight)
