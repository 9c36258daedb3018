"""Several hookpoints in one store: the rows of one forward pass are those of extractions of their own."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import raysae
from raysae.activations.manifest import Manifest
from raysae.activations.store_command import main as store_command
from raysae.activations.verify import verify
from raysae.config import load_recipe
from raysae.console.command_line import DONE, run_command
from raysae.errors import UserError
from raysae.extraction.live import LiveExtractor
from raysae.extraction.plan import existing_store, plan_extraction
from raysae.extraction.test_pass import _check_widths
from raysae.sites import Site
from tests.extraction.local_pool import extracted_here, live_recipe

BOTH = "source.hookpoint=[resid_post, mlp_out]"
SMALL = ("source.sequences=48", "source.layers=[0, 2]")


def store_of(patch, folder, hookpoint, live=False):
    named = [f"source.hookpoint={hookpoint}", *SMALL]
    return extracted_here(patch, live_recipe(folder, *named, live=live))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The store of both hookpoints, and those of each, by name."""
    folder = tmp_path_factory.mktemp("hookpoints")
    with pytest.MonkeyPatch.context() as patch:
        both, _ = store_of(patch, folder / "both", "[resid_post, mlp_out]")
        return both, {
            name: store_of(patch, folder / name, name)[0] for name in ("resid_post", "mlp_out")
        }


@pytest.fixture
def copied(stores, tmp_path):
    return shutil.copytree(stores[0].path, tmp_path / "store")


def test_files_are_those_of_single_extractions_to_the_bit(stores):
    both, alone = stores
    assert both.hookpoints == ("resid_post", "mlp_out")
    assert len(both.sites) == 2 * len(alone["mlp_out"].sites)
    for site in both.sites:
        other = alone[site.hookpoint].entry(Site(site.layer, site.position))
        here = both.entry(site)
        assert [shard.sha256 for shard in here.shards] == [shard.sha256 for shard in other.shards]
        assert (here.mean, here.rows) == (other.mean, other.rows)
        assert all(shard.file.startswith(f"{site.folder}/") for shard in here.shards)


def test_the_store_is_sound_and_listed(stores, capsys):
    both, alone = stores
    assert verify(both.path) == []
    written = json.loads((both.path / "manifest.json").read_text())
    assert (written["format_version"], written["hookpoint"]) == (3, "resid_post, mlp_out")
    single = json.loads((alone["mlp_out"].path / "manifest.json").read_text())
    assert single["format_version"] == 2 and "hookpoint" not in single["sites"][0]
    first = "hookpoint=mlp_out/layer=00/position=-1"
    assert run_command(store_command, ["sites", str(both.path)]) == DONE
    assert capsys.readouterr().out.startswith(first)
    assert run_command(store_command, ["show", str(both.path), "--site", first]) == DONE
    assert "resid_post, mlp_out" in capsys.readouterr().out


def test_a_site_without_its_hookpoint_is_refused(stores):
    both, _ = stores
    with pytest.raises(UserError, match=r"no site layer 0.*hookpoints are resid_post, mlp_out"):
        both.train(Site(0, -1))
    assert len(both.train(Site(0, -1, "mlp_out")))


def test_the_same_extraction_finds_its_store_and_another_does_not(stores):
    both, _ = stores
    plan = plan_extraction(live_recipe(both.path, BOTH, *SMALL, live=False))
    assert existing_store(plan).digest == both.digest
    other = plan_extraction(live_recipe(both.path, "source.hookpoint=mlp_out", *SMALL, live=False))
    with pytest.raises(UserError, match=r"hookpoint: there \['resid_post', 'mlp_out'\]"):
        existing_store(other)


def test_live_rows_are_those_of_a_single_live_store(tmp_path, monkeypatch):
    both, plan = store_of(monkeypatch, tmp_path / "both", "[resid_post, mlp_out]", live=True)
    alone, single = store_of(monkeypatch, tmp_path / "one", "mlp_out", live=True)
    site = Site(2, "all", "mlp_out")
    assert verify(both.path) == [] and both.live.total(site) == alone.live.total(Site(2, "all"))
    found, other = LiveExtractor(plan, (site,)), LiveExtractor(single, (Site(2, "all"),))
    for shard in range(both.live.shards):
        there = other.rows(shard)[Site(2, "all")]
        assert torch.equal(found.rows(shard)[site], there) and len(there)


def edited(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(hookpoint="mlp_out"), "expected two or more names"),
        (lambda m: m.update(hookpoint="mlp_out, mlp_out"), "expected two or more names"),
        (lambda m: m.update(hookpoint="mlp_out, resid_pre"), "expected one of mlp_out, resid_pre"),
        (lambda m: m["sites"][0].pop("hookpoint"), "hookpoint None; expected one of"),
        (lambda m: m["sites"][0].update(hookpoint="../x"), "sites.0.hookpoint"),
        (lambda m: m.update(format_version=2), "expected none, as the store has but one"),
        (lambda m: m.update(format_version=4), "reads 2 and 3; upgrade raysae"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copied, change, words):
    edited(copied, change)
    with pytest.raises(UserError, match=words):
        raysae.open_store(copied)


def test_a_list_of_one_is_the_plain_name():
    plain, listed = (
        plan_extraction(load_recipe(None, [f"source.hookpoint={named}"]))
        for named in ("mlp_out", "[mlp_out]")
    )
    assert plain.identity() == listed.identity()
    assert plain.identity()["hookpoint"] == "mlp_out" and plain.sites == listed.sites


def test_what_stores_and_extractions_of_one_hookpoint_are_has_not_changed():
    recipe = load_recipe(
        None,
        ["source.sequences=200", "source.layers=[1, 2]", "source.positions=[-1, numbers]",
         "source.hookpoint=mlp_out"],
    )  # fmt: skip
    identity = json.dumps(plan_extraction(recipe).identity(), sort_keys=True)
    assert hashlib.sha256(identity.encode()).hexdigest().startswith("17dfcebfce3deb75")
    old = "tests/pipeline/run_of_version_0_1_0/stores/small/manifest.json"
    with open(old, encoding="utf-8") as file:
        digest = Manifest.model_validate(json.load(file)).digest()
    assert digest == "9650c9e02834bd679b614818dae218e16ed3cf7aa220086fb462fe49abedf68e"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[]", "source.hookpoint: names nothing"),
        ("[mlp_out, mlp_out]", "source.hookpoint: names one twice"),
        ("[mlp_out, mlp_in]", r"source.hookpoint.1: Input should be 'resid_pre'.*mlp_in"),
        ("mlp_in", r"source.hookpoint: Input should be 'resid_pre'.*mlp_in"),
    ],
)
def test_what_is_no_list_of_hookpoints_is_told(value, words):
    with pytest.raises(UserError, match=words):
        load_recipe(None, [f"source.hookpoint={value}"])


def test_hookpoints_of_other_widths_are_refused():
    plan = plan_extraction(load_recipe(None, [BOTH]))
    rows = {
        Site(0, "all", name): SimpleNamespace(activation_ND=torch.zeros(3, width))
        for name, width in (("resid_post", plan.d_in), ("mlp_out", 7))
    }
    with pytest.raises(UserError, match=r"d_in 128: resid_post 128, mlp_out 7; .* of their own"):
        _check_widths(rows, plan)
