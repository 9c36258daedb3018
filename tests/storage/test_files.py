"""Files that appear whole or not at all."""

import json

import pytest

from raysae.storage.files import read_json, replacing, replacing_folder, write_json


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_what_was_there(tmp_path):
    for content in ("old", "new"):
        try:
            with replacing_folder(tmp_path / "f") as temporary:
                (temporary / "a").write_text(content)
                if content == "new":
                    raise RuntimeError
        except RuntimeError:
            pass
    assert (tmp_path / "f" / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


def test_numbers_that_json_lacks_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [None, 1.5]}
