"""The commands: help, exit codes, one clear message for a user's mistake and nothing touched."""

import subprocess
import sys

import pytest

from raysae.console.command_line import REFUSED, run_command
from raysae.pipeline.sweep_command import main
from raysae.pocket import POCKET_FOLDER


def refused(capsys, *arguments):
    """Run the sweep command in this process; its one message."""
    assert run_command(main, list(arguments)) == REFUSED
    out, err = capsys.readouterr()
    assert "Traceback" not in err + out
    assert err.startswith("error: ")
    return err


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_k_above_d_sae(capsys, place):
    message = refused(capsys, "sweep.space={sae.d_sae: {choices: [16]}, sae.k: {choices: [32]}}")
    assert "k is 32, above d_sae 16" in message
    assert not list(place.iterdir())


def test_an_unknown_key(capsys, place):
    assert "did you mean sweep.trials" in refused(capsys, "sweep.trails=3")
    assert not list(place.iterdir())


def test_a_missing_model_folder(capsys, place):
    message = refused(capsys, "source.model=./no/such/model")
    assert "source.model './no/such/model': no such folder" in message
    assert not list(place.iterdir())


def test_a_folder_that_is_no_model(capsys, place):
    (place / "empty").mkdir()
    assert "holds no config.json" in refused(capsys, f"source.model={place / 'empty'}")


def test_a_model_without_weights(capsys, connected_ray, place):
    (place / "half").mkdir()
    for file in POCKET_FOLDER.iterdir():
        if not file.name.endswith(".safetensors"):
            (place / "half" / file.name).write_bytes(file.read_bytes())
    message = refused(capsys, "source.model=./half", "source.sequences=50", "records.mlflow=false")
    assert "holds no model.safetensors" in message and "save_pretrained" in message
    assert not (place / "stores" / "quickstart" / "manifest.json").exists()


def test_a_hub_that_cannot_be_reached(capsys, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read at import
    message = refused(capsys, "source.model=nobody/no-such-model-at-all")
    assert "cannot load it" in message and "local folder" in message
    assert not list(place.iterdir())


def test_an_empty_data_set(capsys, place):
    (place / "empty.jsonl").write_text("")
    assert "the file is empty" in refused(capsys, "source.dataset=empty.jsonl")
    assert [path.name for path in place.iterdir()] == ["empty.jsonl"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.layer=9", "no site layer 9, position -1; its layers are 0, 1, 2, 3"),
        ("sweep.position=4", "its positions are -6, -5, -4, -3, -2, -1"),
        ("atlas.layers=[7]", "no site layer 7"),
        ("source.layers=[4]", "has 4 layers, 0 to 3; found 4"),
        ("source.context_length=4096", "reads at most 128 tokens"),
    ],
)
def test_a_site_that_the_store_will_lack(capsys, place, override, words):
    assert words in refused(capsys, override)
    assert not list(place.iterdir())


def test_a_site_that_the_store_lacks(capsys, small_run, tmp_path):
    recipe = small_run.run.recipe
    message = refused(
        capsys,
        "source=null",
        f"store={recipe.store_folder}",
        f"runs_dir={tmp_path}",
        "sweep.layer=0",
    )
    assert "no site layer 0, position -1; its layers are 1, 2" in message
    assert not list(tmp_path.iterdir())


def test_texts_that_are_all_alike(capsys, connected_ray, place):
    (place / "same.jsonl").write_text('{"question": "Ana has 3 cups."}\n' * 100)
    same = ["source.dataset=same.jsonl", "source.text={question}", "source.positions=[-1]"]
    assert "all 100 rows are the same" in refused(capsys, *same, "records.mlflow=false")


def test_a_run_folder_that_holds_another_run(capsys, small_run):
    before = {f: f.read_bytes() for f in small_run.folder.rglob("*") if f.is_file()}
    store = small_run.run.recipe.store_folder
    message = refused(
        capsys, "name=small", f"runs_dir={small_run.folder.parent}", "source=null", f"store={store}"
    )
    assert "holds another run" in message
    assert {f: f.read_bytes() for f in small_run.folder.rglob("*") if f.is_file()} == before


def test_a_run_folder_with_somebody_elses_files(capsys, place):
    (place / "runs" / "quickstart").mkdir(parents=True)
    (place / "runs" / "quickstart" / "thesis.txt").write_text("mine")
    assert "holds files but no run" in refused(capsys, "source.sequences=40")
    assert (place / "runs" / "quickstart" / "thesis.txt").read_text() == "mine"


def test_a_store_folder_with_somebody_elses_files(capsys, place):
    (place / "data").mkdir()
    (place / "data" / "thesis.txt").write_text("mine")
    assert "holds files but no activation store" in refused(capsys, "store=data")
    assert (place / "data" / "thesis.txt").read_text() == "mine"


def test_a_run_that_another_process_works_on(capsys, small_run):
    from raysae.records.folder import open_run

    with open_run(small_run.run.recipe):
        message = refused(capsys, "--resume", str(small_run.folder))
    assert "is working on this run" in message and "process" in message


def test_more_gpus_than_there_are(capsys, small_run, tmp_path):
    store = small_run.run.recipe.store_folder
    message = refused(
        capsys,
        "source=null",
        f"store={store}",
        f"runs_dir={tmp_path}",
        "resources.gpus_per_trial=1",
    )
    assert "resources.gpus_per_trial is 1, but this Ray has 0 GPUs" in message


def test_a_cluster_that_is_not_there(capsys, place):
    message = refused(capsys, "--address", "127.0.0.1:1")
    assert "resources.address '127.0.0.1:1': nothing answers there" in message
    assert not list(place.iterdir())


def test_resuming_a_finished_run_reads_it(capsys, small_run):
    assert main(["--resume", str(small_run.folder)]) == 0
    assert "report/index.html" in capsys.readouterr().out.replace("\n", "")


def test_resuming_what_is_no_run(capsys, place):
    assert "not a run folder" in refused(capsys, "--resume", str(place))


def test_the_config_is_printed_and_can_be_fed_back(capsys, place):
    assert main(["--print-config", "sweep.trials=3"]) == 0
    (place / "again.yaml").write_text(capsys.readouterr().out)
    assert main(["again.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == (place / "again.yaml").read_text()


def told(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(list(words))
    assert leaving.value.code == 0
    return capsys.readouterr().out


def test_help_fits_a_screen_and_names_the_exit_codes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = told(capsys, "--help")
    assert len(text.splitlines()) <= 50
    assert "--resume" in text and "--help-keys" in text and "130 interrupted" in text


def test_help_keys_tells_of_every_key_or_of_one_part(capsys):
    from raysae.config import describe_fields

    text = told(capsys, "--help-keys")
    assert all(f"  {key}=" in text for key, _, _ in describe_fields())
    assert "Dictionary size" in text and "explained_variance:" in text
    part = told(capsys, "--help-keys", "sae")
    assert "sae.d_sae=" in part and "sweep.trials=" not in part
    assert "explained_variance:" in told(capsys, "--help-keys", "metrics")


def test_help_keys_of_a_part_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--help-keys", "trainin"])
    assert leaving.value.code == 2
    assert "trainin: no such part of a recipe; did you mean training?" in capsys.readouterr().err


def test_a_refusal_as_a_shell_sees_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "raysae.sweep", "sae.k=9999"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: recipe: sae: k is 9999")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_an_option_may_stand_anywhere_among_the_keys(place, capsys):
    words = ["name=other", "sae.d_sae=32", "sae.k=4"]
    words.insert(place, "--print-config")
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "name: other" in told and "d_sae: 32" in told and "k: 4" in told
