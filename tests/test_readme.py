"""The commands and the Python of the pages run: README.md and those that it leads to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raysae.config import load_recipe
from raysae.pocket.problems import make_problem
from tests.conftest import SMALL
from tests.pages import PAGES, README, ROOT, blocks, others, verb_arguments

SWEEPS, ATLASES, EXPORTS = map(verb_arguments, ("sweep", "atlas", "export"))
EXTRACTS, STORES, ANALYSES = map(verb_arguments, ("extract", "store", "analyze"))
JOINS = ["--address", "auto"]
"""A sweep that joins a Ray, which no test here starts; ``test_pages.py`` reads its recipe."""


def test_the_commands_are_the_ones_this_file_runs():
    (job,) = (words for words in others() if words[:3] == ["ray", "job", "submit"])
    places = load_recipe(None, job[9:])
    assert (places.run_uri, places.store_uri) == (
        "s3://BUCKET/runs/quickstart",
        "s3://BUCKET/store",
    )
    assert others()[:2] == [["scripts/demo.sh"], ["scripts/test.sh"]]
    numbers = (len(SWEEPS), len(EXTRACTS), len(STORES), len(EXPORTS))
    assert numbers == (16, 1, 5, 3)
    assert JOINS in SWEEPS
    assert verb_arguments("report") == [["runs/quickstart"]]


def problems(folder):
    """A data set in GSM8K's form."""
    rows = [make_problem(2, index) for index in range(200)]
    lines = [json.dumps({"question": p.question, "answer": p.solution}) for p in rows]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return folder / "texts.jsonl"


def test_store_commands(connected_ray, tmp_path, monkeypatch, capsys):
    """The tour of the store in its order, placeholders filled in, in an empty folder."""
    import numpy as np
    import torch

    from raysae.activations.store_command import main as store
    from raysae.extraction.extract_command import main as extract

    (arguments,) = EXTRACTS
    config = Path(arguments[0]).absolute()
    data = problems(tmp_path)
    rows = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    torch.save(torch.from_numpy(rows), tmp_path / "FILE.pt")
    monkeypatch.chdir(tmp_path)
    filled = [
        word.replace("=FOLDER", "=pocket").replace("FILE.jsonl", str(data)) for word in arguments
    ]
    assert extract([str(config), *filled[1:], "source.context_length=64"]) == 0
    for words in STORES:
        assert store([*words, *(["--rows", "500"] if words[0] == "synthetic" else [])]) == 0
        assert capsys.readouterr().out
    from raysae.pipeline.sweep_command import main as sweep

    mine, world = [words for words in SWEEPS if "source=null" in words]
    quick = ["sweep.trials=2", "training.epochs=1", "records.mlflow=false", "atlas.enabled=false"]
    assert sweep([*world, *quick]) == 0
    assert sweep([*mine, "--dry-run"]) == 0


def _param(words):
    """A command as a parameter; those that train something else again take half a minute."""
    slow = bool({"name=gated", "name=wider", "sweep.trials=12"} & set(words))
    return pytest.param(words, id=" ".join(words), marks=[pytest.mark.long] if slow else [])


@pytest.mark.parametrize(
    "arguments", [_param(w) for w in SWEEPS if "source=null" not in w and w != JOINS]
)
def test_sweep_commands(arguments, connected_ray, small_run, tmp_path, capsys):
    """Each as written, its placeholders filled in and its sizes cut down."""
    from raysae.pipeline.sweep_command import main

    if {"--help", "--help-keys"} & set(arguments):
        with pytest.raises(SystemExit) as leaving:
            main(arguments)
        assert leaving.value.code == 0
        return
    data, run = problems(tmp_path), small_run.folder
    if {"--select", "--resume"} & set(arguments):  # others look at the small run, too
        run = tmp_path / "small"
        shutil.copytree(small_run.folder, run)
    filled = [word.replace("runs/quickstart", str(run)) for word in arguments]
    filled = [
        word.replace("=FOLDER", "=pocket").replace("=FILE.jsonl", f"={data}") for word in filled
    ]
    sizes = ["training.epochs=1", "sweep.trials=4", "records.mlflow=false"]
    sizes.append(f"runs_dir={tmp_path / 'runs'}")
    if (
        "atlas.carry=layers" in filled
    ):  # a run a layer, which tests/pipeline has; here it is planned
        filled = [word.replace("[0,3]", "[1]") for word in filled] + ["--dry-run"]
    elif arguments:
        sizes.append("atlas.enabled=false")
    if "configs/local_model.yaml" in filled:
        sizes += [f"store={tmp_path / 'store'}", "source.layers=[1]", "source.context_length=64"]
    else:  # the activations are there already
        source = small_run.run.recipe.source.model_dump(include=SMALL["source"].keys())
        sizes.append(f"store={small_run.run.recipe.store_folder}")
        sizes += [f"source.{key}={json.dumps(value)}" for key, value in source.items()]
    if not {"--resume", "--select"} & set(filled):
        filled += sizes
    assert main(filled) == 0
    assert capsys.readouterr().out


@pytest.mark.long
def test_atlas_commands(connected_ray, small_run, tmp_path, capsys):
    from raysae.pipeline.atlas_command import main

    given, chosen = sorted(ATLASES, key=lambda words: "--run" in words)
    place = [f"store={small_run.run.recipe.store_folder}", "source=null", "records.mlflow=false"]
    sizes = ["training.epochs=1", f"runs_dir={tmp_path / 'runs'}", "atlas.layers=[1]"]
    assert main([*given, *place, *sizes]) == 0
    shutil.copytree(small_run.folder, tmp_path / "small")
    filled = [word.replace("runs/quickstart", str(tmp_path / "small")) for word in chosen]
    assert main([word.replace("[0,1]", "[1]") for word in filled]) == 0
    assert capsys.readouterr().out.count("Atlas:") == 2


def test_export_commands(small_run, tmp_path, monkeypatch, capsys):
    from raysae.export import main

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(small_run.folder)
    monkeypatch.chdir(tmp_path)
    for arguments in EXPORTS:
        assert main(arguments) == 0
        told = "open_atlas" if "raysae" in arguments else "SAE.load_from_disk"
        assert told in capsys.readouterr().out


def test_report_command(small_run, capsys):
    from raysae.report.report_command import main

    page = small_run.folder / "report" / "index.html"
    page.unlink()
    assert main([str(small_run.folder)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.is_file()


def test_analyze_commands(small_run, tmp_path, capsys):
    """Those on the quickstart, whose phases are there already; ``tests/analysis`` runs the others."""
    from raysae.pipeline.analyze_command import main

    shutil.copytree(small_run.folder, tmp_path / "small")
    (arguments,) = [words for words in ANALYSES if "runs/quickstart" in words]
    assert (
        main([word.replace("runs/quickstart", str(tmp_path / "small")) for word in arguments]) == 0
    )
    assert capsys.readouterr().out


def python_of(name):
    """The one block of Python of a page."""
    (code,) = blocks(ROOT / name, "python")
    return code


def test_no_other_page_has_python():
    pages = [page for page in PAGES if blocks(page, "python")]
    assert pages == [README, ROOT / "raysae/docs/atlas.md", ROOT / "raysae/docs/python.md"]
    assert python_of("raysae/docs/python.md").startswith(python_of("README.md"))


def test_the_python_runs(small_run, tmp_path, monkeypatch, capsys):
    code = python_of("raysae/docs/python.md")
    (tmp_path / "runs").mkdir()
    (tmp_path / "stores").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(small_run.folder)
    (tmp_path / "stores" / "quickstart").symlink_to(small_run.run.recipe.store_folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    one, many = map(json.loads, capsys.readouterr().out.splitlines())
    assert 0 < one < 1 and len(many) == 3 and all(0 < ev < 1 for ev in many)
    assert (tmp_path / "my_sae" / "sae.safetensors").is_file()
    assert names["reconstruction"].shape == names["x"].shape


def test_the_python_of_the_atlas_runs(small_run, tmp_path, monkeypatch, capsys):
    code = python_of("raysae/docs/atlas.md")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(small_run.folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(capsys.readouterr().out.splitlines()) == len(names["atlas"]) + 2 == 6
    assert names["found"].dense().shape == (2, names["sae"].config.d_sae)
