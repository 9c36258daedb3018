"""Stores at a URI: read in ranges, without a copy, with faults of the storage named."""

import json
import pickle
import shutil
import threading

import pytest
import torch

import raysae
from raysae.activations import Site
from raysae.activations.show import draw_samples, unlisted
from raysae.activations.store_command import main as store_command
from raysae.activations.streaming import StreamedRows, StreamedSite
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.verify import verify
from raysae.activations.writer import write_store
from raysae.errors import UserError
from raysae.storage import remote_files, retries
from raysae.training.rows import Stream
from tests.storage.faulty import FaultyFileSystem, touched

SITE = Site(0, "all")
URI = "faulty://bucket/store"


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(remote_files, "LOOK_SECONDS", 0.0)
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    FaultyFileSystem.reset()
    yield
    assert not (tmp_path / "cache").exists(), "nothing was copied"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """2 sites of 3,000 rows in shards of 1,000, 2.3 MB in all."""
    folder = tmp_path_factory.mktemp("remote") / "s"
    world = SuperpositionWorld(d_in=96, atoms=128)
    write_synthetic_store(folder, world, 3000, sites=2, shard_rows=1000)
    return folder


@pytest.fixture(params=["faulty", "file"])
def there(request, folder, tmp_path):
    """The store at a URI of fsspec, and at one of pyarrow."""
    if request.param == "file":
        shutil.copytree(folder, tmp_path / "home" / "s")
        return f"file://{tmp_path}/home/s"
    FaultyFileSystem.put(folder, "/bucket/store")
    return URI


@pytest.fixture
def faulty(folder):
    FaultyFileSystem.put(folder, "/bucket/store")
    return FaultyFileSystem


def batches(rows, **options):
    return [b.clone() for b in Stream(rows, seed=3, epochs=2, batch_size=64, **options)]


def test_everything_reads_as_from_the_folder(there, folder):
    local, store = raysae.open_store(folder), raysae.open_store(there)
    assert (store.digest, store.sites, store.place) == (local.digest, local.sites, there)
    assert store.uri == there and store.opened_by == there
    assert local.uri is None and local.opened_by == folder
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(store, split)(SITE), getattr(local, split)(SITE))
    assert torch.equal(store.truth(), local.truth())
    shard = store.entry(SITE).shards[1]
    assert store.read(shard, "train").equals(local.read(shard, "train"))
    for window in (100, 700, 10_000):
        found = batches(StreamedRows(store, SITE, "train"), shuffle_rows=window)
        wanted = batches(StreamedRows(local, SITE, "train"), shuffle_rows=window)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert verify(there) == [] and unlisted(store.files, store.manifest) == []


def test_samples_are_those_of_the_folder(there, folder):
    found = draw_samples(raysae.open_store(there), SITE, 7)
    wanted = draw_samples(raysae.open_store(folder), SITE, 7)
    assert [one.sequence for one in found] == [one.sequence for one in wanted]
    assert all(
        torch.equal(a.activation_D, b.activation_D) for a, b in zip(found, wanted, strict=True)
    )


def test_a_store_and_a_site_go_to_another_process(there):
    store = raysae.open_store(there)
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.train(SITE), store.train(SITE))
    site = pickle.loads(pickle.dumps(StreamedSite.of(store, SITE)))
    assert site.store == there and len(site.rows("train")) == store.entry(SITE).rows.train


def test_small_requests_give_the_same_rows(there, folder, monkeypatch):
    from raysae.activations import streaming

    monkeypatch.setattr(streaming, "REQUEST_BYTES", 5000)
    rows = StreamedRows(raysae.open_store(there), SITE, "train")
    assert torch.equal(rows.read(0, len(rows)), raysae.open_store(folder).train(SITE))
    assert torch.equal(rows.read(700, 1900), raysae.open_store(folder).train(SITE)[700:1900])


def test_an_epoch_fetches_its_rows_and_little_more(faulty):
    store = raysae.open_store(URI)
    rows = StreamedRows(store, SITE, "train")
    before = faulty.bytes_read()
    batches(rows, shuffle_rows=500)
    assert faulty.bytes_read() - before <= 1.02 * 2 * len(rows) * store.row_bytes


def test_rows_in_memory_are_fetched_once(faulty):
    store = raysae.open_store(URI)
    splits = store.site(SITE)
    size = (len(splits.train) + len(splits.validation)) * store.row_bytes
    footers = 2 * 3 * 66_000 + 20_000  # of these small shards: the last 64 KiB, and headers
    assert faulty.bytes_read(".parquet") <= 1.02 * size + footers


def test_opening_listing_and_sampling_read_no_page(faulty, capsys, monkeypatch):
    manifest = len(faulty.store["/bucket/store/manifest.json"].getvalue())
    assert store_command(["sites", URI]) == 0
    assert faulty.bytes_read() == manifest and "layer=00/position=all" in capsys.readouterr().out
    raysae.open_store(URI).truth()
    faulty.read.clear()
    asked = []
    fetch = remote_files.RemoteFiles.read_into
    monkeypatch.setattr(
        remote_files.RemoteFiles, "read_into",
        lambda self, name, memory, at: (asked.append((name, len(memory))), fetch(self, name, memory, at)),
    )  # fmt: skip
    assert len(draw_samples(raysae.open_store(URI), SITE, 3)) == 3
    # three rows, the other columns, the headers, and the last 64 KiB with the footer: not a whole page
    assert max(size for _, size in asked) < 100_000
    assert len({name for name, _ in asked if name.endswith(".parquet")}) == 1
    assert (
        store_command(["show", URI, "--samples", "3"]) == 0
    )  # which reads rows, to tell their health
    shown = capsys.readouterr().out
    assert f"store        {URI}" in shown and "3 rows of layer=00" in shown


def test_verify_at_a_uri(faulty, capsys):
    assert store_command(["verify", URI]) == 0
    assert f"{URI}: 2 sites" in capsys.readouterr().out
    path = "/bucket/store/layer=01/position=all/part-00001.parquet"
    data = bytearray(faulty.store[path].getvalue())
    data[5000] ^= 1
    faulty().pipe_file(path, bytes(data))
    faulty().pipe_file("/bucket/store/notes.txt", b"x")
    assert store_command(["verify", URI]) == 1
    said = capsys.readouterr().out
    assert "part-00001.parquet  sha256" in said and "note: notes.txt: not listed" in said
    with pytest.raises(UserError, match=r"part-00001.parquet: the file was altered"):
        store = raysae.open_store(URI)
        store.check(*store.entry(Site(1, "all")).shards)


@pytest.mark.parametrize("failures", [1, 4])
def test_a_request_that_fails_is_tried_again(failures, faulty, folder):
    rows = StreamedRows(raysae.open_store(URI), SITE, "train")
    faulty.fail_reads = failures
    assert torch.equal(rows.read(0, 100), raysae.open_store(folder).train(SITE)[:100])
    faulty.fail_reads = faulty.fail_lists = failures
    raysae.open_store(URI)
    faulty.fail_lists = 5
    with pytest.raises(UserError, match="faulty://bucket/store: cannot be reached"):
        raysae.open_store(URI)


def test_a_storage_that_stays_away_is_named(faulty):
    rows = StreamedRows(raysae.open_store(URI), SITE, "train")
    faulty.fail_reads = 1000
    with pytest.raises(
        UserError,
        match=r"faulty://bucket/store/layer=00/.*part-00000.parquet: could not be read \(the connection "
        r"was reset, at the last of 5 tries\); the same command continues",
    ):
        rows.read(0, 100)
    assert faulty.fail_reads == 995
    with pytest.raises(UserError, match=r"store/manifest.json: could not be read"):
        raysae.open_store(URI)


def test_a_slow_storage_is_not_waited_for_for_ever(faulty, monkeypatch):
    rows = StreamedRows(raysae.open_store(URI), SITE, "train")
    monkeypatch.setattr(retries, "ATTEMPT_SECONDS", 0.02)
    monkeypatch.setattr(remote_files, "LOOK_SECONDS", 1e9)
    faulty.wait = 0.2
    with pytest.raises(
        UserError, match=r"part-00000.parquet: could not be read \(no answer within"
    ):
        rows.read(0, 100)
    for thread in threading.enumerate():  # the reads that were left behind
        if thread.name == "a request":
            thread.join()


def test_an_object_lost_in_mid_course_is_named_at_once(faulty):
    rows = StreamedRows(raysae.open_store(URI), SITE, "train")
    del faulty.store["/bucket/store/layer=00/position=all/part-00001.parquet"]
    read = rows.read(0, 100)
    assert len(read) == 100
    with pytest.raises(UserError, match=r"part-00001.parquet: missing: it was removed after"):
        rows.read(700, 1000)


@pytest.mark.parametrize("how", ["touched", "other size"])
def test_an_object_that_changes_in_mid_course_is_refused(how, faulty):
    site = StreamedSite.of(raysae.open_store(URI), SITE)
    rows = site.rows("train")
    path = "/bucket/store/layer=00/position=all/part-00002.parquet"
    if how == "touched":
        touched(path)
    else:
        faulty().pipe_file(path, faulty.store[path].getvalue() + b"x")
    with pytest.raises(UserError, match=r"part-00002.parquet: changed during the run \("):
        rows.read(0, len(rows))
    with pytest.raises(UserError, match="changed during the run"):
        site.rows("train")


def test_a_file_that_changes_at_a_file_uri_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "s")
    rows = StreamedRows(raysae.open_store(f"file://{tmp_path}/s"), SITE, "train")
    path = tmp_path / "s/layer=00/position=all/part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="changed during the run"):
        rows.read(0, 10)


@pytest.mark.parametrize("how", ["lost", "cut", "hidden"])
def test_a_store_whose_listing_does_not_fit_is_refused(how, faulty):
    path = "/bucket/store/layer=00/position=all/part-00000.parquet"
    data = faulty.store[path].getvalue()
    faulty().rm(path)
    if how == "cut":
        faulty().pipe_file(path, data[:-1])
    if how == "hidden":
        hidden = path.replace("/part-", "/.part-")
        faulty().pipe_file(hidden, data)
        manifest = faulty.store["/bucket/store/manifest.json"].getvalue()
        faulty().pipe_file(
            "/bucket/store/manifest.json",
            manifest.replace(
                b"layer=00/position=all/part-00000", b"layer=00/position=all/.part-00000"
            ),
        )
    with pytest.raises(
        UserError, match="part-00000.parquet: (missing, though|.* bytes, the manifest)"
    ):
        raysae.open_store(URI)


def test_what_is_no_store_says_so(faulty):
    with pytest.raises(UserError, match="faulty://bucket: no manifest.json"):
        raysae.open_store("faulty://bucket")
    faulty().pipe_file("/bucket/store/manifest.json", b"{")
    with pytest.raises(UserError, match="store/manifest.json: not valid JSON"):
        raysae.open_store(URI)
    with pytest.raises(UserError, match=r"has no '\.\.'"):
        raysae.open_store("faulty://bucket/a/../store")


def test_a_row_that_is_not_finite_is_named_as_it_comes(faulty, tmp_path):
    rows = torch.ones(500, 8)
    rows[:, 3] = torch.arange(500.0)
    write_store(
        tmp_path / "s", {SITE: rows}, provenance="imported", source={},
        split={"validation": 0.1, "test": 0.0},
    )  # fmt: skip
    store = raysae.open_store(tmp_path / "s")
    place = int((store.train(SITE)[:, 3] == 123).nonzero())
    faulty.put(tmp_path / "s", "/bucket/bad")
    (path,) = (p for p in faulty.store if p.startswith("/bucket/bad/layer"))
    value = torch.tensor([123.0]).numpy().tobytes()
    nan = torch.tensor([float("nan")]).numpy().tobytes()
    data = faulty.store[path].getvalue()
    assert data.count(value) == 1
    faulty().pipe_file(path, data.replace(value, nan))
    bad = raysae.open_store("faulty://bucket/bad")
    with pytest.raises(UserError, match=rf"faulty://bucket/bad: .*, train: row {place} holds nan"):
        bad.train(SITE)
    streamed = StreamedSite.of(bad, SITE).rows("train")
    with pytest.raises(UserError, match=rf"faulty://bucket/bad: .*, train: row {place} holds nan"):
        batches(streamed, shuffle_rows=100)


@pytest.mark.parametrize(
    "name", ["layer=00", "layer=00/position=all/part-00000.parquet", "manifest.json"]
)
def test_links_out_of_a_file_uri_are_refused(name, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "s")
    (tmp_path / "s" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "s" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link to .*elsewhere"):
        raysae.open_store(f"file://{tmp_path}/s")


def test_a_pipe_at_a_file_uri_is_not_opened(folder, tmp_path):
    import os

    shutil.copytree(folder, tmp_path / "s")
    (tmp_path / "s/manifest.json").unlink()
    os.mkfifo(tmp_path / "s/manifest.json")
    with pytest.raises(UserError, match=r"no manifest.json"):
        raysae.open_store(f"file://{tmp_path}/s")


def test_the_manifest_is_read_whole_once(faulty):
    raysae.open_store(URI)
    assert faulty.read == {
        "/bucket/store/manifest.json": len(faulty.store["/bucket/store/manifest.json"].getvalue())
    }
    assert json.loads(faulty.store["/bucket/store/manifest.json"].getvalue())["sites"]


def test_a_synthetic_store_is_made_in_a_folder():
    with pytest.raises(UserError, match="a synthetic store is written to a folder"):
        store_command(["synthetic", "--out", URI])
