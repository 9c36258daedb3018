"""Stability is 1 for the same dictionary in another order, and the chance level for another one."""

import shutil

import pytest
import torch

import raysae
from raysae import UserError
from raysae.analysis.agreement import read
from raysae.analysis.phases.stability import Stability, StabilitySettings
from raysae.analysis.results import made_of, write_result
from raysae.records.run_files import MEMBERS
from tests.analysis.worlds import atoms, codes, done, knowing, layer, subject_of

D_IN, ATOMS, ROWS = 32, 24, 400


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """Two layers; the first with two more seeds: one has the same atoms in another order, the other half
    of them. The second layer knows other atoms."""
    folder = tmp_path_factory.mktemp("seeded")
    first, others = atoms(ATOMS, D_IN, 0), atoms(ATOMS, D_IN, 1)
    code = codes(ROWS, ATOMS, 0.15, 0)
    rows = {layer(0): code @ first, layer(1): code @ others}
    subject = subject_of(folder, rows, {layer(0): knowing(first, 5), layer(1): knowing(others, 5)})
    order = torch.randperm(ATOMS, generator=torch.Generator().manual_seed(0))
    half = torch.cat([first[: ATOMS // 2], others[: ATOMS // 2]])
    members = (folder / "atlas" / layer(0).folder).with_suffix(MEMBERS)
    for seed, rows_FD in ((1, first[order]), (2, half)):
        knowing(rows_FD, 5).save(members / f"position=all,seed={seed}")
    settings = StabilitySettings()
    Stability().check(subject, settings)
    folders = done(Stability(), subject, settings, folder / "items")
    return subject, settings, folders, Stability().collect(subject, settings, folders)


def test_a_permuted_dictionary_gives_one_and_noise_the_chance_level(seeded):
    subject, _, folders, _ = seeded
    same, half, between = read(next(iter(folders.values()))).agreements
    assert (same.first, same.second) == ("first", "seed 1") and between.first == "seed 1"
    assert same.stability == pytest.approx(1, abs=1e-6) and same.permuted == pytest.approx(1)
    assert same.universal == ATOMS and same.low == pytest.approx(1)
    assert half.low < half.stability < half.high < 1
    seeds = subject.atlas.seeds(layer(0))
    rows = subject.store.validation(layer(0))
    assert half.stability == pytest.approx(
        raysae.stability(subject.atlas[layer(0)], seeds[1], rows), abs=1e-6
    )


def test_dictionaries_that_share_nothing_are_at_chance(seeded):
    *_, result = seeded
    (layers,) = [row for row in result.tables["pairs"] if row["kind"] == "layers"]
    assert layers["stability"] == pytest.approx(layers["chance"], abs=0.06)
    assert layers["chance_least"] <= layers["chance"] <= layers["chance_most"] < 0.5
    assert layers["universal"] == 0 and layers["universal_chance"] == 0
    assert result.figures["layers_stability"] == layers["stability"]


def test_universal_features_are_those_that_every_seed_has(seeded):
    *_, result = seeded
    universal = {
        row["feature"] for row in result.tables["features"]
        if row["kind"] == "seeds" and row["universal"]
    }  # fmt: skip
    assert set(range(ATOMS // 2)) <= universal and len(universal) <= ATOMS // 2 + 1
    listed = [table for table in result.section.tables if table.title == "Universal features"]
    assert {row[2] for row in listed[0].rows} == universal


def test_the_result_is_written_with_a_plot(seeded):
    subject, settings, _, result = seeded
    folder = write_result(
        subject.files, Stability(), {}, result, {},
        lambda folder: Stability().draw(result, settings, "a world", folder),
    )  # fmt: skip
    assert {"stability.png", "pairs.parquet", "features.parquet"} <= {
        one.name for one in folder.iterdir()
    }


def test_another_seed_makes_another_item(seeded, tmp_path):
    subject, settings, *_ = seeded
    copy = type(subject)(
        str(shutil.copytree(subject.place, tmp_path / "atlas")), subject.files, subject.store_place
    )
    seeds, layers = Stability().items(copy, settings)
    before = [made_of(copy, Stability(), settings, item) for item in (seeds, layers)]
    knowing(atoms(ATOMS, D_IN, 9), 5).save(copy.atlas.seed_folders(layer(0))[0])
    after = [made_of(copy, Stability(), settings, item) for item in (seeds, layers)]
    assert before[0] != after[0] and before[1] == after[1]


def test_one_seed_a_site_is_refused_with_what_to_give(tmp_path):
    rows = {layer(n): codes(80, 6, 0.3, n) @ atoms(6, 8, n) for n in (0, 1)}
    subject = subject_of(tmp_path, rows, {site: knowing(atoms(6, 8, 0), 2) for site in rows})
    with pytest.raises(UserError, match=r"atlas\.seeds_per_site=2"):
        Stability().check(subject, StabilitySettings())
    Stability().check(subject, StabilitySettings(between=("layers",)))
    with pytest.raises(UserError, match="names nothing"):
        Stability().check(subject, StabilitySettings(between=()))
