"""Hostile SAEs and tensors: refused in one message, before they are used."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import raysae
from raysae.activations.importing.run import import_activations
from raysae.errors import UserError
from raysae.sae.interchange import FORMATS
from tests.hostile.saes import D_IN, D_SAE, saved


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
