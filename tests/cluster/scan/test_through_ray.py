"""Scans through Ray: what a worker refuses reaches who reads, however Ray wraps it."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import raysae
from raysae.activations.splits import split_of_key
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.placement import Placement
from raysae.cluster.scan.opening import one_service, serving
from raysae.cluster.scan.rows import ScannedSite
from raysae.cluster.scan.service import ScanSettings
from raysae.errors import UserError, user_error_in
from raysae.extraction.live_rows import LiveRows
from raysae.extraction.live_scan import LiveData
from raysae.pocket.problems import make_problem
from raysae.sites import Site
from tests.extraction.local_pool import extracted_here, live_recipe

SITE = Site(0, "all")
HERE = Placement(cpus=1, gpus=0, workers=1)


@pytest.fixture
def service(connected_ray):
    with serving(memory=2**24, workers=1, each=1, patience=None) as service:
        yield service


def settings_of(service):
    """The settings of a service, which may be about to start anew."""
    until = time.monotonic() + 60
    while True:
        try:
            return ray.get(service.__ray_call__.remote(lambda self: self.settings))
        except ray.exceptions.ActorUnavailableError:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_the_service_of_one_stage_goes_on_to_the_next_with_its_settings(connected_ray):
    with one_service() as end:
        with serving(2**20, 2, 1, None) as first:
            pass
        with serving(2**21, 3, 2, 60.0, live_readers=5) as service:
            assert service._actor_id == first._actor_id
            settings = settings_of(service)
            assert settings == ScanSettings(2**21, settings.cpus, 6, 5, 2, 60.0)
            ray.kill(service, no_restart=False)
            assert settings_of(service) == settings, "not those that it was made with"
        end()
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(service.counts.remote(), timeout=60)
        with serving(2**20, 2, 1, None) as other:
            assert other._actor_id != service._actor_id
            assert ray.get(other.counts.remote())["scans"] == 0


def epoch(rows, seed=0):
    return torch.cat([batch.clone() for batch in rows.epoch(seed, 0, 64, 100)])


@pytest.mark.parametrize(
    ("how", "where"),
    [("changed", ""), ("gone", ""), pytest.param("gone", "file://", marks=pytest.mark.long)],
)
def test_a_shard_that_changes_between_two_scans_is_named(service, tmp_path, how, where):
    """The stamps are those of the first look, whichever worker reads later."""
    write_synthetic_store(
        tmp_path / "s", SuperpositionWorld(d_in=8, atoms=16), 1000, shard_rows=300
    )
    place = f"{where}{tmp_path / 's'}"
    rows = ScannedSite(place, SITE, service, piece_bytes=2_000).rows("train")
    first = epoch(rows)
    shard = tmp_path / "s" / "layer=00" / "position=all" / "part-00001.parquet"
    assert shard.exists()
    aside = shutil.move(shard, tmp_path / "aside.parquet")
    if how == "changed":
        shutil.copyfile(aside, shard)
        os.utime(shard, (1, 1))
    if where:
        time.sleep(11)  # within ten seconds of a look at a URI there is no other
    with pytest.raises(UserError, match=r"part-00001.parquet: (changed while|missing|.*not there)"):
        epoch(rows, seed=1)  # another scan, whether the first has ended yet or not
    shutil.move(aside, shard)
    assert torch.equal(epoch(rows), first), "with the old file back it reads on"


def nan_for(token, folder):
    """The pocket GPT-2 with NaN as the embedding of one token."""
    pocket = Path(raysae.__file__).parent / "pocket" / "model"
    model, tokenizer = (
        kind.from_pretrained(pocket) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    with torch.no_grad():
        number = tokenizer(token, add_special_tokens=False)["input_ids"][-1]
        model.transformer.wte.weight[number] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts_with(word, file):
    """Ninety texts without ``word``, and as the last one a training text that has it."""
    texts = [make_problem(2, index).question for index in range(900)]
    plain = list(dict.fromkeys(text for text in texts if word not in text))
    last = next(text for text in texts if word in text and not split_of_key(text, 0.2, 0.2))
    lines = [json.dumps({"text": text}) for text in [*plain[:90], last]]
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("non_finite", ["refuse", pytest.param("drop", marks=pytest.mark.long)])
def test_a_model_that_gives_nan_in_mid_training(service, tmp_path, monkeypatch, non_finite):
    """The store was made without a hitch, as no row on disk has it."""
    recipe = live_recipe(
        tmp_path / "store", f"source.model={nan_for('7', tmp_path / 'model')}",
        f"source.dataset={texts_with('7', tmp_path / 'texts.jsonl')}", "source.text=text",
        "source.sequences=null", "source.layers=[0]", "source.positions=[all]", "source.test=0.0",
        "seed=3",  # of which the texts' last one is not in the head
        f"source.non_finite={non_finite}",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        store, plan = extracted_here(patch, recipe)
    data = LiveData(plan, (SITE,), False, HERE, 1)
    rows = LiveRows(store, SITE, service, data, piece_bytes=1_000)
    if non_finite == "drop":
        assert epoch(rows).isfinite().all() and len(epoch(rows)) == len(rows)
        return
    with pytest.raises(
        UserError, match=r"shard \d+: layer 0, .* rows hold NaN .*sequence \d+, token"
    ):
        epoch(rows)


@pytest.mark.long
def test_a_model_that_cannot_be_loaded_for_live_rows(service, tmp_path, monkeypatch):
    """Its worker dies before it has computed anything."""
    model = nan_for("7", tmp_path / "model")
    recipe = live_recipe(
        tmp_path / "store", f"source.model={model}", "source.layers=[0]", "source.positions=[-1]",
        "source.non_finite=drop", "source.sequences=60",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        store, plan = extracted_here(patch, recipe)
    nan_for("5", model)
    rows = LiveRows(store, Site(0, -1), service, LiveData(plan, (Site(0, -1),), False, HERE, 1), 1)
    with pytest.raises(UserError, match="its weights are not those that made the held-out rows"):
        epoch(rows)


def test_a_user_error_is_found_however_it_is_wrapped(connected_ray):
    @ray.remote
    def refuse():
        raise UserError("file: what to do")

    @ray.remote
    def nested():
        ray.get(refuse.remote())

    for task in (refuse, nested):
        with pytest.raises(ray.exceptions.RayTaskError) as raised:
            ray.get(task.remote())
        assert str(user_error_in(raised.value)) == "file: what to do"
    for wrapped in (caused(), during()):
        assert str(user_error_in(wrapped)) == "there"
    assert user_error_in(ValueError("other")) is None and user_error_in(None) is None


def caused():
    error = RuntimeError("outer")
    error.__cause__ = UserError("there")
    return error


def during():
    error, inner = RuntimeError("outer"), RuntimeError("inner")
    inner.__context__, error.cause = UserError("there"), inner
    inner.__cause__ = error  # a circle
    return error
