"""The health of a store, site by site: the run's own figures, from few bytes, told in few lines."""

import json

import pytest
import torch

import raysae
from raysae.activations.health import (
    LISTED,
    MOST_SITES,
    _some,
    health_of_site,
    health_of_store,
    health_table,
)
from raysae.activations.store import Store
from raysae.activations.store_command import main
from raysae.activations.streaming import StreamedRows
from raysae.activations.writer import write_store
from raysae.console.command_line import DONE, run_command
from raysae.console.output import table_lines
from raysae.sites import Site
from raysae.training.statistics import health_of


def rows_of(count=600, d_in=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, d_in, generator=generator))


def sick(kind):
    """Rows with one thing that is unusual."""
    rows = rows_of()
    if kind == "mean":
        rows = rows + 5
    elif kind == "large":
        rows[::50] *= 200
    elif kind == "constant":
        rows[:, 2] = 1.0
    elif kind == "repeated":
        rows[:300] = rows[0]
    elif kind == "equal":
        rows[:] = 1.0
    return rows


def made(folder, sites, **options):
    settings = {"provenance": "imported", "source": {}, "split": {"validation": 0.1, "test": 0.1}}
    write_store(folder, sites, **{**settings, **options})
    return raysae.open_store(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    kinds = ("usual", "mean", "large", "constant", "repeated", "equal")
    sites = {Site(at, ("all", -1)[at % 2]): sick(kind) for at, kind in enumerate(kinds)}
    return made(tmp_path_factory.mktemp("health") / "s", sites, dtype="bfloat16", shard_rows=130)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("position", [-1, 0, "all"])
@pytest.mark.parametrize("rows", [50, 12_000])
def test_the_figures_are_those_of_a_run(tmp_path, dtype, position, rows):
    site = Site(2, position)
    store = made(tmp_path / "s", {site: rows_of(rows, 4) + 1}, dtype=dtype, shard_rows=rows // 7)
    found = health_of_site(store, site)
    assert found.health == health_of(StreamedRows(store, site, "train")) and not found.problem
    assert found.health.rows == min(8192, store.entry(site).rows.train)


def test_few_of_many_files_are_opened(tmp_path, monkeypatch):
    store = made(tmp_path / "s", {Site(0, "all"): rows_of(40_000, 2)}, shard_rows=400)
    opened, segments = set(), Store.segments

    def counted(self, shard, split):
        opened.add(shard.file)
        return segments(self, shard, split)

    monkeypatch.setattr(Store, "segments", counted)
    found = health_of_store(store)
    assert found.sites[0].health.rows == 8192 and found.read == 8192 * 2 * 4
    assert len(opened) < 30 < len(store.manifest.sites[0].shards)


def test_every_kind_of_thing_is_told_once_with_its_worst_site(mixed):
    found = health_of_store(mixed)
    told = "\n".join(found.notes)
    assert "at layer 1, position -1: the mean's norm is" in told
    assert "at layer 2, position all: 1.88% of the rows are sinks" in told
    assert "at layer 2, position all: 1.88% of the rows have a norm over 10 times" in told
    assert "1.88% over 100 times (source.max_norm_ratio=10" in told
    assert "at layer 3, position -1: 1 dimension (2) never varies" in told
    assert "of the rows are equal to another one (source.repeats=drop" in told
    assert "at layer 5, position -1: all rows are equal" in told
    assert told.endswith("times the spread") and "1 other site: nothing unusual" in told
    assert "from up to" in found.how and "at each of 6 sites" in found.how
    assert [line.split(": ")[0] for line in found.advice] == [
        "equal rows", "large means", "sinks", "large norms", "constant dimensions", "repeated rows"
    ]  # fmt: skip


def test_records_are_plain_json(mixed):
    for one in health_of_store(mixed).sites:
        plain = json.loads(json.dumps(one.record(), allow_nan=False))
        assert plain["site"] == one.site.folder and plain["problem"] is None
        assert (plain["mean_ratio"] is None) == (one.site.layer == 5)


def test_a_site_that_cannot_be_read_is_told_and_the_others_are_shown(tmp_path):
    sites = {Site(at, 0): rows_of() for at in range(3)}
    store = made(tmp_path / "s", sites)
    path = store.path / store.entry(Site(1, 0)).shards[0].file
    path.write_bytes(bytes(path.stat().st_size))
    found = health_of_store(store)
    assert [one.health is None for one in found.sites] == [False, True, False]
    assert found.notes[0].startswith("at layer 1, position 0: ") and str(path) in found.notes[0]
    assert found.worst[0].site == Site(1, 0)
    assert any("layer=01/position=00" in line for line in table_lines(health_table(found)))


def test_rows_that_are_not_finite_are_a_problem_of_their_site(tmp_path):
    rows = {Site(0, "all"): rows_of(), Site(1, "all"): rows_of()}
    store = made(tmp_path / "s", rows)
    segment = store.segments(store.entry(Site(0, "all")).shards[0], "train")[0]
    path = store.path / segment.shard.file
    data = bytearray(path.read_bytes())
    data[segment.offset : segment.offset + 4] = b"\x00\x00\xc0\x7f"
    path.write_bytes(data)
    bad, good = health_of_store(raysae.open_store(store.path)).sites
    assert "row 0 holds nan" in bad.problem and bad.findings == [] and good.health


def test_validation_rows_are_looked_at_where_there_are_no_others(tmp_path):
    site = Site(0, 0)
    store = made(tmp_path / "v", {site: rows_of()}, split={"validation": 0.9999, "test": 0.0})
    assert health_of_site(store, site).health.rows == store.entry(site).rows.validation > 500
    store = made(tmp_path / "t", {site: rows_of()}, split={"validation": 0.0, "test": 0.9999})
    assert health_of_site(store, site).problem == "no rows to train on"


def test_one_row(tmp_path):
    store = made(tmp_path / "s", {Site(0, 0): rows_of(1)}, split={"validation": 0.0, "test": 0.0})
    (one,) = health_of_store(store).sites
    assert one.health.rows == 1 and one.findings == [] and one.cells[1] == ""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    sites = {Site(at // 10, at % 10): rows_of(30, 2, at) for at in range(MOST_SITES + 36)}
    sites[Site(0, 0)] = torch.ones(30, 2)
    sites[Site(9, 9)] = rows_of(30, 2) + 9
    return made(tmp_path_factory.mktemp("many") / "s", sites)


def test_of_many_sites_some_are_looked_at_and_the_worst_listed(many):
    found = health_of_store(many)
    assert len(found.sites) == MOST_SITES and found.others == 36
    assert found.sites[0].site == Site(0, 0) and found.sites[-1].site == Site(9, 9)
    assert len({one.site for one in found.sites}) == MOST_SITES
    listed = [one.site for one in found.listed]
    assert len(listed) == LISTED and {Site(0, 0), Site(9, 9)} <= set(listed)
    assert listed == sorted(listed) and len(table_lines(health_table(found))) == LISTED + 2
    assert any("40 sites" in note and "left out of the table" in note for note in found.notes)
    assert f"{MOST_SITES} of 100 sites" in found.how


@pytest.mark.parametrize(("d_in", "looked"), [(64, 64), (768, 42), (4096, 8), (2**20, 4)])
def test_wide_rows_are_looked_at_at_fewer_sites(many, d_in, looked):
    some = _some(many.sites, d_in)
    assert len(set(some)) == looked and some == sorted(some)
    assert some[0] == many.sites[0] and some[-1] == many.sites[-1]
    assert _some(many.sites[:3], d_in) == many.sites[:3]


def test_show_prints_it_and_all_looks_at_every_site(many, capsys):
    assert run_command(main, ["show", str(many.path), "--samples", "0"]) == DONE
    told = capsys.readouterr().out
    health = told[told.index("Health of the data") :]
    assert len(health.splitlines()) < LISTED + 12
    assert "36 sites were not looked at; --all looks at every one" in health
    assert run_command(main, ["show", str(many.path), "--samples", "0", "--all"]) == DONE
    told = capsys.readouterr().out
    health = told[told.index("Health of the data") :]
    assert "not looked at" not in health and health.count("layer=") == 100
    assert run_command(main, ["show", str(many.path), "--site", "layer=09/position=09"]) == DONE
    told = capsys.readouterr().out
    assert "at each of 1 site (" in told and "the mean's norm is" in told
