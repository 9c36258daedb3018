"""The folder of a single SAE, raysae's or SAELens's, as the subject of an analysis; refusals."""

import json
import shutil

import pytest

from raysae import Site, open_atlas
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.analysis.phases.labels import Labels
from raysae.analysis.subject import Subject
from raysae.analyze import main
from raysae.errors import UserError
from raysae.records.run_files import RunFiles
from raysae.sae import export_sae, save_sae
from tests.analysis.test_loss import result_of, row_of

HERE = Site(1, "all")


@pytest.fixture
def alone(pocket_run, tmp_path):
    """The folder of one SAE of the run, away from it."""
    folder = tmp_path / "one"
    shutil.copytree(pocket_run.folder / "atlas" / HERE.folder, folder)
    return folder


def subject_of(place, pocket_run, tmp_path) -> Subject:
    return Subject(str(place), RunFiles(tmp_path / "out"), str(pocket_run.store.path))


def test_it_is_an_atlas_of_one_site(alone):
    atlas = open_atlas(alone)
    assert atlas.sites == [HERE] and atlas.metrics[0]["explained_variance"] > 0


def test_its_figures_are_those_that_it_has_in_the_atlas(pocket, pocket_run, alone, tmp_path):
    (tmp_path / "items").mkdir()
    found = result_of(subject_of(alone, pocket_run, tmp_path), tmp_path / "items", sequences=10)
    (tmp_path / "whole").mkdir()
    whole = result_of(pocket, tmp_path / "whole", sequences=10)
    assert found.tables["sites"] == [row_of(whole, 1, "all")]
    assert not found.tables["together"]


def test_saelenss_folder_takes_model_and_texts_from_the_store(pocket, pocket_run, tmp_path):
    export_sae(pocket.atlas[1, "all"], tmp_path / "theirs", "saelens")
    cfg = json.loads((tmp_path / "theirs" / "cfg.json").read_text())
    del cfg["metadata"]["raysae"]  # as SAELens itself writes it
    (tmp_path / "theirs" / "cfg.json").write_text(json.dumps(cfg))
    subject = subject_of(tmp_path / "theirs", pocket_run, tmp_path)
    assert subject.sites == [HERE] and "store_digest" not in cfg["metadata"]
    (tmp_path / "items").mkdir()
    found = result_of(subject, tmp_path / "items", sequences=10)
    row = row_of(found, 1, "all")
    (tmp_path / "whole").mkdir()
    whole = row_of(result_of(pocket, tmp_path / "whole", sequences=10), 1, "all")
    assert row["ce_recovered"] == pytest.approx(whole["ce_recovered"], abs=1e-5)
    Labels().check(subject, Labels.Settings())


def test_an_sae_of_another_hookpoint_or_width_is_refused(pocket, pocket_run, tmp_path):
    sae = pocket.atlas[1, "all"]
    save_sae(sae, tmp_path / "mlp", {"layer": 1, "hookpoint": "mlp_out", "position": "all"})
    with pytest.raises(UserError, match=r"its SAEs read mlp_out, .* source.hookpoint=mlp_out"):
        subject_of(tmp_path / "mlp", pocket_run, tmp_path).need_rows()
    write_synthetic_store(tmp_path / "store", SuperpositionWorld(d_in=8, atoms=12, p=0.1), 50)
    save_sae(sae, tmp_path / "wide", {"layer": 0, "position": "all"})
    subject = Subject(str(tmp_path / "wide"), RunFiles(tmp_path), str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"read rows of \d+ values, those of .* have 8"):
        subject.need_rows()


def test_an_sae_of_unknown_place_is_refused(pocket, tmp_path):
    save_sae(pocket.atlas[1, "all"], tmp_path / "nowhere", {})
    with pytest.raises(UserError, match="metadata.layer is None, .* nothing says which rows"):
        open_atlas(tmp_path / "nowhere")


def test_a_site_that_the_store_lacks_is_named(pocket, pocket_run, tmp_path):
    save_sae(pocket.atlas[1, "all"], tmp_path / "seven", {"layer": 7, "position": "all"})
    with pytest.raises(UserError, match="no rows of 1 of 1 sites of the atlas, such as layer 7"):
        subject_of(tmp_path / "seven", pocket_run, tmp_path).need_rows()


def test_nothing_is_written_into_a_run(pocket_run):
    folder = str(pocket_run.folder / "atlas" / HERE.folder)
    with pytest.raises(UserError, match="lies in the run .* give --out DIR"):
        main([folder, "loss"])


def test_another_store_is_refused_by_the_command(alone, tmp_path):
    write_synthetic_store(tmp_path / "store", SuperpositionWorld(d_in=8, atoms=12, p=0.1), 50)
    with pytest.raises(UserError, match="were trained on another store"):
        main([str(alone), "labels", f"store={tmp_path / 'store'}"])
    with pytest.raises(UserError, match="the store of its activations is not known; name it with"):
        main([str(alone), "labels"])
