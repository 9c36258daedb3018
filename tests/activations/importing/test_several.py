"""Several tensors in one import: lists of prompts, dictionaries of them, folders, layers in one array."""

from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raysae.activations import open_store
from raysae.activations.importing.columns import hashed
from raysae.activations.importing.import_command import found as printed
from raysae.activations.importing.options import ImportOptions
from raysae.activations.importing.run import import_activations, plan_import
from raysae.errors import UserError
from raysae.sites import Site
from tests.activations.importing.foreign import tables

D = 6
SITE = Site(0, "all")
PLACE: dict[str, Any] = {"layer": 0, "position": "all"}
LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 9, 30)]


def prompts(lengths=LENGTHS, dtype=torch.float32):
    """A tensor [T, D] for each prompt, whose rows say which token of which prompt they are."""
    found = []
    for number, length in enumerate(lengths):
        rows = torch.randn(length, D, generator=torch.Generator().manual_seed(number))
        rows[:, 0], rows[:, 1] = number, torch.arange(length)
        found.append(rows.to(dtype))
    return found


def stored(store, site=SITE):
    """{(sequence, token index): (prompt, token)}, the latter as the rows say."""
    store, found = open_store(store), {}
    for table in tables(store, site):
        rows = np.frombuffer(b"".join(table["activation"].to_pylist()), np.float32).reshape(-1, D)
        places = zip(table["sequence"].to_pylist(), table["token_index"].to_pylist(), strict=True)
        found |= {
            place: (int(row[0]), int(row[1])) for place, row in zip(places, rows, strict=True)
        }
    return found


ALL = {(s, t): (s, t) for s, length in enumerate(LENGTHS) for t in range(length)}


def bring(tmp_path, content, **options):
    torch.save(content, tmp_path / "x.pt")
    return import_activations(tmp_path / "x.pt", tmp_path / "s", **{**PLACE, **options})


def refused(tmp_path, content, words, **options):
    with pytest.raises(UserError, match=words):
        bring(tmp_path, content, **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "content",
    [
        prompts(),
        tuple(prompts()),
        {"activations": prompts(), "config": {"d_model": 3}},
        [{"prompt": f"number {i}", "acts": rows} for i, rows in enumerate(prompts())],
        [rows.unsqueeze(0) for rows in prompts()],
    ],
    ids=["list", "tuple", "named", "dictionaries", "batches of one"],
)
def test_each_tensor_of_a_list_is_a_sequence(tmp_path, content):
    bring(tmp_path, content, layer=0)
    found = stored(tmp_path / "s")
    assert sorted(found.values()) == sorted(ALL.values())
    assert all(place[1] == token for place, (_, token) in found.items())
    by_prompt: dict[int, set[int]] = {}
    for (sequence, _), (prompt, _) in found.items():
        by_prompt.setdefault(prompt, set()).add(sequence)
    assert all(len(ids) == 1 for ids in by_prompt.values())


@pytest.mark.parametrize("position", [0, 3, -1, -3])
def test_positions_count_within_each_tensor(tmp_path, position):
    bring(tmp_path, prompts(), position=position)
    has = [(s, n) for s, n in enumerate(LENGTHS) if n > position and n >= -position]
    wanted = {(s, position % n): (s, position % n) for s, n in has}
    assert stored(tmp_path / "s", Site(0, position)) == wanted


def test_lists_of_token_ids_and_masks_go_with_them(tmp_path):
    ids = [torch.arange(n) + 10 * (s % 10) for s, n in enumerate(LENGTHS)]
    mask = [torch.arange(n) > 0 for n in LENGTHS]
    done = bring(tmp_path, {"acts": prompts(), "input_ids": ids, "attention_mask": mask})
    found = stored(tmp_path / "s")  # sequences of the same tokens have the same place in it
    assert done.rows == sum(n - 1 for n in LENGTHS)
    assert all(index == token - 1 for (_, index), (_, token) in found.items())
    assert any("sequences have the same tokens" in note for note in done.notes)


@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors", "h5"])
def test_a_dictionary_of_prompts_has_their_names_as_ids(tmp_path, suffix):
    names = [f"How many are {number} apples?" for number in range(len(LENGTHS))]
    content = dict(zip(names, prompts(), strict=True))
    file = tmp_path / f"x.{suffix}"
    match suffix:
        case "pt":
            torch.save(content, file)
        case "npz":
            np.savez(file, **{name: rows.numpy() for name, rows in content.items()})
        case "safetensors":
            save_file(content, file)
        case "h5":
            with h5py.File(file, "w") as h5:
                for name, rows in content.items():
                    h5[name] = rows.numpy()
    import_activations(file, tmp_path / "s", **PLACE)
    wanted = {(int(hashed([names[s]])[0]), t): place for (s, t), place in ALL.items()}
    assert stored(tmp_path / "s") == wanted


@pytest.mark.parametrize("suffix", ["pt", "h5"])
def test_a_dictionary_of_prompts_may_have_masks_beside_the_rows(tmp_path, suffix):
    content = {
        f"prompt {number}": {"acts": rows, "attention_mask": torch.arange(len(rows)) > 0}
        for number, rows in enumerate(prompts())
    }
    torch.save(content, tmp_path / "x.pt")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, leaves in content.items():
            for last, leaf in leaves.items():
                file[f"{name}/{last}"] = leaf.numpy()
    import_activations(tmp_path / f"x.{suffix}", tmp_path / "s", **PLACE)
    found = stored(tmp_path / "s")
    assert sorted(found.values()) == sorted(place for place in ALL.values() if place[1] > 0)
    names = hashed([f"prompt {number}" for number in range(len(LENGTHS))]).tolist()
    assert all(names[prompt] == sequence for (sequence, _), (prompt, _) in found.items())


SAME = prompts([4] * 12)


@pytest.mark.parametrize(
    "content", [SAME, prompts([4, 4, 4, 2]), {"acts": SAME}], ids=["same", "batches", "named"]
)
def test_lists_that_may_be_batches_or_layers_are_asked_about(tmp_path, content):
    refused(
        tmp_path,
        content,
        "a batch of rows, or a layer; say --key sequence=item .*sequence=none.*--axes layer,sequence",
    )
    assert bring(tmp_path, content, keys={"sequence": "none"}).rows == len(stored(tmp_path / "s"))


def test_the_answer_decides_what_a_list_is(tmp_path):
    bring(tmp_path, SAME, keys={"sequence": "item"})
    assert stored(tmp_path / "s") == {(s, t): (s, t) for s in range(12) for t in range(4)}


def test_vectors_are_rows_where_they_can_be_no_layers(tmp_path):
    vectors = list(torch.randn(200, D))
    refused(tmp_path, vectors[:20], "sequence=item")
    assert bring(tmp_path, vectors).rows == 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(3, D), torch.zeros(4, D + 1)], r"item 1 is \[4, 7\].*while 0 is \[3, 6\]"),
        ([torch.zeros(3, D), torch.zeros(4, D).half()], "item 1 is .*float16"),
        ([torch.zeros(3, D), torch.zeros(4, 2, D)], r"item 1 is \[4, 2, 6\]"),
        ([torch.zeros(0, 3, D), torch.zeros(0, 4, D)], "its 2 items have no rows"),
        ({"train": torch.ones(9, D), "test": torch.ones(5, D)}, "several could be the activations"),
        ({"layer_0": torch.ones(5, D), "layer_1": torch.ones(9, D)}, "several could be the act"),
        ({"W_enc": torch.ones(5, D), "W_dec": torch.ones(9, D)}, "several could be the activations"),
        ({"a": torch.ones(5, D), "b": torch.ones(9, D), "c": torch.ones(7)}, "several could be"),
        ([], "nothing in it could be activations"),
        (["text"], "nothing in it could be activations"),
        ([torch.ones(3, dtype=int)], "nothing in it could be activations"),
    ],
)  # fmt: skip
def test_lists_and_dictionaries_of_something_else_are_refused(tmp_path, content, words):
    refused(tmp_path, content, words)


def test_sequence_item_where_there_are_no_items_is_refused(tmp_path):
    refused(
        tmp_path,
        torch.ones(9, D),
        "neither a list of tensors nor a folder",
        keys={"sequence": "item"},
    )


# Folders of .npy


def folder(tmp_path, arrays):
    (tmp_path / "x").mkdir()
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"x/{number:03d}.npy", array)
    return tmp_path / "x"


def test_files_of_unequal_lengths_are_sequences_and_it_says_so(tmp_path):
    path = folder(tmp_path, [rows.numpy() for rows in prompts()])
    said = printed(plan_import(path, tmp_path / "s", ImportOptions(**PLACE)))
    assert "30 files: sequences, one each" in said
    import_activations(path, tmp_path / "s", **PLACE)
    assert stored(tmp_path / "s") == ALL


def test_files_of_sequences_are_joined(tmp_path):
    path = folder(tmp_path, [np.random.randn(n, 4, D).astype(np.float32) for n in (5, 7, 2)])
    done = import_activations(path, tmp_path / "s", **PLACE)
    assert done.rows == 14 * 4
    assert {s for s, _ in stored(tmp_path / "s")} == set(range(14))


def test_files_of_rows_take_ids_or_are_asked_about(tmp_path):
    path = folder(tmp_path, [np.random.randn(n, D).astype(np.float32) for n in (50, 50, 20)])
    with pytest.raises(UserError, match="3 files of shape .50, 6.: each could be a sequence"):
        import_activations(path, tmp_path / "s", **PLACE)
    done = import_activations(path, tmp_path / "s", **PLACE, keys={"sequence": "none"})
    assert (done.rows, len({s for s, _ in stored(tmp_path / "s")})) == (120, 120)
    np.save(tmp_path / "ids.npy", np.arange(120) // 2)
    import_activations(path, tmp_path / "t", **PLACE, sequences=tmp_path / "ids.npy")
    assert {s for s, _ in stored(tmp_path / "t")} == set(range(60))


def test_files_that_do_not_go_together_are_refused(tmp_path):
    path = folder(tmp_path, [np.zeros((4, D), np.float32), np.zeros((3, D + 1), np.float32)])
    with pytest.raises(UserError, match=r"file 001.npy is \[3, 7\].*while 000.npy is \[4, 6\]"):
        import_activations(path, tmp_path / "s", **PLACE)
    (path / "y.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="Parquet files and .npy files"):
        import_activations(path, tmp_path / "s", **PLACE)


# --axes

LAYERS, SEQUENCES, TOKENS = 3, 10, 4


def grid():
    """[layer, sequence, token, D] of rows that say their place: sequence, token, layer."""
    rows = np.random.default_rng(0).standard_normal((LAYERS, SEQUENCES, TOKENS, D))
    rows[..., 2] = np.arange(LAYERS)[:, None, None]
    rows[..., 0] = np.arange(SEQUENCES)[None, :, None]
    rows[..., 1] = np.arange(TOKENS)[None, None, :]
    return rows.astype(np.float32)


@pytest.mark.parametrize(
    "names",
    [
        ("sequence", "layer", "token", "d_in"),
        ("layer", "sequence", "token", "d_in"),
        ("token", "sequence", "layer", "d_in"),
        ("sequence", "token", "d_in", "layer"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "pt", "npz", "h5"])
def test_axes_name_the_dimensions_in_any_order(tmp_path, names, suffix):
    order = [("layer", "sequence", "token", "d_in").index(name) for name in names]
    array = np.ascontiguousarray(grid().transpose(order))
    file = tmp_path / f"x.{suffix}"
    match suffix:
        case "npy":
            np.save(file, array)
        case "npz":
            np.savez(file, acts=array)
        case "pt":
            torch.save(torch.from_numpy(array), file)
        case "h5":
            with h5py.File(file, "w") as h5:
                h5["acts"] = array
    import_activations(file, tmp_path / "s", position="all", axes=",".join(names))
    store = open_store(tmp_path / "s")
    assert store.sites == [Site(layer, "all") for layer in range(LAYERS)]
    for site in store.sites:
        assert stored(tmp_path / "s", site) == {(s, t): (s, t) for s in range(10) for t in range(4)}
        assert (store.train(site)[:, 2] == site.layer).all()


def test_axes_go_with_a_mask_and_token_ids_of_the_sequences(tmp_path):
    mask = np.arange(TOKENS) < np.arange(1, SEQUENCES + 1)[:, None]
    ids = np.random.default_rng(0).integers(0, 99, (SEQUENCES, TOKENS))
    ids[5:] = ids[5:6]
    content = {"acts": grid().transpose(1, 0, 2, 3), "attention_mask": mask, "input_ids": ids}
    np.savez(tmp_path / "x.npz", **content)
    axes = "sequence,layer,token,d_in"
    done = import_activations(tmp_path / "x.npz", tmp_path / "s", position=-1, axes=axes)
    assert (len(done.entries), done.rows) == (LAYERS, LAYERS * SEQUENCES)
    for layer in range(LAYERS):
        found = stored(tmp_path / "s", Site(layer, -1))
        assert {token for _, token in found.values()} == {0, 1, 2, 3}
    assert any("4 of 10 sequences have the same tokens" in note for note in done.notes)


def test_axes_of_positions_and_of_size_one(tmp_path):
    np.save(tmp_path / "x.npy", grid().transpose(1, 0, 2, 3)[None])
    axes = "1,sequence,layer,position,d_in"
    import_activations(tmp_path / "x.npy", tmp_path / "s", axes=axes)
    store = open_store(tmp_path / "s")
    assert store.sites == [Site(layer, p) for layer in range(LAYERS) for p in range(TOKENS)]
    found = stored(tmp_path / "s", Site(1, 2))
    assert {place[0]: said for place, said in found.items()} == {s: (s, 2) for s in range(10)}


def test_axes_give_one_layer_on_request(tmp_path):
    np.save(tmp_path / "x.npy", grid())
    axes = "layer,sequence,token,d_in"
    import_activations(tmp_path / "x.npy", tmp_path / "s", layer=1, position=0, axes=axes)
    assert open_store(tmp_path / "s").sites == [Site(1, 0)]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (None, r"4 dimensions \(shape \[3, 10, 4, 6\]\).*--axes sequence,layer,token,d_in"),
        ("layer,token,d_in", "expected 4 names, one for each dimension, of sequence, layer"),
        ("layer,head,token,d_in", "expected 4 names"),
        ("layer,token,token,d_in", "each once"),
        ("layer,1,token,d_in", "dimension 1 of .* has 10 entries, not 1"),
    ],
)
def test_axes_that_do_not_fit_are_refused(tmp_path, axes, words):
    np.save(tmp_path / "x.npy", grid())
    with pytest.raises(UserError, match=words):
        import_activations(tmp_path / "x.npy", tmp_path / "s", **PLACE, axes=axes)


def test_axes_where_there_is_no_one_array_are_refused(tmp_path):
    refused(
        tmp_path,
        prompts(),
        "--axes sequence,d_in: it names the dimensions of one array",
        axes="sequence,d_in",
    )
