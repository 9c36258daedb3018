"""Paths of a run: the same wherever one stands, and wherever the run was moved."""

import shutil

import pytest

import raysae
from raysae.config import load_recipe
from raysae.config.loading import load_run
from raysae.config.places import source_in, tracking_in
from raysae.errors import UserError
from raysae.records.folder import open_run, read_run
from raysae.records.mlflow_listener import tracking_uri

OVERRIDES = [
    "name=r", "store=stores/mine", "source.dataset=texts.jsonl", "source.model=models/m",
    "sweep.warm_start=[runs/earlier]", "records.tracking_uri=sqlite:///mine.db",
]  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a run that was made there by relative paths; the test stands in another one."""
    made, elsewhere = tmp_path / "made", tmp_path / "elsewhere"
    for folder in ("stores/mine", "models/m", "runs/earlier"):
        (made / folder).mkdir(parents=True)
    (made / "texts.jsonl").write_text("{}")
    elsewhere.mkdir()
    monkeypatch.chdir(made)
    with open_run(load_recipe(None, OVERRIDES)):
        pass
    monkeypatch.chdir(elsewhere)
    return made


def places(recipe):
    source = source_in(recipe.base, recipe.source.model_dump())
    return {
        "run": recipe.run_folder, "store": recipe.store_folder,
        "known": recipe.folder(recipe.sweep.warm_start[0]), "records": recipe.tracking_uri,
        "model": source["model"], "dataset": source["dataset"],
    }  # fmt: skip


def expected(made, run=None):
    return {
        "run": run or made / "runs/r", "store": made / "stores/mine", "known": made / "runs/earlier",
        "records": f"sqlite:///{made}/mine.db", "model": str(made / "models/m"),
        "dataset": str(made / "texts.jsonl"),
    }  # fmt: skip


def test_a_run_is_where_it_was_made(project):
    for place in (project / "runs/r", "../made/runs/r", "../made/runs/r/"):
        assert places(read_run(place).recipe) == expected(project)
    assert places(load_recipe("../made/runs/r/config.yaml")) == expected(project)
    shutil.copy(project / "runs/r/config.yaml", "copy.yaml")
    assert places(load_recipe("copy.yaml")) == expected(project), "its copy repeats the run, too"
    assert tracking_uri(read_run("../made/runs/r")) == f"sqlite:///{project}/mine.db"


def test_what_makes_the_store_stays_as_it_was_written(project):
    source = read_run(project / "runs/r").recipe.source
    assert (source.model, source.dataset) == ("models/m", "texts.jsonl")


def test_a_run_is_where_it_was_made_through_links_and_from_inside(project, monkeypatch):
    (project.parent / "elsewhere/linked").symlink_to(project / "runs/r")
    assert places(read_run("linked").recipe)["store"] == project / "stores/mine"
    assert read_run("linked").recipe.run_folder.samefile(project / "runs/r")
    monkeypatch.chdir(project / "runs/r")
    for place in (".", "../r", "../../runs/r"):
        assert places(read_run(place).recipe) == expected(project)


def test_a_moved_project_is_found_where_it_is(project):
    moved = project.rename(project.parent / "moved")
    assert places(read_run(moved / "runs/r").recipe) == expected(moved)


def test_a_copied_run_reads_the_store_beside_it_or_else_where_it_was(project, tmp_path):
    shutil.copytree(project, tmp_path / "copied")
    assert places(read_run(tmp_path / "copied/runs/r").recipe) == expected(tmp_path / "copied")
    alone = tmp_path / "alone/runs/again"
    shutil.copytree(project / "runs/r", alone)
    assert places(read_run(alone).recipe) == expected(project, alone)


def test_a_renamed_run_keeps_the_store_of_its_old_name(tmp_path, monkeypatch):
    (tmp_path / "stores/r").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with open_run(load_recipe(None, ["name=r"])):
        pass
    renamed = (tmp_path / "runs/r").rename(tmp_path / "runs/s")
    recipe = read_run(renamed).recipe
    assert (recipe.run_folder, recipe.store_folder) == (renamed, tmp_path / "stores/r")


def test_absolute_places_are_found_after_a_move(tmp_path):
    made = tmp_path / "made"
    (made / "stores/r").mkdir(parents=True)
    given = [f"runs_dir={made / 'runs'}", f"store={made / 'stores/r'}", "name=r"]
    with open_run(load_recipe(None, given)):
        pass
    moved = made.rename(tmp_path / "moved")
    recipe = read_run(moved / "runs/r").recipe
    assert (recipe.run_folder, recipe.store_folder) == (moved / "runs/r", moved / "stores/r")


def test_a_run_that_recorded_no_place_is_found_by_its_own(project):
    config = project / "runs/r/config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("working_dir")))
    assert places(read_run("../made/runs/r").recipe) == expected(project)


def test_paths_in_overrides_start_from_where_one_stands(project):
    here = project.parent / "elsewhere"
    (here / "other.jsonl").write_text("{}")
    given = [
        "store=mine",
        "source.dataset=other.jsonl",
        "sweep.warm_start=[x]",
        "source.model=gpt2",
    ]
    recipe = load_run(project / "runs/r", given)
    assert recipe.store_folder == here / "mine" and recipe.source.dataset == f"{here}/other.jsonl"
    assert recipe.sweep.warm_start == (str(here / "x"),) and recipe.source.model == "gpt2"


def test_what_only_the_working_folder_has_is_not_what_a_run_means(project):
    (project / "texts.jsonl").unlink()
    (project.parent / "elsewhere/texts.jsonl").write_text("{}")
    source = read_run(project / "runs/r").recipe.source.model_dump()
    assert source_in(project, source)["dataset"] == str(project / "texts.jsonl")


def test_a_run_is_not_renamed_by_continuing_it(project):
    assert load_run(project / "runs/r", ["name=r", f"runs_dir={project}/runs"]).name == "r"
    for override in ("name=other", "runs_dir=elsewhere"):
        with pytest.raises(UserError, match="is continued where it is; .* instead of --resume"):
            load_run(project / "runs/r", [override])


def test_runs_at_a_uri(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    uri = f"file://{tmp_path}/remote"
    with open_run(load_recipe(None, ["name=r", f"runs_dir={uri}", "store=stores/mine"])) as run:
        run.send()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "another"))
    for place in (f"{uri}/r", f"{uri}/r/"):
        run = read_run(place)
        assert run.recipe.run_uri == f"{uri}/r"
        assert run.recipe.store_folder == tmp_path / "made/stores/mine"


def test_the_models_of_one_recipe_share_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = raysae.Recipe(models={"a": {"seed": 1}}, working_dir=str(tmp_path / "made"))
    own = recipe.of_model("a")
    assert own.store_folder == tmp_path / "made/stores/quickstart/a"
    assert own.run_folder == tmp_path / "made/runs/quickstart/a"


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("sqlite:///x.db", "sqlite:////base/x.db"), ("sqlite:////x.db", "sqlite:////x.db"),
        ("./mlruns", "/base/mlruns"), ("mlruns", "/base/mlruns"), ("file:m", "file:/base/m"),
        ("http://host:5000", "http://host:5000"), ("databricks", "databricks"),
        ("postgresql://u:p@h/x", "postgresql://u:p@h/x"),
    ],
)  # fmt: skip
def test_where_mlflow_records(uri, meant, tmp_path):
    assert tracking_in(tmp_path, uri) == meant.replace("/base", str(tmp_path))
