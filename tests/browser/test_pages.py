"""The pages of the feature browser: what their files hold, and what they do without a phase."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysae import Site, UserError
from raysae.browser.browse_command import main
from raysae.browser.pages import Heading, as_json, pages_beside_report, write_pages
from raysae.browser.saedashboard import NOT_KNOWN, export_features
from raysae.browser.tables import Results
from raysae.console.command_line import run_command
from raysae.storage.files import remove_folder
from tests.pages import verb_arguments

LAST, ALL = Site(1, -1), Site(1, "all")
TO_JSON = re.compile(r"raysae\.take\.(\w+)\((.*)\);\n", re.DOTALL)


def data(file: Path) -> dict:
    """What a data file gives the page."""
    text = file.read_bytes().decode("ascii")
    assert "<" not in text and ">" not in text and "&" not in text
    return json.loads(TO_JSON.fullmatch(text)[2])


@pytest.fixture(scope="module")
def pages(labelled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_pages(Results(labelled.folder), Heading("small", "pocket"), folder)
    return folder


def rows(labelled, phase: str, table: str) -> list[dict]:
    file = labelled.folder / "analysis" / phase / "result" / f"{table}.parquet"
    return pq.read_table(file, partitioning=None).to_pylist()


def test_every_site_has_its_features(labelled, pages):
    run = data(pages / "sites.js")
    assert [site["site"] for site in run["sites"]] == [
        f"layer=0{layer},position={position}" for layer in (1, 2) for position in ("-1", "all")
    ]
    assert run["missing"] == {"stability": "one seed a site"}
    assert run["ablation"]["mode"] == "zero" and "romoted tokens" in run["lens"]
    for site in run["sites"]:
        table = data(pages / site["site"] / "table.js")
        mine = [
            row
            for row in rows(labelled, "labels", "features")
            if row["site"].replace("/", ",") == site["site"]
        ]
        assert table["columns"]["live"] == [int(row["live"]) for row in mine]
        assert table["columns"]["density"] == pytest.approx(
            [row["density"] for row in mine], rel=1e-3
        )
        assert table["features"] == len(mine) == 48 and table["live"] == sum(
            row["live"] for row in mine
        )


def test_the_details_of_a_feature_are_those_of_the_analysis(labelled, pages):
    chunk = data(pages / "layer=01,position=all" / "features-0000.js")
    found = {one["feature"]: one for one in chunk["features"]}
    contexts = [row for row in rows(labelled, "labels", "contexts") if row["site"] == ALL.folder]
    for row in contexts:
        mine = found[row["feature"]]["contexts"]
        shown = [
            one
            for one in mine
            if one[5] == row["sequence"] and one[0] == (-1 if row["band"] is None else row["band"])
        ]
        pieces = ["".join(chunk["words"][word] for word in one[8]) for one in shown]
        assert row["text"] in pieces
        one = shown[pieces.index(row["text"])]
        assert dict(one[9])[one[7]] == pytest.approx(one[3])
    effects = [
        row
        for row in rows(labelled, "ablation", "features")
        if (row["layer"], row["position"]) == (1, "all") and row["kind"] == "chosen"
    ]
    for row in effects:
        told = {name: values for name, *values in found[row["feature"]]["effect"]["effects"]}
        assert told["ce"] == pytest.approx([row["ce"], row["ce_low"], row["ce_high"]], rel=1e-3)
    assert len(effects) == 3


def test_a_track_is_a_chain_of_the_tracking(labelled, pages):
    for site, layer in (("layer=01,position=all", 1), ("layer=02,position=all", 2)):
        found = data(pages / site / "features-0000.js")["features"]
        chains = [row for row in rows(labelled, "tracking", "chains") if row["position"] == "all"]
        for row in chains:
            chain = list(zip(row["layers"], row["features"], strict=True))
            for here, feature in chain:
                if here == layer:
                    track = found[feature]["track"]
                    assert [tuple(step) for step in track["chain"]] == chain
                    assert len(track["scores"]) == len(chain) - 1
                    assert (track["ends"] is None) == (chain[-1][0] == 2)
    matches = [row for row in rows(labelled, "tracking", "matches") if row["kept"]]
    assert matches, "nothing was tracked, so nothing is compared here"


def test_what_the_next_layer_has_is_listed(whole, tmp_path):
    write_pages(Results(whole), Heading("whole"), tmp_path)
    columns = data(tmp_path / "layer=01,position=all" / "table.js")["columns"]
    known = [value for value in columns["next_layer"] if value is not None]
    assert known and all(-1 <= value <= 1 for value in known)
    assert data(tmp_path / "sites.js")["missing"] == {}


def test_texts_stay_texts():
    hostile = "</script><script>alert(1)</script>\u2028\u202e&"
    text = as_json({"text": hostile})
    assert json.loads(text) == {"text": hostile} and text.isascii() and "<" not in text


def test_the_command_writes_them_and_refuses_a_run_without_labels(labelled, tmp_path, capsys):
    folder = labelled.copy(tmp_path / "run")
    assert run_command(main, [str(folder)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == str(folder / "report" / "features" / "index.html") and Path(printed).is_file()
    remove_folder(folder / "analysis")
    assert run_command(main, [str(folder)]) == 2
    said = capsys.readouterr().err
    assert "python -m raysae.analyze" in said and "labels" in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", verb_arguments("browse"), ids=" ".join)
def test_the_commands_of_the_pages_run(arguments, labelled, tmp_path, capsys):
    folder = labelled.copy(tmp_path / "run")
    places = {"runs/quickstart": str(folder), "FOLDER": str(tmp_path / "out")}
    assert run_command(main, [places.get(word, word) for word in arguments]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()


def test_a_damaged_table_costs_only_the_pages(labelled, tmp_path):
    folder, said = labelled.copy(tmp_path / "run"), []
    (folder / "analysis" / "labels" / "result" / "contexts.parquet").write_bytes(b"PAR1 no table")
    heading, report = Heading("small"), tmp_path / "report"
    assert not pages_beside_report(folder, report, heading, said.append)
    assert "contexts.parquet" in said[0] and not (report / "features").exists()
    remove_folder(folder / "analysis")
    assert not pages_beside_report(folder, report, heading, said.append) and len(said) == 1


def test_a_run_s_name_is_text(labelled, tmp_path):
    heading = Heading('<script>alert(1)</script>"', "</script>")
    assert pages_beside_report(labelled.folder, tmp_path, heading, print)
    for page in (tmp_path / "features").rglob("*.html"):
        assert "<script>alert" not in page.read_text()


def test_the_export_for_saedashboard(labelled, tmp_path):
    folder = export_features(labelled.folder, tmp_path / "batches")
    batch = json.loads((folder / "layer=01,position=all" / "batch-0.json").read_text())
    assert batch["layer"] == 1 and len(batch["features"]) == 20
    one = batch["features"][0]
    assert one["activations"] and all(one[name] == [] for name in NOT_KNOWN)
    assert len(one["freq_hist_data_bar_values"]) == len(one["freq_hist_data_bar_heights"]) > 0
    for context in one["activations"]:
        assert len(context["tokens"]) == len(context["values"])
        assert max(context["values"]) > 0
        assert context["values"][context["qualifying_token_index"]] > 0
    with pytest.raises(UserError, match="there already"):
        export_features(labelled.folder, folder)
