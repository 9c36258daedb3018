"""Tracking finds the features that persist, and calls the others dead or born."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysae import Site, UserError
from raysae.analysis.chains import Line, lines_of, neighbours
from raysae.analysis.matching import (
    assigned,
    correlations,
    features_of,
    matched,
    permuted_rows,
    rotated,
)
from raysae.analysis.phases.tracking import Tracking, TrackingSettings
from raysae.analysis.results import write_result
from raysae.analysis.site_latents import SiteLatents, common_rows, read_latents
from raysae.analysis.track_plots import draw_flow
from tests.analysis.worlds import atoms, codes, done, knowing, layer, subject_of

D_IN, ATOMS, HALF, ROWS = 64, 40, 20, 1600


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Three layers: half of the atoms of layer 0 are in layer 1 with the same activations, at other
    numbers; all of layer 1 are in layer 2."""
    folder = tmp_path_factory.mktemp("planted")
    first, others = atoms(ATOMS, D_IN, 0), atoms(HALF, D_IN, 1)
    code, new = codes(ROWS, ATOMS, 0.08, 0), codes(ROWS, HALF, 0.08, 1)
    second = torch.cat([others, first[:HALF]])
    second_code = torch.cat([new, code[:, :HALF]], dim=1)
    rows = {layer(0): code @ first, layer(1): second_code @ second, layer(2): second_code @ second}
    saes = {layer(0): knowing(first, 6), layer(1): knowing(second, 6), layer(2): knowing(second, 6)}
    subject = subject_of(folder, rows, saes)
    settings = TrackingSettings()
    Tracking().check(subject, settings)
    folders = done(Tracking(), subject, settings, folder / "items")
    return subject, settings, folders, Tracking().collect(subject, settings, folders)


def test_planted_persistence_is_found_and_the_rest_dies_or_is_born(planted):
    *_, result = planted
    links = {
        (row["first"], row["second"])
        for row in result.tables["matches"]
        if row["kept"] and row["first_layer"] == 0
    }
    truth = {(atom, HALF + atom) for atom in range(HALF)}
    assert len(links & truth) >= 0.95 * HALF, "recall"
    assert len(links - truth) <= 1, "false matches, of 20 at a rate of 0.01"
    step = next(row for row in result.tables["pairs"] if row["first_layer"] == 0)
    assert step["kept"] + step["died"] == ATOMS and step["kept"] + step["born"] == ATOMS
    assert step["control_share"] <= 0.1 and step["kept_share_low"] < 0.5 < step["kept_share_high"]


def test_chains_tell_what_all_layers_share_and_what_is_of_one(planted):
    *_, result = planted
    by_length = {n: [c for c in result.tables["chains"] if c["length"] == n] for n in (1, 2, 3)}
    assert len(by_length[3]) in range(19, 22) and len(by_length[2]) in range(19, 22)
    whole = [chain["features"] for chain in by_length[3]]
    assert sum(one == [atom, HALF + atom, HALF + atom] for atom, one in enumerate(whole)) >= 18
    assert result.figures["shared_features"] == 3 * len(by_length[3])
    low, high = (result.figures[f"shared_share_{end}"] for end in ("low", "high"))
    assert low < result.figures["shared_share"] < high


def test_trajectories_are_the_mean_activations_of_each_layer(planted):
    subject, _, _, result = planted
    table = pa.concat_tables(result.large["trajectories"]())
    chain = next(one for one in result.tables["chains"] if one["length"] == 3)
    rows = [row for row in table.to_pylist() if row["chain"] == chain["chain"]]
    for place, feature in enumerate(chain["features"]):
        site = layer(place)
        latents = read_latents(
            subject.store, site, subject.atlas[site], ("validation", "test", "train"), 10_000
        )
        sequences, means_SF = latents.sequence_means()
        column = dict(zip(sequences.tolist(), means_SF[:, [feature]].toarray()[:, 0], strict=True))
        assert [row["activation"][place] for row in rows] == pytest.approx(
            [column[row["sequence"]] for row in rows], rel=1e-6
        )
        assert sum(value > 0 for value in column.values()) == sum(
            row["activation"][place] > 0 for row in rows
        )


def test_the_result_is_written_with_plots(planted, tmp_path):
    subject, settings, _, result = planted
    folder = write_result(
        subject.files, Tracking(), {}, result, {},
        lambda folder: Tracking().draw(result, settings, "a world", folder),
    )  # fmt: skip
    assert {"flow.png", "kept.png", "trajectories.parquet"} <= {
        one.name for one in folder.iterdir()
    }
    assert pq.read_table(folder / "trajectories.parquet").equals(
        pa.concat_tables(result.large["trajectories"]())
    )
    many = [{**row, "position": str(n)} for n in range(13) for row in result.tables["flow"]]
    draw_flow(many, "a world", tmp_path / "flow.png")


def test_the_same_item_gives_the_same_files(planted, tmp_path):
    subject, settings, folders, _ = planted
    for item, folder in done(Tracking(), subject, settings, tmp_path).items():
        for file in folder.iterdir():
            assert file.read_bytes() == (folders[item] / file.name).read_bytes()


def test_what_cannot_be_tracked_is_refused(planted, tmp_path):
    subject, settings, *_ = planted
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    one = subject_of(tmp_path, {layer(0): rows}, {layer(0): knowing(atoms(4, 8, 0), 2)})
    with pytest.raises(UserError, match="no two layers of one position"):
        Tracking().check(one, settings)
    with pytest.raises(UserError, match=r"tracking\.fires"):
        done(Tracking(), subject, TrackingSettings(fires=10_000), tmp_path)


def latents(dense: np.ndarray, sequence, token=None) -> SiteLatents:
    from scipy.sparse import csr_array

    sequence = np.asarray(sequence, np.int64)
    token = np.zeros(len(sequence), np.int32) if token is None else np.asarray(token, np.int32)
    return SiteLatents(csr_array(dense), sequence, token)


def test_correlations_are_those_of_the_dense_rows():
    random = np.random.default_rng(0)
    one, other = (random.random((50, n)) * (random.random((50, n)) < 0.3) for n in (4, 6))
    one[:, 2] = 1.0  # does not vary
    found = correlations(latents(one, range(50)), latents(other, range(50)))
    expected = np.corrcoef(np.delete(one, 2, 1).T, other.T)[:3, 3:]
    np.testing.assert_allclose(np.delete(found, 2, 0), expected, atol=1e-12)
    assert (found[2] == 0).all()


def test_common_rows_are_of_the_same_tokens_also_where_a_token_has_several():
    one = latents(np.arange(5.0)[:, None], [1, 1, 2, 2, 4], [0, 1, 3, 3, 0])
    other = latents(np.arange(10.0, 15.0)[:, None], [1, 2, 2, 3, 4], [1, 3, 3, 0, 0])
    first, second = common_rows(one, other)
    assert first.active_NF.toarray()[:, 0].tolist() == [1, 2, 3, 4]
    assert second.active_NF.toarray()[:, 0].tolist() == [10, 11, 12, 14]
    by_sequence = common_rows(one, other, by_sequence=True)[0]
    assert by_sequence.sequence.tolist() == [1, 2, 2, 4]


def test_permuted_rows_meet_the_same_place_of_another_sequence():
    sequence = np.repeat(np.arange(40), np.arange(40) % 4 + 1)
    place = np.concatenate([np.arange(n % 4 + 1) for n in range(40)])
    one, other = permuted_rows(sequence, np.random.default_rng(0))
    assert (place[one] == place[other]).all() and (sequence[one] != sequence[other]).mean() > 0.8
    pairs = set(zip(sequence[one].tolist(), sequence[other].tolist(), strict=True))
    assert len(pairs) == len({first for first, _ in pairs}) == 40


def test_a_rotation_keeps_the_angles_and_leaves_nothing_where_it_was():
    rows = atoms(30, 48, 5).double().numpy()
    turned = rotated(rows, np.random.default_rng(0))
    np.testing.assert_allclose(turned @ turned.T, rows @ rows.T, atol=1e-9)
    assert abs((rows * turned).sum(axis=1)).mean() < 0.3


def test_random_decoders_of_the_same_moments_are_a_stricter_null():
    narrow = atoms(40, 6, 0) @ torch.linalg.qr(atoms(6, 64, 1).T)[0].T  # all in six dimensions
    rows = latents(codes(200, 20, 0.2, 0).double().numpy(), range(200))
    one, two = (features_of(rows, side, 1, 20)[0] for side in (narrow[:20], narrow[20:]))
    shares = {
        null: matched(one, two, "cosine", null, 10, 0.05, [0]).kept.mean()
        for null in ("rotation", "moments")
    }
    assert shares["rotation"] > 0.8 and shares["moments"] < 0.25


def test_an_assignment_is_one_to_one_and_of_the_largest_sum():
    match = assigned(np.array([[0.9, 0.8, 0.0], [0.85, 0.1, 0.0]]))
    assert list(zip(match.first, match.second, strict=True)) == [(0, 1), (1, 0)]


def test_neighbours_are_of_one_position_or_of_one_layer():
    sites = [Site(0, -2), Site(0, -1), Site(3, -2), Site(3, "all"), Site(0, "all"), Site(0, 0)]
    assert neighbours(sites, by_position=False) == [
        (Site(0, -2), Site(3, -2)), (Site(0, "all"), Site(3, "all")),
    ]  # fmt: skip
    assert neighbours(sites, by_position=True) == [(Site(0, -2), Site(0, -1))]


def test_a_missing_pair_ends_a_line():
    links = {(layer(n), layer(n + 1)): ({1, 2}, {1, 2}, {1: 2}) for n in (0, 1, 3)}
    lines = lines_of(links)
    assert [[site.layer for site in line.sites] for line in lines] == [[0, 1, 2], [3, 4]]
    assert isinstance(lines[0], Line)
    assert [chain.features for chain in lines[0].chains()] == [(1, 2), (2,), (1, 2), (1,)]
