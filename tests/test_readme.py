"""The README is kept true: its tree, its commands, its Python."""

import json
import re
import shlex
from pathlib import Path

import pytest

from raysae.pocket.problems import make_problem

README = Path("README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
]
SWEEPS = [words[3:] for words in COMMANDS if words[:3] == ["python", "-m", "raysae.sweep"]]
OTHERS = [words for words in COMMANDS if words[:3] != ["python", "-m", "raysae.sweep"]]


def test_every_file_of_the_package_is_in_the_tree():
    tree = re.search(r"## The tree\n+```\n(.*?)```", README, re.DOTALL).group(1)
    named = set(re.findall(r"^ *([\w.]+\.(?:py|sh|toml))", tree, re.MULTILINE))
    files = {
        path.name
        for folder in ("raysae", "scripts")
        for path in Path(folder).rglob("*")
        if path.suffix in (".py", ".sh") and path.name != "__init__.py"
    }
    assert files == named - {"pyproject.toml"}


def test_the_commands_are_the_ones_this_file_runs():
    assert OTHERS == [
        ["scripts/demo.sh"],
        ["scripts/test.sh"],
        ["python", "-m", "raysae.report", "runs/quickstart"],
        ["mlflow", "ui", "--backend-store-uri", "sqlite:///$PWD/runs/mlflow.db"],
    ]
    assert all(Path(words[0]).exists() for words in OTHERS[:2])
    assert len(SWEEPS) == 6


@pytest.mark.parametrize("arguments", SWEEPS, ids=" ".join)
def test_sweep_commands(arguments, connected_ray, small_run, tmp_path, capsys):
    """Each as written, its placeholders filled in and its sizes cut down."""
    from raysae.sweep.command import main

    if "--help" in arguments:
        with pytest.raises(SystemExit) as leaving:
            main(arguments)
        assert leaving.value.code == 0
        return
    data = tmp_path / "texts.jsonl"
    questions = [make_problem(2, index).question for index in range(200)]
    data.write_text("\n".join(json.dumps({"question": question}) for question in questions))
    filled = [word.replace("runs/quickstart", str(small_run.folder)) for word in arguments]
    filled = [
        word.replace("=FOLDER", "=pocket").replace("=FILE.jsonl", f"={data}") for word in filled
    ]
    sizes = ["source.sequences=200", "training.epochs=1", "source.layers=[1]"]
    place = [f"runs_dir={tmp_path / 'runs'}", f"store={tmp_path / 'store'}", "records.mlflow=false"]
    if "configs/local_model.yaml" in filled:
        sizes.append("source.context_length=64")
    if "--resume" not in filled:
        filled += [*sizes, *place]
    assert main(filled) == 0
    assert capsys.readouterr().out


def test_report_command(small_run, capsys):
    from raysae.report.command import main

    page = small_run.folder / "report" / "index.html"
    page.unlink()
    assert main([str(small_run.folder)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.is_file()


def test_the_python_runs(small_run, tmp_path, monkeypatch, capsys):
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "stores").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(small_run.folder)
    (tmp_path / "stores" / "quickstart").symlink_to(small_run.run.recipe.store_folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert 0 < float(capsys.readouterr().out) < 1
    assert (tmp_path / "my_sae" / "sae.safetensors").is_file()
    assert names["reconstruction"].shape == names["x"].shape
