"""A small run with an atlas on the pocket GPT-2, made once, as the subject of phases."""

import pytest

from raysae.analysis.subject import Subject
from raysae.records.run_files import RunFiles
from tests.atlas.library.conftest import Run, made


@pytest.fixture(scope="session")
def pocket_run(tmp_path_factory) -> Run:
    return made(tmp_path_factory.mktemp("pocket"), ["source.layers=[1, 2]"])


@pytest.fixture(scope="session")
def pocket(pocket_run, tmp_path_factory) -> Subject:
    files = RunFiles(tmp_path_factory.mktemp("analysis"))
    return Subject(str(pocket_run.folder), files, str(pocket_run.store.path))
