"""The phase ``detection`` on a small atlas of the pocket GPT-2, over solutions with verdicts."""

import json
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysae.analysis import engine
from raysae.analysis.detecting import pooling
from raysae.analysis.detecting.examples import label_name
from raysae.analysis.detecting.inputs import RAW, SAE, TOKENS, TRAJECTORIES, trajectories_file
from raysae.analysis.phases.detection import Detection, DetectionSettings
from raysae.analysis.results import read_result
from raysae.analysis.subject import Subject
from raysae.config import ResourcesConfig
from raysae.errors import UserError
from raysae.pocket.problems import stream
from raysae.records.events import Events
from raysae.records.run_files import RunFiles
from raysae.sites import Site
from raysae.transformer.texts import POCKET_SEED
from tests.atlas.library.conftest import made
from tests.extraction.local_pool import map_here

ROWS = 260
QUICK = {"label": "is_correct", "permutations": 2, "bootstraps": 100, "sequences": 240}
PHASE = Detection()


def solutions():
    """Solutions as GSM8K has them; one is right when its last step adds, or at random."""
    chance = random.Random(0)
    problems = stream(POCKET_SEED, held_out=True)
    return [
        {
            "question": problem.question, "answer": problem.solution,
            "is_correct": problem.operators[-1] == "+", "coin": chance.random() < 0.5,
            "seldom": number < 40, "always": True, "many": f"text {number}",
        }
        for number, problem in zip(range(ROWS), problems, strict=False)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    file = folder / "solutions.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in solutions()))
    run = made(
        folder,
        [
            "source.layers=[2]", "source.positions=[-1, operators]", f"source.dataset={file}",
            "source.text={question}\n{answer}", f"source.sequences={ROWS}",
        ],
    )  # fmt: skip
    return Subject(str(run.folder), RunFiles(run.folder), str(run.store.path))


def apart(subject, folder):
    """The subject with a folder of its own for results."""
    return replace(subject, files=RunFiles(folder))


def worked(subject, folder, settings, keys=None):
    """The folders of the items that were done, by item."""
    done = {}
    for item in PHASE.items(subject, settings):
        if keys is None or item.key in keys:
            done[item] = folder / item.key
            done[item].mkdir(parents=True)
            PHASE.work(subject, settings, item, done[item], lambda: None)
    return done


@pytest.fixture(scope="module")
def detected(subject, tmp_path_factory):
    settings, folder = DetectionSettings(**QUICK), tmp_path_factory.mktemp("items")
    PHASE.check(subject, settings)
    folders = worked(subject, folder, settings)
    return folders, PHASE.collect(subject, settings, folders)


def test_the_label_is_read_from_features_and_from_raw_activations(detected):
    _, result = detected
    best = {row["input"]: row for row in result.tables["detection"] if row["position"] != "-1"}
    for kind in (SAE, RAW, TOKENS):
        assert best[kind]["auroc_low"] > 0.6, kind
        assert 220 < best[kind]["n"] <= 240  # those with rows there, in the splits
    said = " ".join(result.section.sentences)
    assert "is_correct (true)" in said and "SAE minus raw" in said and "permuted labels" in said
    assert "nothing beats chance" not in result.brief


def test_a_row_for_each_input_and_site_and_its_plots(detected, tmp_path):
    folders, result = detected
    rows = result.tables["detection"]
    sites = {(row["layer"], row["position"]) for row in rows if row["input"] == SAE}
    assert sites == {(2, "-1"), (2, "operators")}
    assert len(rows) == 2 * 2 * 5 + 1 + 5 + 1  # each with k 1, 2, 5, 10; length; tokens; majority
    assert {item.key for item in folders} == {
        "baselines", "layer=02,position=-1", "layer=02,position=operators",
    }  # fmt: skip
    PHASE.draw(result, DetectionSettings(), "a small atlas", tmp_path)
    assert {file.name for file in tmp_path.glob("*.png")} == {
        "auroc_by_layer.png",
        "reliability.png",
    }
    json.dumps(result.section.record(), allow_nan=False)
    json.dumps(dict(result.figures), allow_nan=False)


@pytest.mark.parametrize("values", [2**24, 48 * 3])
def test_pooling_is_over_each_sequences_rows(subject, monkeypatch, values):
    monkeypatch.setattr(pooling, "VALUES", values)  # some sequences at a time, some rows at a time
    site = Site(2, "operators")
    sae, store = subject.atlas[site], subject.store
    x_ND = store.train(site).float()
    table = pa.concat_tables(
        store.read(one, "train", ["sequence"]) for one in store.shards(site, "train")
    )
    sequence = table["sequence"].to_numpy()
    wanted = np.unique(sequence)[::3]
    found = list(pooling.pooled_blocks(store, site, sae, wanted, ["train"], lambda: None))
    assert sorted(np.concatenate([one.rows for one in found])) == list(range(len(wanted)))
    for block in found:
        for place, raw, mean, most in zip(
            block.rows, block.raw_SD, block.mean_SF, block.max_SF, strict=True
        ):
            mine = x_ND[torch.from_numpy(sequence == wanted[place])]
            z = sae.encode(mine).detach()
            np.testing.assert_allclose(raw, mine.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(mean, z.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(most, z.amax(0), rtol=1e-4, atol=1e-5)


def test_an_item_done_again_is_the_same_to_the_bit(subject, detected, tmp_path):
    folders, result = detected
    settings = DetectionSettings(**QUICK)
    other = apart(subject, tmp_path / "run")  # as on another node: nothing is kept there
    again = worked(other, tmp_path / "items", settings, {"layer=02,position=-1"})
    joined = {item: again.get(item, folder) for item, folder in folders.items()}
    for item, folder in again.items():
        for file in folder.iterdir():
            assert file.read_bytes() == (folders[item] / file.name).read_bytes()
    assert PHASE.collect(other, settings, joined) == result


def test_a_phase_that_was_killed_goes_on_to_the_same_result(
    subject, detected, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, "map_committed", map_here)
    monkeypatch.setattr(engine, "prepare_worker", lambda: "cpu")
    other, settings, done = apart(subject, tmp_path), DetectionSettings(**QUICK), []
    work = Detection._work

    def killed(self, subject, settings, item, folder, alive):
        work(self, subject, settings, item, folder, alive)
        done.append(item.key)
        if len(done) in (1, 3):  # before its commit
            raise KeyboardInterrupt

    monkeypatch.setattr(Detection, "_work", killed)
    for kill in (True, True, False):
        planned = [engine.Planned(PHASE, settings)]
        try:
            engine.run(other, planned, lambda: None, ResourcesConfig(), Events(), "a small atlas")
            assert not kill
        except KeyboardInterrupt:
            assert kill
    assert done == ["baselines", "baselines", "layer=02,position=-1", *done[-2:]]
    record = read_result(other.files, "detection")
    assert record["figures"] == detected[1].figures
    assert record["section"] == json.loads(json.dumps(detected[1].section.record()))


def test_a_coin_is_not_detected(subject, tmp_path):
    settings = DetectionSettings(**{**QUICK, "label": "coin", "positions": [-1]})
    result = PHASE.collect(subject, settings, worked(subject, tmp_path, settings))
    assert result.section.sentences[1].startswith("Nothing beats chance")
    assert result.brief.endswith("nothing beats chance")


@pytest.mark.parametrize(
    "given, said",
    [
        ({"label": "seldom"}, "at least 50 of either class"),
        ({"label": "always"}, "two classes are needed"),
        ({"label": "many"}, "different texts; expected at most 20"),
        ({"label": "is_corect"}, "did you mean is_correct"),
        ({"label": "is_correct", "layers": [7]}, "no site of the atlas"),
    ],
)
def test_what_cannot_be_detected_is_refused_before_anything_runs(subject, tmp_path, given, said):
    settings = DetectionSettings(**{**QUICK, **given})
    with pytest.raises(UserError, match=said):
        PHASE.check(apart(subject, tmp_path), settings)
    assert not any(tmp_path.rglob("items"))


def test_the_model_must_be_at_hand_for_its_answers(subject, tmp_path, monkeypatch):
    assert label_name(subject, None) == "model_correct"
    other = apart(subject, tmp_path)
    gone = subject.source.model_copy(update={"model": str(tmp_path / "gone")})
    monkeypatch.setitem(other.__dict__, "source", gone)
    with pytest.raises(UserError, match="gone"):
        PHASE.check(other, DetectionSettings(sequences=100))


def test_trajectories_are_read_where_tracking_left_them(subject, tmp_path):
    other = apart(subject, tmp_path / "run")
    settings = DetectionSettings(**QUICK)
    examples = PHASE._examples(other, settings)
    numbers = examples.sequence_N[:200]
    right = examples.label_N[:200]
    rows = [
        {"chain": chain, "sequence": number, "activation": [float(chain), float(label)]}
        for chain in (0, 1)
        for number, label in zip(numbers.tolist(), right.tolist(), strict=True)
        if chain or label
    ]
    file = trajectories_file(other)
    file.parent.mkdir(parents=True)
    kinds = {"chain": pa.int32(), "sequence": pa.int64(), "activation": pa.list_(pa.float32())}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(kinds.items()))), file)
    key = next(one.key for one in PHASE.items(other, settings) if TRAJECTORIES in one.key)
    folders = worked(other, tmp_path / "items", settings, {key})
    result = PHASE.collect(other, settings, folders)
    row = next(row for row in result.tables["detection"] if row["input"] == TRAJECTORIES)
    assert row["n"] == 200 and row["auroc"] == 1.0
