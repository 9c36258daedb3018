"""Files of every kind that people have: read by their content, or refused with the way."""

import gzip
import io
import pickle
import sys
import tarfile
import zipfile
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raysae.activations import open_store
from raysae.activations.importing.run import import_activations
from raysae.errors import UserError
from raysae.sites import Site

PLACE: dict[str, Any] = {"layer": 0, "position": "all"}
ROWS = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)


def as_npy(array=ROWS):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def as_npz(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **(arrays or {"x": ROWS}))
    return file.getvalue()


def as_pt(content=None, **options):
    file = io.BytesIO()
    torch.save(torch.from_numpy(ROWS) if content is None else content, file, **options)
    return file.getvalue()


def as_safetensors(tmp_path, **tensors):
    save_file(tensors or {"x": torch.from_numpy(ROWS)}, tmp_path / "temporary")
    return (tmp_path / "temporary").read_bytes()


def as_hdf5(**arrays):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, array in (arrays or {"x": ROWS}).items():
            file[name] = array
    return content.getvalue()


def as_tar(name="x.npy"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(as_npy())
        archive.addfile(info, io.BytesIO(as_npy()))
    return file.getvalue()


def as_zip(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return file.getvalue()


def bring(tmp_path, name, content, **options):
    (tmp_path / name).write_bytes(content)
    return import_activations(tmp_path / name, tmp_path / "s", **{**PLACE, **options})


def refused(tmp_path, name, content, words, **options):
    with pytest.raises(UserError, match=words):
        bring(tmp_path, name, content, **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "name",
    [
        "x.pth",
        "x.th",
        "x.ckpt",
        "pytorch_model.bin",
        "x.dat",
        "x.PT",
        "x",
        "x.torch",
        "x.npy",
        "x.zip",
    ],
)
def test_a_file_of_torch_is_read_whatever_it_is_called(tmp_path, name):
    assert bring(tmp_path, name, as_pt()).rows == 40


def test_a_file_of_an_old_torch_is_not_taken_for_raw_values(tmp_path):
    content = as_pt(_use_new_zipfile_serialization=False)
    raw = {"d_in": 6, "raw_dtype": "float16"}
    assert bring(tmp_path, "x.bin", content + b"\0" * (-len(content) % 12), **raw).format == "pt"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.bin", as_npy()), ("x.pt", as_npy()), ("x.npz", as_npy()), ("x.npy", as_npz()),
        ("x.zip", as_npz()), ("x.pt", as_npz()), ("x.dat", as_hdf5()), ("x.NPZ", as_npz()),
        ("x.hdf5", as_hdf5()), ("x.he5", as_hdf5()),
    ],
)  # fmt: skip
def test_arrays_are_read_whatever_they_are_called(tmp_path, name, content):
    assert bring(tmp_path, name, content).rows == 40


def test_safetensors_are_not_taken_for_raw_values(tmp_path):
    content = as_safetensors(tmp_path)
    done = bring(tmp_path, "x.bin", content, d_in=2, raw_dtype="float16")
    assert (done.format, done.d_in) == ("safetensors", 6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_raw_values_are_not_taken_for_an_archive(tmp_path, value):
    content = np.full((300, 6), value, np.float16).tobytes()
    assert bring(tmp_path, "x.bin", content, d_in=6, raw_dtype="float16").format == "raw"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"1,2\n", "numbers as text; save the array with numpy.save"),
        ("x.tsv", b"1\t2\n", "numbers as text"),
        ("x.json", b"[[1, 2]]", "numbers as text"),
        ("x.jsonl", b"[1, 2]\n", "numbers as text"),
        ("x.txt", b"1 2\n", "numbers as text"),
        ("x.pkl", pickle.dumps([1.0]), "a pickle, whose code is never run; save tensors with torch"),
        ("model.safetensors.index.json", b"{}", "index of a file in several parts; import each part"),
        ("x.arrow", b"ARROW1", "import the folder that save_to_disk wrote"),
        ("x.mat", b"MATLAB", "a file of MATLAB"),
        ("x.tar", as_tar(), "a tar archive; unpack it"),
        ("x.pt", as_tar(), "a tar archive; unpack it"),
        ("x.npy.gz", gzip.compress(as_npy()), "a gzip archive; unpack it"),
        ("x.tar.gz", gzip.compress(as_tar()), "a gzip archive; unpack it"),
        ("x.zip", as_zip(a__npy=as_npy(), b__txt=b"x"), r"a .zip archive of a.npy, b.txt; unpack it"),
        ("x.npz", as_zip(readme__txt=b"x"), r"a .zip archive of readme.txt"),
        ("x.npz", as_npz()[:200], "not a readable .npz archive: truncated"),
        ("x.h5", as_hdf5()[:700], "not a readable HDF5 file: truncated"),
        ("x.npz", as_npz(x=ROWS, y=np.array([{}], object)), "y.npy holds Python objects, and pickled"),
        ("x.npz", as_npz(a=ROWS, b=ROWS), r"(?s)several could be the activations.*a: \[40, 6\] float32"),
        ("x.h5", as_hdf5(a=ROWS, b=ROWS), r"(?s)several could be the activations.*b: \[40, 6\]"),
        ("x.npz", as_npz(a=ROWS[0]), "nothing in it could be activations"),
        ("x.npz", as_npz(a=ROWS.astype(np.int8)), r"(?s)nothing in it could.*a: \[40, 6\] int8"),
        ("x.npz", as_npz(acts=ROWS[:0]), r"no rows \(shape \[0, 6\]\)"),
        ("x.h5", as_hdf5(acts=ROWS[:, :0]), r"no rows \(shape \[40, 0\]\)"),
        ("x.npy", as_npy(ROWS.astype(np.int8)), "it holds int8 values; expected float16"),
        ("x.npy", as_npy(ROWS.astype(np.longdouble)), "expected float16, float32 or float64"),
        ("x.npy", as_npy(np.float32(3)), "it holds one number"),
        ("x.npy", as_npy(np.array([ROWS, ROWS[:3]], object)), "Python objects, and pickled code"),
        ("x.pt", as_pt(torch.ones(9, 4).to(torch.float8_e4m3fn)), "float8_e4m3fn values"),
        ("x.pt", as_pt(torch.ones(9, 4, dtype=torch.int8)), "int8 values"),
        ("x.pt", as_pt({"acts": torch.ones(9, 4).to(torch.float8_e5m2)}), "float8_e5m2"),
        ("x.pt", as_pt(torch.ones(9, 4).to_sparse()), "sparse"),
    ],
)  # fmt: skip
def test_files_that_are_not_read_are_refused_with_the_way(tmp_path, name, content, words):
    refused(tmp_path, name, content, words)


def test_float8_in_safetensors_is_refused_by_its_dtype(tmp_path):
    content = as_safetensors(tmp_path, acts=torch.ones(9, 4).to(torch.float8_e4m3fn))
    (tmp_path / "temporary").unlink()
    refused(tmp_path, "x.safetensors", content, r"acts: \[9, 4\] float8_e4m3fn")


def test_hdf5_without_h5py_is_refused_with_the_word(tmp_path, monkeypatch):
    content = as_hdf5()
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(tmp_path, "x.h5", content, "takes h5py, which is not installed .pip install h5py.*npz")


def test_groups_and_text_of_hdf5_are_read(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["run/acts"] = ROWS
        file["run/problem_id"] = [f"problem {i // 2}" for i in range(40)]
        file["run/layer"] = 5
        file.attrs["model"] = "gpt2"
    done = import_activations(tmp_path / "x.h5", tmp_path / "s", position="all")
    assert done.entries[0].site == Site(5, "all")
    assert done.rows == 40


@pytest.mark.parametrize(
    "array", [np.asfortranarray(ROWS), ROWS.astype(">f4"), ROWS[::2].T.copy().T]
)
@pytest.mark.parametrize(
    "write", [as_npy, lambda a: as_npz(x=a), lambda a: as_npz(np.savez_compressed, x=a)]
)
def test_arrays_in_any_order_come_back_bit_for_bit(tmp_path, array, write):
    (tmp_path / "x").write_bytes(write(array))
    import_activations(tmp_path / "x", tmp_path / "s", **PLACE, validation=0, test=0)
    rows = open_store(tmp_path / "s").train(Site(0, "all")).numpy()
    wanted = np.asarray(array, np.float32)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, wanted.copy()))


def test_a_folder_of_other_files_names_one(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/layer_0.pt").write_bytes(as_pt())
    with pytest.raises(UserError, match=r"import its files one by one, such as layer_0.pt"):
        import_activations(tmp_path / "x", tmp_path / "s", **PLACE)


# What the store's dtype cannot hold


@pytest.mark.parametrize("position", ["all", 0])
def test_values_too_small_for_the_dtype_are_refused_before_a_shard(tmp_path, position):
    rows = np.repeat(ROWS[None] * 1e-9, 3, axis=0)
    words = "lose more than 1% of their norm.*too small for float16.*--dtype bfloat16"
    refused(tmp_path, "x.npy", as_npy(rows), words, dtype="float16", position=position)
    done = import_activations(tmp_path / "x.npy", tmp_path / "t", **PLACE, dtype="bfloat16")
    assert done.rows == 120


def test_float64_too_small_for_float32_is_refused(tmp_path):
    refused(
        tmp_path, "x.npy", as_npy(ROWS.astype(float) * 1e-50), "multiply the activations by a const"
    )


def test_a_few_small_rows_and_zeros_are_taken(tmp_path):
    rows = np.random.default_rng(0).standard_normal((2000, 6)).astype(np.float32)
    rows[:5] *= 1e-9
    rows[5:1200] = 0
    assert bring(tmp_path, "x.npy", as_npy(rows), dtype="float16").rows == 2000


@pytest.mark.parametrize("name", ["x.npz", "x.h5"])
def test_a_packed_array_with_bad_bytes_is_refused(tmp_path, name):
    content = bytearray(as_npz(np.savez_compressed, x=ROWS))
    start = len(content) // 2
    if name == "x.h5":
        file = io.BytesIO()
        with h5py.File(file, "w") as h5:
            data = h5.create_dataset("x", data=ROWS, chunks=(40, 6), compression="gzip")
            h5.flush()
            start = data.id.get_chunk_info(0).byte_offset + 40
        content = bytearray(file.getvalue())
    content[start : start + 60] = bytes(60)
    refused(tmp_path, name, bytes(content), "not a readable")
