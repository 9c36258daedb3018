"""What the tests of foreign SAEs share."""

import shutil

import pytest

from raysae.sae import export_sae
from tests.sae.foreign_saes import TAKEN
from tests.sae.lively import lively


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A lively SAE of each variant in each format that takes it."""
    folder = tmp_path_factory.mktemp("exports")
    for format, variant in TAKEN:
        export_sae(lively(variant), folder / format / variant, format)
    return folder


@pytest.fixture
def exported(exports, tmp_path):
    """Gives an exported SAE's folder, a copy to be damaged at will."""

    def copy(format, variant="topk"):
        return shutil.copytree(exports / format / variant, tmp_path / format)

    return copy
