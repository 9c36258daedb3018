"""Hostile stores, SAEs, imports and texts: one message each, before any work, and never a hang."""

import gzip
import io
import json
import os
import re
import shutil
import socket
import struct
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import raysae
from raysae.activations import Site, store_command
from raysae.activations.importing.run import import_activations
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.verify import verify
from raysae.console.command_line import REFUSED, run_command
from raysae.errors import UserError
from raysae.sae.config import sae_config
from raysae.sae.interchange import FORMATS
from raysae.sae.variants import build_sae
from raysae.transformer import text_files
from raysae.transformer.text_files import file_rows
from raysae.transformer.texts import TextSpec, read_documents

FOLDER = "layer=00/position=all"
SHARD, SECOND = f"{FOLDER}/part-00000.parquet", f"{FOLDER}/part-00001.parquet"
D_IN, D_SAE = 6, 8


# Stores


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "s"
    write_synthetic_store(folder, SuperpositionWorld(4, 8), 60, sites=2, shard_rows=30)
    return folder


@pytest.fixture
def store(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "s")
    return tmp_path / "s"


def edit(store, change):
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refused(store, words="."):
    """Opening, verifying and showing refuse; the message names the store's file."""
    with pytest.raises(UserError, match=words) as told:
        raysae.open_store(store)
    assert str(store) in str(told.value) or "..." in str(told.value)
    for verb in ("show", "sites"):
        assert run_command(store_command.main, [verb, str(store)]) == REFUSED


SAME = {
    "twice": SHARD,
    "//": f"{FOLDER}//part-00000.parquet",
    "///": f"{FOLDER}///part-00000.parquet",
    "./": f"{FOLDER}/./part-00000.parquet",
    "./ first": f"./{SHARD}",
    "a/..": f"{FOLDER}/a/../part-00000.parquet",
    "..": f"{FOLDER}/../position=all/part-00000.parquet",
    "absolute": f"/{SHARD}",
    "case": f"{FOLDER}/PART-00000.parquet",
    "full width": f"{FOLDER}/ｐart-00000.parquet",
    "another site": "layer=01/position=all/part-00000.parquet",
}


@pytest.mark.parametrize("name", SAME)
def test_a_shard_cannot_be_listed_twice_in_any_spelling(store, name):
    edit(store, lambda m: m["sites"][0]["shards"][1].update(file=SAME[name]))
    refused(store)
    with pytest.raises(UserError):
        verify(store)


def test_names_that_differ_only_in_their_unicode_form_are_one(store):
    for form, shard in (("NFC", 0), ("NFD", 1)):
        name = unicodedata.normalize(form, f"{FOLDER}/é.parquet")
        old = (SHARD, SECOND)[shard]
        os.replace(store / old, store / name)
        edit(store, lambda m, name=name, n=shard: m["sites"][0]["shards"][n].update(file=name))
    refused(store, "twice")


def test_a_link_to_another_shard_counts_as_the_same(store):
    (store / SECOND).unlink()
    (store / SECOND).symlink_to("part-00000.parquet")
    first = json.loads((store / "manifest.json").read_text())["sites"][0]["shards"][0]
    edit(store, lambda m: m["sites"][0]["shards"][1].update({**first, "file": SECOND}))
    refused(store, "would count twice")


def test_a_shard_of_two_sites_is_refused(store):
    edit(store, lambda m: m["sites"][1]["shards"].append(m["sites"][0]["shards"][0]))
    refused(store)


def test_a_store_without_sites_is_refused(store):
    edit(store, lambda m: m.update(sites=[]))
    refused(store, "no sites")
    assert [problem.found for problem in verify(store)] == ["no sites"]


VALUES = {
    "negative rows": lambda m: m["sites"][0]["rows"].update(train=-1),
    "negative rows of a shard": lambda m: m["sites"][0]["shards"][0]["rows"].update(train=-1),
    "true rows": lambda m: m["sites"][0]["rows"].update(test=True),
    "rows as text": lambda m: m["sites"][0]["rows"].update(test="3"),
    "fractional rows": lambda m: m["sites"][0]["rows"].update(test=3.5),
    "10^30 rows": lambda m: m["sites"][0]["shards"][0]["rows"].update(train=10**30),
    "negative bytes": lambda m: m["sites"][0]["shards"][0].update(bytes=-1),
    "true layer": lambda m: m["sites"][0].update(layer=True),
    "NaN": lambda m: m["sites"][0].update(mean_square_norm=float("nan")),
    "infinite mean": lambda m: m["sites"][0]["mean"].__setitem__(0, float("inf")),
    "zero d_in": lambda m: m.update(d_in=0),
    "negative d_in": lambda m: m.update(d_in=-4),
    "huge d_in": lambda m: m.update(d_in=2**40),
    "context of no tokens": lambda m: m.update(context_length=0),
    "long name": lambda m: m["sites"][0]["shards"][0].update(file=f"{FOLDER}/{'x' * 300}"),
    "half a character": lambda m: m["sites"][0]["shards"][0].update(file=f"{FOLDER}/\ud800"),
    "deep": lambda m: m.update(source=json.loads('{"a":' * 300 + "1" + "}" * 300)),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_manifest_of_impossible_values_is_refused(store, name):
    edit(store, VALUES[name])
    refused(store)


@pytest.mark.parametrize(
    "text",
    [
        '{"format_version": 2, "format_version": 2}', "[" * 100_000, "9" * 5000, "\xff", "NaN", "[]",
        '"x"', "null", "",
    ],
)  # fmt: skip
def test_a_manifest_that_is_no_manifest_is_refused(store, text):
    (store / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(store, "manifest.json")


def test_a_manifest_that_gives_a_key_twice_is_refused(store):
    text = (store / "manifest.json").read_text()
    (store / "manifest.json").write_text(text.replace('"d_in": 4', '"d_in": 4, "d_in": 4'))
    refused(store, "'d_in' is given twice")


LONG = ["x" * 300, "a/" * 3000, "a\0b", "\ud800"]


@pytest.mark.parametrize("path", LONG, ids=["long", "deep", "NUL", "surrogate"])
def test_a_path_that_no_system_allows_is_refused_wherever_it_goes(path, sound, tmp_path):
    sae = build_sae(sae_config({"variant": "topk", "d_sae": D_SAE, "k": 2}), D_IN)
    np.save(tmp_path / "x.npy", np.ones((4, 4), np.float32))
    spec = {"dataset": path, "sequences": None}
    calls = [
        lambda: raysae.open_store(path),
        lambda: verify(path),
        lambda: raysae.load_sae(path),
        *(lambda f=f: raysae.load_sae(path, format=f) for f in ("raysae", *FORMATS)),
        lambda: raysae.export_sae(sae, path, "saelens"),
        lambda: import_activations(path, tmp_path / "out", layer=0, position="all"),
        lambda: import_activations(tmp_path / "x.npy", path, layer=0, position="all"),
        lambda: import_activations(
            tmp_path / "x.npy", tmp_path / "out", layer=0, position="all", sequences=Path(path)
        ),
        lambda: next(read_documents(TextSpec(**spec))),
    ]
    for call in calls:
        with pytest.raises(UserError):
            call()


# Files that are no files


def special(kind, path):
    """Put a FIFO, socket, device or folder at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        where = os.getcwd()
        os.chdir(path.parent)  # a socket's path may have only about 100 characters
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(where)
    return path


SPECIAL = ["fifo", "socket", "device", "folder"]
SUFFIXES = [
    "x.pt", "x.npy", "x.npz", "x.safetensors", "x.parquet", "x.h5", "x.bin", "x", "folder/x.npy",
    "folder/x.parquet", "saved/state.json", "saved/dataset_dict.json", "store/manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", SUFFIXES)
def test_what_is_no_regular_file_is_not_opened_by_an_import(kind, name, tmp_path):
    path = special(kind, tmp_path / name)
    given = path.parent if "/" in name else path
    with pytest.raises(UserError):
        import_activations(
            given, tmp_path / "out", layer=0, position="all", d_in=4, raw_dtype="float32"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", SPECIAL)
def test_nor_by_a_store_an_sae_or_a_text(kind, store, tmp_path):
    for name in (SHARD, "manifest.json"):
        (store / name).unlink()
        special(kind, store / name)
        refused(store)
    for form, names in {
        "raysae": ("cfg.json", "sae.safetensors"), "saelens": ("cfg.json", "sae_weights.safetensors"),
        "sparsify": ("cfg.json", "sae.safetensors"), "dictionary_learning": ("config.json", "ae.pt"),
    }.items():  # fmt: skip
        for name in names:
            folder = saved(form, tmp_path / form / name)
            (folder / name).unlink()
            special(kind, folder / name)
            with pytest.raises(UserError):
                raysae.load_sae(folder, format=form)
    for name in ("x.jsonl", "x.csv.gz", "x.txt", "x.parquet", "x", "folder/x.jsonl"):
        path = special(kind, tmp_path / "texts" / name)
        with pytest.raises(UserError):
            next(read_documents(TextSpec(dataset=str(path.parent if "/" in name else path))))


# SAEs


def saved(form, folder, variant="topk"):
    """A small SAE in a format, in ``folder``."""
    settings = {"variant": variant, "d_sae": D_SAE}
    if variant in ("topk", "batch_topk", "matryoshka"):
        settings["k"] = 2
    torch.manual_seed(0)
    sae = build_sae(sae_config(settings), D_IN)
    if form == "raysae":
        sae.save(folder)
    else:
        raysae.export_sae(sae, folder, form)
    return folder


def change_tensors(folder, change):
    path = next(file for file in folder.iterdir() if file.suffix in (".pt", ".safetensors"))
    pickled = path.suffix == ".pt"
    tensors = torch.load(path, weights_only=True) if pickled else load_file(path)
    change(tensors)
    torch.save(tensors, path) if pickled else save_file(tensors, path)


FORMS = [
    ("raysae", v) for v in ("topk", "batch_topk", "matryoshka", "jumprelu", "gated", "relu_l1")
]
FORMS += [(name, variant) for name, form in FORMATS.items() for variant in form.variants]
WHOLE = ("k", "group_sizes")


def with_value(value):
    def change(tensor):
        flat = tensor.clone().flatten()
        flat[len(flat) // 2] = value
        return flat.view(tensor.shape)

    return change


WRONG = {
    "nan": with_value(float("nan")),
    "inf": with_value(float("inf")),
    "-inf": with_value(float("-inf")),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t > 0,
    "int8": lambda t: t.to(torch.int8),
    "int64": lambda t: t.to(torch.int64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "too large for float32": lambda t: t.double() + 1e300,
    "another shape": lambda t: torch.cat([t.flatten(), t.flatten()[:1]]),
}


@pytest.mark.parametrize(("form", "variant"), FORMS)
def test_weights_that_are_none_are_refused_and_named(form, variant, tmp_path):
    folder = saved(form, tmp_path / "sae", variant)
    raysae.load_sae(folder, format=form)
    for name in names_of(folder):
        for wrong in WRONG.values():
            shutil.copytree(folder, tmp_path / "wrong")
            change_tensors(tmp_path / "wrong", lambda t, n=name, w=wrong: t.update({n: w(t[n])}))
            with pytest.raises(UserError):
                raysae.load_sae(tmp_path / "wrong", format=form)
            shutil.rmtree(tmp_path / "wrong")


def names_of(folder):
    found = []
    change_tensors(folder, lambda tensors: found.extend(n for n in tensors if n not in WHOLE))
    unused = ["threshold"] if "dictionary_learning" not in str(folder) else []
    return [name for name in found if not (unused and name == "threshold" and is_topk(folder))]


def is_topk(folder):
    """dictionary_learning writes a threshold beside a TopK that it does not use."""
    file = folder / "config.json"
    return file.exists() and "AutoEncoderTopK" in file.read_text()


@pytest.mark.parametrize(("form", "variant"), FORMS)
def test_a_tensor_too_many_or_missing_is_refused(form, variant, tmp_path):
    changes = [lambda t: t.update(extra=torch.ones(2)), lambda t: t.pop("W_dec", None)]
    for number, change in enumerate(changes):
        folder = saved(form, tmp_path / str(number), variant)
        before = names_of(folder)
        change_tensors(folder, change)
        if names_of(folder) != before:
            with pytest.raises(UserError):
                raysae.load_sae(folder, format=form)


SETTINGS = [
    2.5,
    True,
    False,
    "2",
    0,
    -1,
    9,
    10**30,
    float("nan"),
    float("inf"),
    None,
    [2],
    {"a": 2},
]


@pytest.mark.parametrize("value", SETTINGS, ids=str)
@pytest.mark.parametrize("form", ["raysae", *FORMATS])
def test_a_k_or_a_size_that_cannot_be_is_refused(form, value, tmp_path):
    keys = {
        "raysae": ("k", "d_in", "d_sae"), "saelens": ("k", "d_in", "d_sae"),
        "sparsify": ("k", "d_in", "num_latents"),
        "dictionary_learning": ("k", "activation_dim", "dict_size"),
    }[form]  # fmt: skip
    for key in keys:
        folder = saved(form, tmp_path / key)
        path = folder / ("config.json" if form == "dictionary_learning" else "cfg.json")
        settings = json.loads(path.read_text())
        settings.get("trainer", settings)[key] = value
        path.write_text(json.dumps(settings))
        in_tensor = form == "dictionary_learning" and key == "k" and value is None
        default = form == "raysae" and key == "k" and value is None
        if not in_tensor and not default:
            with pytest.raises(UserError):
                raysae.load_sae(folder, format=form)


@pytest.mark.parametrize(
    "k",
    [
        torch.tensor(True), torch.tensor(2.0), torch.tensor([2, 3]), torch.tensor(2 + 0j),
        torch.tensor(-2), torch.tensor(99), torch.tensor(2).expand(1 << 40),
        torch.empty((), dtype=torch.int64, device="meta"), torch.ones(3, dtype=torch.int64).to_sparse(),
    ],
    ids=str,
)  # fmt: skip
def test_a_k_in_a_tensor_must_be_one_whole_number(k, tmp_path):
    folder = saved("dictionary_learning", tmp_path / "sae")
    change_tensors(folder, lambda tensors: tensors.update(k=k))
    with pytest.raises(UserError):
        raysae.load_sae(folder, format="dictionary_learning")


VIEWS = {
    "stride 0": torch.ones(1).expand(D_SAE, D_IN),
    "rows of one": torch.ones(1, D_IN).expand(D_SAE, D_IN),
    "overlapping": torch.ones(40).as_strided((D_SAE, D_IN), (1, 1)),
    "meta": torch.ones(D_SAE, D_IN, device="meta"),
    "sparse": torch.ones(D_SAE, D_IN).to_sparse(),
    "csr": torch.ones(D_SAE, D_IN).to_sparse_csr(),
    "quantized": torch.quantize_per_tensor(torch.ones(D_SAE, D_IN), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("name", VIEWS)
def test_tensors_without_values_of_their_own_are_refused(name, tmp_path):
    """Also where they stand in a dictionary or a list."""
    view = VIEWS[name]
    for number, holder in enumerate(
        (view, {"activations": view}, {"a": {"b": view}}, [view, view])
    ):
        path = tmp_path / f"{number}.pt"
        torch.save(holder, path)
        with pytest.raises(UserError):
            import_activations(path, tmp_path / "out", layer=0, position="all")
    folder = saved("dictionary_learning", tmp_path / "sae")
    change_tensors(
        folder, lambda t: t.update({"decoder.weight": view if name == "csr" else view.T})
    )
    with pytest.raises(UserError):
        raysae.load_sae(folder, format="dictionary_learning")


def test_a_terabyte_of_one_value_is_refused_at_once(tmp_path):
    torch.save({"x": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="repeats its values"):
        import_activations(tmp_path / "x.pt", tmp_path / "out", layer=0, position="all")


def test_a_slice_or_a_transposed_tensor_is_still_read(tmp_path):
    for number, view in enumerate((torch.randn(9, 40)[:, :4], torch.randn(4, 40).T)):
        torch.save(view, tmp_path / f"{number}.pt")
        done = import_activations(
            tmp_path / f"{number}.pt", tmp_path / f"s{number}", layer=0, position="all"
        )
        assert done.rows == len(view)


def test_containers_that_hold_each_other_many_times_end(tmp_path):
    many: list = [torch.ones(2, 2)]
    for _ in range(45):
        many = [many, many]
    names: dict = {"x": torch.ones(2, 2)}
    for _ in range(45):
        names = {"a": names, "b": names}
    itself: list = []
    itself.append(itself)
    for number, value in enumerate((many, names, itself)):
        torch.save(value, tmp_path / f"{number}.pt")
        with pytest.raises(UserError):
            import_activations(tmp_path / f"{number}.pt", tmp_path / "out", layer=0, position="all")


# Files that claim more than they hold


def npy(shape, dtype="<f4", data=b""):
    """A .npy file whose header claims ``shape``."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


CLAIMS = [(1 << 40, 4), (1 << 62, 1 << 62), (-1, 4), (2**100, 4), (3, 1 << 33)]


@pytest.mark.parametrize("shape", CLAIMS, ids=str)
@pytest.mark.parametrize("dtype", ["<f4", "<i8", "|O", "|b1", "|V2147483647"])
def test_arrays_that_claim_more_than_they_hold_are_refused(shape, dtype, tmp_path):
    content = npy(shape, dtype, b"\0" * 64)
    (tmp_path / "x.npy").write_bytes(content)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / f"{method}.npz", "w", method) as archive:
            archive.writestr("x.npy", content)
            archive.writestr("activations.npy", npy((2, 4), data=b"\0" * 32))
    for name in ("x.npy", f"{zipfile.ZIP_STORED}.npz", f"{zipfile.ZIP_DEFLATED}.npz"):
        with pytest.raises(UserError, match=re.escape(name)):
            import_activations(tmp_path / name, tmp_path / "out", layer=0, position="all")


def safetensors_of(header, length=None):
    return struct.pack("<Q", len(header) if length is None else length) + header + b"\0" * 64


def entry(start, end, shape=(2, 2), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "claims 100 MB": safetensors_of(b'{"a": 1}', 100_000_000),
    "claims everything": safetensors_of(b'{"a": 1}', 2**64 - 1),
    "overlapping": safetensors_of(json.dumps({"a": entry(0, 16), "b": entry(8, 24)}).encode()),
    "beyond the end": safetensors_of(
        json.dumps({"a": entry(0, 1 << 40, (1 << 19, 1 << 19))}).encode()
    ),
    "negative": safetensors_of(json.dumps({"a": entry(-16, 0)}).encode()),
    "overflow": safetensors_of(json.dumps({"a": entry(0, 64, (1 << 32, 1 << 32))}).encode()),
    "unknown dtype": safetensors_of(json.dumps({"a": entry(0, 64, (8, 8), "X9")}).encode()),
    "deep": safetensors_of(b"[" * 100_000),
    "no UTF-8": safetensors_of(b'{"\xff": 1}'),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_headers_that_lie_are_refused(name, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(UserError):
        import_activations(tmp_path / "x.safetensors", tmp_path / "out", layer=0, position="all")
    folder = saved("raysae", tmp_path / "sae")
    (folder / "sae.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(UserError):
        raysae.load_sae(folder)


def test_a_header_of_a_hundred_megabytes_is_refused(tmp_path):
    header = b'{"a": ' + json.dumps(entry(0, 64, (4, 4))).encode() + b"}"
    content = safetensors_of(header + b" " * (100_000_001 - len(header)))
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError):
        import_activations(tmp_path / "x.safetensors", tmp_path / "out", layer=0, position="all")


def test_a_parquet_file_of_2_to_the_40_rows_is_refused(tmp_path):
    from tests.hostile.test_pages import mutations, thrift

    buffer = io.BytesIO()
    column = pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32()))
    pq.write_table(pa.table({"activations": column}), buffer)
    data = buffer.getvalue()
    start = mutations._footer_start(data)
    footer, _ = thrift.read_struct(data, start)
    for field in thrift.fields_of(footer):
        if field.number == 3 and field.value == 3 and field.kind == thrift.I64:
            field.value = 1 << 40
    lie = mutations._with_footer(data[:start], thrift.write_struct(footer))
    (tmp_path / "x.parquet").write_bytes(lie)
    with pytest.raises(UserError, match="1,099,511,627,776 rows"):
        import_activations(tmp_path / "x.parquet", tmp_path / "out", layer=0, position="all")


# Texts that unpack to more than memory holds


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_line_without_end_is_refused(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
    path = tmp_path / f"x{suffix}.gz"
    start = {".jsonl": '{"text": "', ".csv": 'text\n"', ".tsv": 'text\n"'}.get(suffix, "")
    path.write_bytes(gzip.compress((start + "a" * 100_000).encode()))
    with pytest.raises(UserError, match="1,000 characters or more|field larger"):
        list(file_rows(str(path)))


def test_a_packed_list_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 1000)
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b"[\n" + b'{"text": "a"},\n' * 1000 + b'{"text": "a"}]'))
    with pytest.raises(UserError, match=r"unpack it, or save it as JSON lines"):
        list(file_rows(str(path)))


def test_the_rows_of_a_sound_store_are_still_read(store):
    opened = raysae.open_store(store)
    assert verify(store) == []
    assert len(opened.train(Site(0, "all"))) == opened.entry(Site(0, "all")).rows.train
