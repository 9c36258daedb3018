"""Tracking and stability through the command, on the pool: results, and nothing done twice."""

import shutil

import pytest

from raysae.analysis.results import read_result
from raysae.analyze import main
from raysae.records.run_files import RunFiles
from tests.atlas.library.conftest import members_run, run  # noqa: F401  (the fixtures)


@pytest.mark.long
def test_an_atlas_outside_a_run(connected_ray, members_run, run, tmp_path, capsys):  # noqa: F811
    shutil.copytree(members_run / "atlas", tmp_path / "atlas")
    command = [
        str(tmp_path / "atlas"), "tracking", "stability", "tracking.fires=2",
        "--store", str(run.store.path), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(command) == 0
    files = RunFiles(tmp_path / "out")
    first = {name: read_result(files, name) for name in ("tracking", "stability")}
    assert not any(found["failed"] for found in first.values())
    assert first["tracking"]["figures"]["kept_share"] > 0
    assert first["stability"]["figures"]["seeds_stability"] == pytest.approx(1)  # copies of one
    assert main(command) == 0
    assert first == {name: read_result(files, name) for name in first}
    assert "tracking is there already" in capsys.readouterr().out


def test_only_the_atlas_must_be_named(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().err.rstrip().endswith("required: RUN")
