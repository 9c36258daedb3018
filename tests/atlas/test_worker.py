"""The atlas's worker without Ray: groups of sites end as each site alone; what is committed stays."""

import pytest

from raysae import open_store
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.atlas import worker as worker_module
from raysae.atlas.training import groups_of
from raysae.atlas.worker import AtlasWork, AtlasWorker, SiteSettings
from raysae.cluster.placement import Placement
from raysae.records.run_files import MEMBERS, RunFiles
from raysae.sae.config import TopKConfig
from raysae.storage.files import read_json
from raysae.training import TrainingConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "store"
    world = SuperpositionWorld(d_in=16, atoms=24, p=0.08)
    write_synthetic_store(folder, world, 600, sites=3, validation=0.2, test=0.0)
    return open_store(folder)


@pytest.fixture
def make_worker(store, monkeypatch):
    monkeypatch.setattr(worker_module, "prepare_worker", lambda: "cpu")

    def make(folder, pack=None, lr=3e-3, seeds=(0,)):
        training = TrainingConfig(epochs=3, batch_size=64, lr=lr, evaluations=3)
        settings = SiteSettings(store.digest, seeds, TopKConfig(d_sae=24, k=2), training, {})
        return AtlasWorker(
            AtlasWork(RunFiles(folder), str(store.path), settings, 1e9, 0.0, pack=pack)
        )

    return make


def done(worker, sites):
    reports, work = [], worker.do(tuple(sites), lambda: None)
    while True:
        try:
            reports.append(next(work))
        except StopIteration as end:
            return reports, end.value


def weights(folder):
    return {
        file.parent.name + file.parent.parent.name: file.read_bytes()
        for file in folder.rglob("sae.safetensors")
    }


def test_a_group_ends_as_each_site_alone(make_worker, store, tmp_path):
    reports, together = done(make_worker(tmp_path / "together"), store.sites)
    for site in store.sites:
        done(make_worker(tmp_path / "alone"), [site])
    assert len(reports) == 3 and set(together) == set(store.sites)
    assert weights(tmp_path / "together") == weights(tmp_path / "alone") != {}
    assert not list(tmp_path.rglob("*.training"))


def test_a_packed_group_ends_close_to_it(make_worker, store, tmp_path):
    _, packed = done(make_worker(tmp_path / "packed", pack=True), store.sites)
    _, plain = done(make_worker(tmp_path / "plain", pack=False), store.sites)
    for site in store.sites:
        figures = [records[site]["metrics"]["explained_variance"] for records in (packed, plain)]
        assert figures[0] == pytest.approx(figures[1], abs=1e-3)


def test_what_another_worker_committed_is_not_trained_again(make_worker, store, tmp_path):
    _, first = done(make_worker(tmp_path), store.sites[:1])
    marker = next(tmp_path.rglob("metrics.json"))
    written = marker.stat().st_mtime_ns
    _, all_of_them = done(make_worker(tmp_path), store.sites)
    assert marker.stat().st_mtime_ns == written
    assert all_of_them[store.sites[0]] == first[store.sites[0]]


def test_a_site_that_fails_leaves_the_others_alone(make_worker, store, tmp_path):
    _, records = done(make_worker(tmp_path, lr=1e38), store.sites)
    assert all("NonFiniteLossError" in record["failed"] for record in records.values())
    assert len(list(tmp_path.rglob("*.failure.txt"))) == len(store.sites)


def test_the_seeds_of_a_site_are_those_of_sites_with_one_seed(make_worker, store, tmp_path):
    site = store.sites[1]
    reports, records = done(make_worker(tmp_path / "both", seeds=(0, 1)), [site])
    for seed in (0, 1):
        done(make_worker(tmp_path / f"{seed}", seeds=(seed,)), [site])
    folder = tmp_path / "both" / "atlas" / site.folder
    member = folder.with_suffix(MEMBERS) / f"{site.folder},seed=1"
    for seed, place in enumerate((folder, member)):
        alone = tmp_path / f"{seed}" / "atlas" / site.folder
        name = "sae.safetensors"
        assert (place / name).read_bytes() == (alone / name).read_bytes()
    figures = [
        read_json(tmp_path / f"{seed}/atlas/{site.folder}/metrics.json")["metrics"]
        for seed in (0, 1)
    ]
    both = records[site]["metrics"]
    assert 0 < both["stability"] < 1 and "stability" not in figures[0]
    wanted = sum(one["explained_variance"] for one in figures) / 2
    assert both["explained_variance"] == pytest.approx(wanted)
    assert len(reports) == 3 and records[site]["made"]["seeds_per_trial"] == 2
    assert not list(tmp_path.rglob("*.training"))


def test_a_site_of_several_seeds_goes_on_from_the_checkpoints_of_all(make_worker, store, tmp_path):
    site, seeds = store.sites[0], (3, 4)
    done(make_worker(tmp_path / "quiet", seeds=seeds), [site])
    work = make_worker(tmp_path / "cut", seeds=seeds).do((site,), lambda: None)
    next(work)
    work.close()
    left = [path.parent.name for path in (tmp_path / "cut").rglob("training.json")]
    assert sorted(left) == [f"{site.folder.replace('/', ',')},seed={seed}" for seed in seeds]
    reports, _ = done(make_worker(tmp_path / "cut", seeds=seeds), [site])
    assert len(reports) == 2  # of three evaluations
    files = [
        {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("sae.*")}
        for folder in (tmp_path / "quiet", tmp_path / "cut")
    ]
    assert files[0] == files[1] and len(files[0]) == 2
    assert not list(tmp_path.rglob("*.training"))


def test_one_seed_that_fails_fails_its_site(make_worker, store, tmp_path):
    _, records = done(make_worker(tmp_path, lr=1e38, seeds=(0, 1)), store.sites[:1])
    (record,) = records.values()
    assert "seed 0 at layer 0" in record["failed"] and "NonFiniteLossError" in record["failed"]
    assert not list(tmp_path.rglob("*.members"))


def test_groups_are_for_gpus_and_leave_work_for_every_worker(store):
    sites = store.sites * 30
    assert {len(group) for group in groups_of(sites, Placement(1, 0, 2))} == {1}
    assert max(len(group) for group in groups_of(sites, Placement(1, 0.5, 2))) == 16
    assert len(groups_of(sites[:4], Placement(1, 1, 4))) == 4
    assert [site for group in groups_of(sites, Placement(1, 1, 3)) for site in group] == sites


def test_what_a_worker_is_sent_is_small(make_worker, store, tmp_path):
    import pickle

    work = make_worker(tmp_path).work
    assert len(pickle.dumps(work)) < 4000
