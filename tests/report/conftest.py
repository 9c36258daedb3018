"""The page of a run of 12 trials and 12 sites, written without training."""

from pathlib import Path

import pytest

from tests.report.runs import page_of


@pytest.fixture(scope="session")
def small_page(tmp_path_factory) -> Path:
    return page_of(tmp_path_factory.mktemp("page"))
