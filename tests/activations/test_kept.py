"""Which rows a store keeps: those with NaN and those far too large are left out and counted."""

import json

import numpy as np
import pytest
import torch

import raysae
from raysae.activations.importing.run import import_activations
from raysae.activations.kept import kept_rows
from raysae.activations.manifest import MANIFEST_FILE, read_manifest
from raysae.activations.store_command import main
from raysae.activations.verify import verify
from raysae.activations.writer import ShardFormat, SiteRows, SiteWriter, write_store
from raysae.console.command_line import DONE, REFUSED, run_command
from raysae.errors import UserError
from raysae.sites import Site

SITE = Site(0, "all")
NAN = float("nan")


def rows_of(norms):
    """Rows ``[N, 4]`` with these norms; each one's sequence id is its number."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(len(norms), 4, generator=generator))
    zeros = np.zeros(len(norms), dtype=np.int32)
    rows = directions * torch.tensor(norms)[:, None]
    return SiteRows(rows, np.arange(len(norms)), zeros, zeros)


def kept(norms, ratio, non_finite="drop"):
    found = kept_rows(rows_of(norms), SITE, non_finite, ratio)
    which = range(len(norms)) if found.which_N is None else np.flatnonzero(found.which_N).tolist()
    return list(which), found.dropped, found.too_large


def test_rows_far_over_the_median_norm_are_left_out():
    assert kept([1.0, 1.0, 1.0, 9.9, 10.1, 1000.0], 10.0) == ([0, 1, 2, 3], 0, 2)
    assert kept([1.0, 1.0, 1.0, 9.9, 10.1, 1000.0], None) == ([0, 1, 2, 3, 4, 5], 0, 0)
    assert kept([1.0, 2.0, 3.0], 10.0) == ([0, 1, 2], 0, 0)
    assert kept([], 10.0) == ([], 0, 0)
    assert kept([7.0], 1.5) == ([0], 0, 0)
    assert kept([0.0, 0.0, 5.0], 10.0) == ([0, 1, 2], 0, 0), "no row is typical"


def test_the_median_is_that_of_the_finite_rows():
    assert kept([NAN, 1.0, NAN, 1.0, 11.0, NAN, NAN], 10.0) == ([1, 3], 4, 1)
    assert kept([NAN, 1.0, float("inf"), 1.0], 10.0) == ([1, 3], 2, 0)
    assert kept([NAN, 1.0], None) == ([1], 1, 0)
    with pytest.raises(UserError, match="1 of 2 rows hold NaN"):
        kept([NAN, 1.0], 10.0, "refuse")
    with pytest.raises(UserError, match=r"layer 0, position all: nothing is left of .* 2 rows"):
        kept([NAN, NAN], 10.0)
    assert kept([NAN, NAN], None) == ([], 2, 0), "as before"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_store_is_as_if_the_rows_had_never_come(tmp_path, dtype):
    norms = [1.0] * 50 + [300.0] * 4 + [1.0] * 46
    form = ShardFormat(dtype, {"validation": 0.2, "test": 0.1}, max_norm_ratio=10.0)
    rows = rows_of(norms)
    kept_N = np.array(norms) < 10
    entries = {}
    for name, given in (("all", rows), ("kept", rows.take(kept_N))):
        writer = SiteWriter(tmp_path / name, SITE, form)
        writer.add(given)
        entries[name] = writer.finish()
    assert (entries["all"].too_large, entries["all"].rows.total) == (4, 96)
    assert "too_large" not in entries["kept"].model_dump()
    assert entries["all"].model_copy(update={"too_large": 0}) == entries["kept"]


def test_each_shard_has_a_median_of_its_own(tmp_path):
    norms = [1.0] * 10 + [100.0] * 10
    form = ShardFormat("float32", {"validation": 0.0, "test": 0.0}, max_norm_ratio=10.0)
    for rows, left_out in ((10, 0), (20, 10), (15, 5)):
        writer = SiteWriter(tmp_path / f"{rows}", SITE, form, shard_rows=rows)
        writer.add(rows_of(norms))
        assert writer.finish().too_large == left_out


def test_a_row_that_the_dtype_could_not_hold_may_be_left_out(tmp_path):
    norms = [1.0] * 50 + [1e6]
    form = ShardFormat("float16", {"validation": 0.0, "test": 0.0})
    with pytest.raises(UserError, match="above float16's largest"):
        SiteWriter(tmp_path / "a", SITE, form, 51).add(rows_of(norms))
    form = ShardFormat("float16", {"validation": 0.0, "test": 0.0}, max_norm_ratio=10.0)
    writer = SiteWriter(tmp_path / "b", SITE, form)
    writer.add(rows_of(norms))
    assert writer.finish().too_large == 1


def imported(tmp_path, name="s", **options):
    rows = rows_of([1.0] * 50 + [1e6, 200.0] + [1.0] * 48).activation_ND
    np.save(tmp_path / "x.npy", rows.numpy())
    settings = {"layer": 0, "position": "all", **options}
    return import_activations(tmp_path / "x.npy", tmp_path / name, **settings)


def test_an_import_leaves_them_out_and_says_so(tmp_path, capsys):
    done = imported(tmp_path, max_norm_ratio=10, dtype="float16")
    assert (done.rows, done.too_large, done.dropped) == (98, 2, 0)
    assert verify(done.store) == []
    store = raysae.open_store(done.store)
    assert store.entry(SITE).too_large == 2
    assert float(store.train(SITE).float().norm(dim=1).max()) < 1.1
    assert store.manifest.source["imports"][0]["options"]["max_norm_ratio"] == 10
    assert run_command(main, ["show", str(done.store)]) == DONE
    head, row = capsys.readouterr().out.partition("layer=00")[::2]
    assert head.split()[-2:] == ["dropped", "large"] and row.splitlines()[0].split()[-2:] == [
        "0",
        "2",
    ]
    with pytest.raises(UserError, match="above float16's largest"):
        imported(tmp_path, "t", dtype="float16")


def test_the_option_of_an_import(tmp_path, capsys):
    imported(tmp_path, "other")
    typed = ["import", str(tmp_path / "x.npy"), "--layer", "0", "--position", "all"]
    given = [*typed, "--out", str(tmp_path / "s"), "--max-norm-ratio", "10"]
    assert run_command(main, given) == DONE
    assert "98 rows of 4 float32, 0 rows dropped, 2 rows too large" in capsys.readouterr().out
    for bad in ("1", "0.5", "-3", "nan", "inf"):
        refused = [*typed, "--out", str(tmp_path / "t"), f"--max-norm-ratio={bad}"]
        assert run_command(main, refused) == REFUSED
        assert "expected a number over 1, such as 10" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_a_store_that_left_out_nothing_is_written_as_ever(tmp_path):
    """Neither the manifest nor the digest knows the new field and option."""
    done = imported(tmp_path)
    text = (done.store / MANIFEST_FILE).read_text()
    assert "too_large" not in text and "max_norm_ratio" not in text


def test_the_digest_counts_it_only_where_it_is(tmp_path):
    split = {"validation": 0.1, "test": 0.1}
    rows = rows_of([1.0] * 50).activation_ND
    made = write_store(tmp_path / "s", {SITE: rows}, provenance="imported", source={}, split=split)
    assert read_manifest(tmp_path / "s").digest() == made.digest()
    content = json.loads((tmp_path / "s" / MANIFEST_FILE).read_text())
    content["sites"][0]["too_large"] = 3
    (tmp_path / "s" / MANIFEST_FILE).write_text(json.dumps(content))
    changed = read_manifest(tmp_path / "s")
    assert changed.sites[0].too_large == 3 and changed.digest() != made.digest()
    changed.write(tmp_path / "s")
    assert read_manifest(tmp_path / "s").digest() == changed.digest()
