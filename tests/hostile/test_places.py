"""Where a run lives follows from the recipe and the command, not from a folder's own files."""

import json
import os
import shutil

import pytest
import yaml

from raysae.config.loading import load_recipe, load_run, load_to_continue
from raysae.errors import UserError
from raysae.pipeline.several_models import run_models
from raysae.records.folder import open_run, read_run
from raysae.records.run_files import RunFiles
from raysae.storage import remote
from raysae.storage.local_copies import copied_uri
from tests.hostile.users import OTHER, as_ordinary_user, user_folder  # noqa: F401


@pytest.fixture(autouse=True)
def victim(tmp_path, monkeypatch):
    """A folder of files that nothing here may change."""
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = tmp_path / "victim"
    (folder / "x" / "trials" / "000").mkdir(parents=True)
    for name in (
        "config.yaml",
        "status.json",
        "x/config.yaml",
        "x/trials/000/sae",
        ".lock",
        "lock",
    ):
        (folder / name).write_text(f"precious {name}")
    before = content(folder)
    yield folder
    assert content(folder) == before


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def run(tmp_path):
    """A run that somebody handed over: it was made elsewhere."""
    with open_run(load_recipe(None, ["name=x", f"runs_dir={tmp_path}/theirs/runs"])) as made:
        made.write_json(made.path / "trials" / "000" / "metrics.json", {})
    shutil.move(tmp_path / "theirs" / "runs", tmp_path / "mine")
    return tmp_path / "mine" / "x"


def changed(run, **keys):
    """Change keys of the run's recipe."""
    file = run / "config.yaml"
    data = yaml.safe_load(file.read_text())
    for key, value in keys.items():
        section, _, name = key.rpartition("__")
        (data[section] if section else data)[name] = value
    file.write_text(yaml.safe_dump(data))


def work_in(run):
    """What a resumed run does to its folder."""
    recipe = load_to_continue(run, [f"store={run.parent}/store"])
    with open_run(recipe) as opened:
        opened.write_text(opened.path / "new.txt", "new")
        opened.fetch()
        opened.remove(opened.path / "trials" / "000")
        opened.send()
        assert opened.path == run and opened.uri is None
    assert (run / "new.txt").is_file() and not (run / "trials" / "000").exists()


@pytest.mark.parametrize("where", ["x", ".", ".."])
def test_a_hidden_file_sends_nothing_anywhere(where, run, victim):
    marker = (run.parent / where if where == "x" else run / where) / ".raysae-home"
    marker.write_text(json.dumps({"uri": f"file://{victim}"}))
    work_in(run)
    assert not remote.is_copy(run) and not remote.pull(run / "config.yaml")


def test_a_marker_above_a_new_run_takes_nothing(tmp_path, victim):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / ".raysae-home").write_text(json.dumps({"uri": f"file://{victim}"}))
    with open_run(load_recipe(None, ["name=x", f"runs_dir={shared}/runs"])) as made:
        made.send()
        assert made.path == shared / "runs" / "x"


def test_a_run_sent_to_another_user_stays_here(user_folder, tmp_path):  # noqa: F811
    """The same as an ordinary user, in a folder that all may write."""
    shared = user_folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / ".raysae-home").write_text(json.dumps({"uri": f"file://{user_folder}/attacker"}))
    (user_folder / "attacker").mkdir()
    (user_folder / "attacker").chmod(0o777)
    code = f"""
from raysae.config import load_recipe
from raysae.records.folder import open_run
with open_run(load_recipe(None, ["name=x", "runs_dir={shared}/runs"])) as made:
    made.send()
"""
    done = as_ordinary_user(code, user_folder)
    assert done.returncode == 0, done.stderr
    assert (shared / "runs/x/config.yaml").is_file() and not any(
        (user_folder / "attacker").iterdir()
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"runs_dir": "file://{victim}"},
        {"runs_dir": "{victim}"},
        {"working_dir": "{victim}", "runs_dir": "."},
        {"working_dir": "{victim}/..", "runs_dir": "victim"},
        {"working_dir": "/", "runs_dir": "../{victim}"},
        {"runs_dir": "s3://bucket-of-another"},
    ],
)
def test_a_recipe_in_the_folder_does_not_move_the_run(keys, run, victim):
    changed(run, **{key: value.format(victim=victim) for key, value in keys.items()})
    work_in(run)


def test_another_way_to_the_run_is_not_taken(run, victim, tmp_path):
    """A link that leads to the run now can lead elsewhere later."""
    (tmp_path / "theirs" / "runs").mkdir(parents=True)
    (tmp_path / "theirs" / "runs" / "x").symlink_to(run)
    changed(run, working_dir=f"{tmp_path}/theirs", runs_dir="runs")
    work_in(run)


@pytest.mark.parametrize("name", ["../victim/x", "..", "/etc"])
def test_a_name_leads_nowhere(name, run):
    changed(run, name=name)
    try:
        recipe = load_to_continue(run, [f"store={run.parent}/store"])
    except UserError:
        return
    assert recipe.run_place == run


def test_a_store_is_not_made_where_a_handed_over_recipe_says(run, victim):
    changed(run, store=f"{victim}/new")
    with pytest.raises(UserError, match="give the place in the command: store=FOLDER"):
        load_to_continue(run)
    assert load_to_continue(run, ["store=own"]).store_folder.name == "own"
    assert read_run(run).path == run, "reading is allowed"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("records__tracking_uri", "http://attacker:5000"),
        ("records__tracking_uri", "sqlite:////victim/x.db"),
        ("records__tracking_uri", "sqlite:///../../x.db"),
        ("resources__address", "attacker:6379"),
    ],
)
def test_servers_of_a_handed_over_recipe_are_not_used(key, value, run, caplog):
    changed(run, **{key: value})
    section, name = key.split("__")
    given = [f"store={run.parent}/store"]
    assert getattr(getattr(load_to_continue(run, given), section), name) is None
    assert f"{section}.{name}={value} of its config.yaml is not used" in caplog.text
    again = load_to_continue(run, [*given, f"{section}.{name}={value}"])
    assert getattr(getattr(again, section), name) == value, "the command is believed"


def test_an_own_run_keeps_its_servers_and_makes_its_store(tmp_path):
    given = ["name=x", "records.tracking_uri=http://own:5000", "store=stores/own"]
    with open_run(load_recipe(None, given)) as made:
        path = made.path
    recipe = load_to_continue(path)
    assert recipe.records.tracking_uri == "http://own:5000"
    assert recipe.store_folder == tmp_path / "work/stores/own" and recipe.run_place == path


@pytest.mark.skipif(os.getuid() != 0, reason="another user's folder needs root")
def test_another_users_run_names_no_server(tmp_path):
    with open_run(load_recipe(None, ["name=x", "resources.address=attacker:6379"])) as made:
        path = made.path
    os.chown(path / "config.yaml", OTHER, OTHER)
    assert load_to_continue(path, ["store=s"]).resources.address is None


LINKS = {
    "trials/000": "x/trials/000", "trials/001": "x", "atlas": "x", "report": "x", "aside": "",
    "sweet_spot": "x", "study.db": "config.yaml", "config.yaml": "config.yaml", ".lock": ".lock",
    "deep/er/link": "nothing-yet",
}  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_a_run_is_refused_before_work(name, run, victim):
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    given = load_recipe(None, ["name=x", f"runs_dir={run.parent}"])
    place.symlink_to(victim / LINKS[name])
    before = sorted(run.rglob("*"))
    for attempt in (lambda: load_run(run), lambda: load_to_continue(run), lambda: read_run(run)):
        with pytest.raises(UserError, match=rf"{name}: is a link to .*victim|is a link"):
            attempt()
    with pytest.raises(UserError, match="is a link to"), open_run(given):
        pass
    with pytest.raises(UserError, match="is a link to"):
        run_models(given.model_copy(update={"models": {"a": {}}}))
    assert sorted(run.rglob("*")) == before


def test_links_within_a_run_and_to_it_are_fine(run, tmp_path):
    (run / "latest").symlink_to("trials/000")
    (tmp_path / "link").symlink_to(run)
    assert read_run(tmp_path / "link").path == tmp_path / "link"


@pytest.mark.parametrize("kind", ["extract", "import"])
@pytest.mark.parametrize(
    "name", ["layer=00", "layer=00/position=all", ".import", ".extract", "sequences"]
)
def test_a_link_out_of_a_store_is_refused(kind, name, tmp_path, victim):
    from raysae.activations.importing.target import taking_in
    from raysae.extraction.plan import ExtractionPlan, existing_store
    from raysae.extraction.run import extract
    from raysae.sites import Site

    store = tmp_path / "store"
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).symlink_to(victim / "x")
    with pytest.raises(UserError, match=rf"{name}: is a link to .*outside the store"):
        if kind == "import":
            with taking_in(store, [Site(0, "all")]):
                pass
        else:
            plan = ExtractionPlan.__new__(ExtractionPlan)
            object.__setattr__(plan, "folder", store)
            for attempt in (lambda: existing_store(plan), lambda: extract(plan, None, None)):
                attempt()


ALIKE = (
    "s3://b/x", "s3://b/x?region=eu", "s3://b/x?endpoint_override=evil", "s3://b//x", "s3://b/./x",
    "s3:///b/x", "gs://b/x", "s3://b/X", "file:///b/x",
)  # fmt: skip


def test_two_uris_have_two_copies():
    assert len({remote.local_copy(uri) for uri in ALIKE}) == len(ALIKE)
    assert remote.local_copy("s3://b/x/") == remote.local_copy("s3://b/x")
    assert remote.local_copy("s3://b/x").parts[-3:] == ("s3", "b", "x")


def test_a_uri_with_dots_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no '\.\.'"):
        remote.bind(f"file://{tmp_path}/a/../b")


def test_a_copy_of_another_uri_is_not_mixed_up(tmp_path, monkeypatch):
    local = remote.bind(f"file://{tmp_path}/a")
    crafted = f"{tmp_path}/a/."  # where its hash would lie is this file's name
    monkeypatch.setattr(remote, "local_copy", lambda uri: local)
    monkeypatch.setattr("raysae.storage.local_copies.local_copy", lambda uri: local)
    with pytest.raises(UserError, match="is the local copy of .*, not of"):
        remote.bind(f"file://{crafted}")


@pytest.mark.parametrize("kind", ["another uri", "link", "no json", "no uri", "others write it"])
def test_a_marker_in_the_cache_is_believed_only_if_it_fits(kind, tmp_path, victim):
    uri = f"file://{tmp_path}/home/x"
    local = remote.bind(uri)
    marker = local / ".raysae-home"
    assert copied_uri(local) == uri
    fake = {"no json": "{", "no uri": "[]"}.get(kind, json.dumps({"uri": f"file://{victim}"}))
    marker.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_text(json.dumps({"uri": uri}))
        marker.symlink_to(tmp_path / "elsewhere")
    else:
        marker.write_text(json.dumps({"uri": uri}) if kind == "others write it" else fake)
        marker.chmod(0o666 if kind == "others write it" else 0o600)
    assert copied_uri(local) is None
    assert copied_uri(tmp_path) is None


def test_a_run_in_the_cache_is_continued_at_its_uri(tmp_path):
    uri = f"file://{tmp_path}/home"
    with open_run(load_recipe(None, ["name=x", f"runs_dir={uri}"])) as made:
        changed(made.path, runs_dir="/elsewhere")
        assert load_to_continue(made.path).run_uri == f"{uri}/x"


@pytest.mark.parametrize("kind", ["loose", "loose copy", "link", "loose above", "of another"])
def test_a_cache_that_others_can_change_is_refused(kind, tmp_path, monkeypatch):
    uri = f"file://{tmp_path}/home/x"
    cache = tmp_path / "above" / "cache"
    cache.mkdir(parents=True)
    cache.chmod(0o700)
    monkeypatch.setenv("RAYSAE_CACHE", str(cache))
    if kind == "loose":
        cache.chmod(0o777)
    elif kind == "loose above":
        cache.parent.chmod(0o777)
    elif kind == "loose copy":
        remote.local_copy(uri).mkdir(parents=True)
        remote.local_copy(uri).parent.chmod(0o777)
    elif kind == "link":
        monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "link"))
        (tmp_path / "link").symlink_to(cache)
    elif os.getuid() == 0:
        os.chown(cache, OTHER, OTHER)
    else:
        pytest.skip("another user's folder needs root")
    with pytest.raises(UserError, match="must belong to this user .* RAYSAE_CACHE"):
        remote.bind(uri)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_an_own_cache_is_closed_whatever_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        local = remote.bind(f"file://{tmp_path}/home/x")
        assert local == remote.bind(f"file://{tmp_path}/home/x")
    finally:
        os.umask(before)
    for folder in (local, *local.parents):
        if folder.is_relative_to(tmp_path / "cache"):
            assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["a.txt", "deep"])
def test_links_at_a_file_uri_are_not_written_through(name, tmp_path, victim):
    home = tmp_path / "home"
    home.mkdir()
    (home / name).symlink_to(victim if name == "deep" else victim / "config.yaml")
    files = RunFiles.at(f"file://{home}")
    with pytest.raises(UserError, match="is a link to"):
        files.write_text(files.path / ("deep/config.yaml" if name == "deep" else name), "new")
    (home / name).unlink()
    files.write_text(files.path / "late.txt", "first")
    (home / "late.txt").unlink()
    (home / "late.txt").symlink_to(victim / "config.yaml")
    files.write_text(files.path / "late.txt", "second, longer")
    assert (home / "late.txt").read_text() == "second, longer"
