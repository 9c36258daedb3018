"""Padding never becomes activations: masks in every format and sense, pad tokens, and what is asked."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from raysae.activations import open_store
from raysae.activations.importing.run import import_activations
from raysae.errors import UserError
from raysae.sites import Site
from tests.activations.importing.foreign import tables

S, T, D = 40, 9, 6
SITE = Site(0, "all")
PLACE: dict[str, Any] = {"layer": 0, "position": "all"}
PADDING = 99.0


def lengths(seed=0):
    found = np.random.default_rng(seed).integers(2, T + 1, S)
    found[5] = T
    return found


def mask_of(side="right"):
    """A mask [S, T], 1 is a token."""
    place = np.arange(T)
    counts = lengths()[:, None]
    return (place < counts if side == "right" else place >= T - counts).astype(np.int64)


def activations(mask):
    """Rows that say their place: sequence and number among the tokens; padding is 99."""
    rows = np.zeros((S, T, D), np.float32)
    rows[:, :, 0] = np.arange(S)[:, None]
    rows[:, :, 1] = np.cumsum(mask, axis=1) - 1
    rows[:, :, 2:] = np.random.default_rng(1).standard_normal((S, T, D - 2))
    rows[mask == 0] = PADDING
    return rows


def stored(store, site=SITE):
    """(sequence, token index) as the store has them, and the rows' own word for it."""
    store, found, said = open_store(store), [], []
    for table in tables(store, site):
        rows = np.frombuffer(b"".join(table["activation"].to_pylist()), np.float32).reshape(-1, D)
        columns = table["sequence"].to_pylist(), table["token_index"].to_pylist()
        found += list(zip(*columns, strict=True))
        said += [(int(row[0]), int(row[1])) for row in rows]
    return found, said


def wanted():
    return sorted((s, t) for s, count in enumerate(lengths()) for t in range(count))


def npz(path, content):
    np.savez(path.with_suffix(".npz"), **content)
    return path.with_suffix(".npz")


def pt(path, content):
    torch.save({k: torch.from_numpy(v) for k, v in content.items()}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def pt_lists(path, content):
    rows = torch.from_numpy(content.pop("activations"))
    others = {name: value.tolist() for name, value in content.items()}
    torch.save({"activations": rows, "batch": others}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def pt_batches(path, content):
    parts = {name: list(torch.from_numpy(v).split(7)) for name, v in content.items()}
    torch.save(parts, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def pt_flat(path, content):
    """[batch * tokens, d_in] with a mask [batch, tokens]."""
    content["activations"] = content["activations"].reshape(S * T, D)
    return pt(path, content)


def safetensors(path, content):
    save_file(
        {k: torch.from_numpy(v) for k, v in content.items()}, path.with_suffix(".safetensors")
    )
    return path.with_suffix(".safetensors")


def parquet(path, content):
    rows = content.pop("activations").reshape(-1)
    tensors = pa.FixedSizeListArray.from_arrays(pa.array(rows), T * D)
    kind = pa.fixed_shape_tensor(pa.float32(), [T, D])
    columns = {name: value.tolist() for name, value in content.items()}
    table = pa.table({"activations": pa.ExtensionArray.from_storage(kind, tensors), **columns})
    pq.write_table(table, path.with_suffix(".parquet"), row_group_size=11)
    return path.with_suffix(".parquet")


def parquet_grids(path, content):
    table = pa.table({name: value.tolist() for name, value in content.items()})
    at = table.schema.get_field_index("activations")
    kind = pa.field("activations", pa.list_(pa.list_(pa.float32())))
    pq.write_table(table.cast(table.schema.set(at, kind)), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def parquet_rows(path, content):
    """A row a token, with a number in the column of the mask."""
    content["activations"] = content["activations"].reshape(S * T, D).tolist()
    columns = {name: v if name == "activations" else v.reshape(-1) for name, v in content.items()}
    columns["sequence"] = np.repeat(np.arange(S), T)
    columns["token_index"] = np.maximum(np.cumsum(mask_of(), axis=1) - 1, 0).reshape(-1)
    rows = pa.array(columns.pop("activations"), pa.list_(pa.float32()))
    pq.write_table(pa.table({"activations": rows, **columns}), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def hdf5(path, content):
    import h5py

    with h5py.File(path.with_suffix(".h5"), "w") as file:
        for name, value in content.items():
            file[name] = value
    return path.with_suffix(".h5")


def saelens(path, content):
    from datasets import Array2D, Dataset, Features, Sequence, Value, disable_progress_bars

    disable_progress_bars()
    name = "blocks.0.hook_resid_pre"
    content[name] = content.pop("activations")
    kinds = {
        n: Sequence(Value(dtype=str(v.dtype)), length=T) for n, v in content.items() if n != name
    }
    features = Features({name: Array2D(shape=(T, D), dtype="float32"), **kinds})
    Dataset.from_dict(content, features=features).save_to_disk(path)
    return path


FORMATS = {
    write.__name__: write
    for write in (
        *(
            npz,
            pt,
            pt_lists,
            pt_batches,
            pt_flat,
            safetensors,
            parquet,
            parquet_grids,
            parquet_rows,
        ),
        *(hdf5, saelens),
    )
}


@pytest.mark.parametrize("name", FORMATS)
def test_masked_rows_never_become_activations(tmp_path, name):
    mask = mask_of()
    file = FORMATS[name](tmp_path / "x", {"activations": activations(mask), "attention_mask": mask})
    import_activations(file, tmp_path / "s", **PLACE)
    found, said = stored(tmp_path / "s")
    assert sorted(said) == wanted() and found == said


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "parquet_rows"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", [0, 1, 4, -1, -2, -5])
def test_positions_count_tokens_and_not_padding(tmp_path, name, side, position):
    mask = mask_of(side)
    file = FORMATS[name](tmp_path / "x", {"activations": activations(mask), "attention_mask": mask})
    import_activations(file, tmp_path / "s", layer=0, position=position)
    found, said = stored(tmp_path / "s", Site(0, position))
    counts = {s: int(c) for s, c in enumerate(lengths()) if c > position and c >= -position}
    assert sorted(said) == sorted((s, position % counts[s]) for s in counts)
    assert found == said, "the token index does not count padding"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("attention_mask", lambda m: m.astype(bool)),
        ("attention_mask", lambda m: m.astype(np.float32)),
        ("attention_mask", lambda m: m[:, :, None]),
        ("attention_mask", lambda m: m.reshape(-1)),
        ("mask", lambda m: m),
        ("valid_mask", lambda m: m),
        ("batch.attention_mask", lambda m: m.astype(np.uint8)),
        ("padding_mask", lambda m: 1 - m),
        ("key_padding_mask", lambda m: m == 0),
        ("pad_mask", lambda m: 1.0 - m),
        ("is_pad", lambda m: m == 0),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_of_either_sense_are_known_by_name(tmp_path, name, change, side):
    mask = mask_of(side)
    file = pt(tmp_path / "x", {"activations": activations(mask), name: change(mask)})
    import_activations(file, tmp_path / "s", **PLACE)
    assert sorted(stored(tmp_path / "s")[1]) == wanted()


@pytest.mark.parametrize(
    ("keys", "change"),
    [({"mask": "which"}, lambda m: m), ({"padding": "which"}, lambda m: 1 - m)],
)
def test_a_key_names_the_mask_and_its_sense(tmp_path, keys, change):
    mask = mask_of()
    content = {
        "activations": activations(mask),
        "which": change(mask),
        "attention_mask": mask * 0 + 1,
    }
    import_activations(pt(tmp_path / "x", content), tmp_path / "s", **PLACE, keys=keys)
    assert sorted(stored(tmp_path / "s")[1]) == wanted()


def test_lengths_are_asked_about_and_taken_on_request(tmp_path):
    mask = mask_of()
    file = pt(tmp_path / "x", {"activations": activations(mask), "lengths": lengths()})
    with pytest.raises(UserError, match=r"lengths says .* fewer tokens.*--key mask=lengths"):
        import_activations(file, tmp_path / "s", **PLACE)
    import_activations(file, tmp_path / "s", **PLACE, keys={"mask": "lengths"})
    assert sorted(stored(tmp_path / "s")[1]) == wanted()


def tokens(mask, pad):
    ids = np.random.default_rng(3).integers(5, 500, (S, T))
    ids[mask == 0] = pad
    return ids


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["pt", "parquet", "hdf5", "saelens"])
def test_the_pad_token_tells_padding(tmp_path, name, side):
    mask = mask_of(side)
    ids = tokens(mask, 3)
    ids[5, 4] = 3  # within a text it is text
    content = {"activations": activations(mask), "input_ids": ids}
    file = FORMATS[name](tmp_path / "x", content)
    import_activations(file, tmp_path / "s", **PLACE, pad_token=3)
    assert sorted(stored(tmp_path / "s")[1]) == wanted()


def test_a_pad_token_in_the_file_is_used(tmp_path):
    mask = mask_of()
    content = {
        "activations": torch.from_numpy(activations(mask)),
        "input_ids": torch.from_numpy(tokens(mask, 0)),
        "config": {"pad_token_id": 0, "vocab_size": 500},
    }
    torch.save(content, tmp_path / "x.pt")
    import_activations(tmp_path / "x.pt", tmp_path / "s", **PLACE)
    assert sorted(stored(tmp_path / "s")[1]) == wanted()


def refused(tmp_path, content, words, **options):
    file = pt(tmp_path / "x", content)
    with pytest.raises(UserError, match=words):
        import_activations(file, tmp_path / "s", **{**PLACE, **options})
    assert not (tmp_path / "s").exists()


MASK = mask_of()
ROWS = activations(MASK)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (
            {"attention_mask": MASK.T},
            r"attention_mask .* is \[9, 40\].*activations are \[40, 9, 6\]",
        ),
        ({"attention_mask": MASK[:, 1:]}, r"is \[40, 8\]"),
        ({"attention_mask": MASK[:, 0]}, r"is \[40\]"),
        (
            {"attention_mask": np.where(MASK, 0.0, -1e9)},
            "holds -1000000000.0 at row .*save mask == 0",
        ),
        ({"attention_mask": MASK * 2}, "holds 2 at row 0"),
        ({"attention_mask": MASK * 0}, "all 360 rows are padding|40 of 40 sequences would have no"),
        ({"mask": 1 - MASK}, r"with 1 for a token, .*--key padding=NAME where 1 is padding"),
        ({"padding_mask": MASK}, r"with 1 for padding, .*--key mask=NAME where 1 is a token"),
        ({"attention_mask": MASK[:, None, None, :-1]}, r"is \[40, 1, 1, 8\]"),
        ({"mask": MASK, "attention_mask": MASK}, "several could be the mask: mask, attention_mask"),
        ({"attention_mask": MASK, "padding_mask": 1 - MASK}, "several could be the mask"),
    ],
)
def test_masks_that_do_not_fit_or_are_not_clear_are_refused(tmp_path, beside, words):
    refused(tmp_path, {"activations": ROWS, **beside}, words)


def test_a_mask_whose_tokens_are_all_padding_is_asked_about(tmp_path):
    """No sequence is full, so only the token ids show that 1 is padding here."""
    mask = MASK.copy()
    mask[:, -1] = 0
    content = {"activations": activations(mask), "mask": 1 - mask, "input_ids": tokens(mask, 0)}
    refused(tmp_path, content, "or tokens of one id only")
    done = import_activations(tmp_path / "x.pt", tmp_path / "s", **PLACE, keys={"padding": "mask"})
    assert done.rows == mask.sum()


def test_a_position_that_no_sequence_has_is_refused(tmp_path):
    mask = MASK.copy()
    mask[:, 3:] = 0
    content = {"activations": activations(mask), "attention_mask": mask}
    refused(tmp_path, content, "--position 3: its sequences have 3 tokens", position=3)


def test_a_pad_token_without_token_ids_is_refused(tmp_path):
    refused(
        tmp_path, {"activations": ROWS}, "--pad-token 0: the file has no token ids", pad_token=0
    )


def test_the_mask_may_be_left_out(tmp_path):
    file = pt(tmp_path / "x", {"activations": ROWS, "attention_mask": MASK})
    assert import_activations(file, tmp_path / "s", **PLACE, keys={"mask": "none"}).rows == S * T


def test_masked_rows_keep_the_layers_aligned(tmp_path):
    for layer in (0, 1):
        file = pt(tmp_path / f"x{layer}", {"activations": ROWS + layer, "attention_mask": MASK})
        import_activations(file, tmp_path / "s", layer=layer, position="all", shard_rows=50)
    found = [stored(tmp_path / "s", Site(layer, "all"))[0] for layer in (0, 1)]
    assert found[0] == found[1]


# What is told without a mask


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (PADDING, "rows are runs of equal rows at the ends of sequences, most likely padding"),
        (0.0, "rows are runs of equal rows at the ends of sequences, most likely padding"),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_runs_of_equal_rows_are_told(tmp_path, fill, words, side):
    mask = mask_of(side)
    rows = activations(mask)
    rows[mask == 0] = fill
    np.save(tmp_path / "x.npy", rows)
    done = import_activations(tmp_path / "x.npy", tmp_path / "s", **PLACE)
    count = sum(T - c for c in lengths() if T - c > 1)
    assert any(
        f"{count} of {S * T} {words}" in note and "--key mask" in note for note in done.notes
    )


def test_runs_of_one_token_are_told_with_the_flag(tmp_path):
    mask = mask_of()
    rows = activations(mask)
    rows[mask == 0] = np.random.default_rng(8).standard_normal(((mask == 0).sum(), D))
    file = pt(tmp_path / "x", {"activations": rows, "input_ids": tokens(mask, 7)})
    done = import_activations(file, tmp_path / "s", **PLACE)
    assert any("runs of token 7 at the ends" in n and "--pad-token 7" in n for n in done.notes)


def test_rows_of_zeros_are_told(tmp_path):
    rows = np.random.default_rng(0).standard_normal((300, D)).astype(np.float32)
    rows[::3] = 0
    np.save(tmp_path / "x.npy", rows)
    done = import_activations(tmp_path / "x.npy", tmp_path / "s", **PLACE)
    assert any("100 of 300 rows are all 0" in note for note in done.notes)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_one_row_that_occurs_again_and_again_is_told(tmp_path, share):
    rows = np.random.default_rng(0).standard_normal((400, D)).astype(np.float32)
    again = np.random.default_rng(1).random(400) < share
    rows[again] = PADDING
    content = {"acts": rows, "sequence": np.arange(400) // 10}
    done = import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE)
    told = [note for note in done.notes if f"one row occurs {again.sum()} times in 400" in note]
    assert len(told) == (share > 0.1)


def test_nothing_is_told_of_ordinary_rows(tmp_path):
    rows = np.random.default_rng(0).standard_normal((S, T, D)).astype(np.float32)
    rows[:, 0] = 1.0  # the first token is the same in every text
    rows[:, :, 2:] *= np.random.default_rng(1).random((S, T, D - 2)) < 0.3  # sparse rows
    np.save(tmp_path / "x.npy", rows)
    assert import_activations(tmp_path / "x.npy", tmp_path / "s", **PLACE).notes == ()


@pytest.mark.parametrize("name", ["mask", "attention_mask"])
def test_a_causal_mask_is_not_taken_for_padding(tmp_path, name):
    content = {"activations": ROWS[:T], name: np.tril(np.ones((T, T)))}
    refused(tmp_path, content, f"{name} could be the causal mask")
    assert (
        import_activations(tmp_path / "x.pt", tmp_path / "s", **PLACE, keys={"mask": name}).rows
        == 45
    )


def test_masks_of_four_dimensions_are_read(tmp_path):
    file = pt(tmp_path / "x", {"activations": ROWS, "attention_mask": MASK[:, None, None, :]})
    import_activations(file, tmp_path / "s", **PLACE)
    assert sorted(stored(tmp_path / "s")[1]) == wanted()
