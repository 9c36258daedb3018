"""The split follows from the text: groups, ids of any kind, token ids, and what is told without them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysae.activations import open_store
from raysae.activations.importing.columns import hashed
from raysae.activations.importing.import_command import found as printed
from raysae.activations.importing.options import ImportOptions
from raysae.activations.importing.run import import_activations, plan_import
from raysae.activations.splits import SPLITS, split_of
from raysae.errors import UserError
from raysae.sites import Site
from tests.activations.importing.test_masks import FORMATS, npz, pt

S, T, D = 120, 4, 6
PLACE: dict[str, Any] = {"layer": 0, "position": "all", "validation": 0.3, "test": 0.3}
DOCUMENT = np.arange(S) // 3
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((S, T, D)).astype(np.float32)
ROWS[:, :, 0] = np.arange(S)[:, None]
TOKENS = RNG.integers(0, 1000, (S, T))


def splits_of(store, site=None):
    """The splits in which the rows of each sequence of the file lie; the rows say their sequence."""
    store, found = open_store(store), {}
    for name in SPLITS:
        rows = getattr(store, name)(site or store.sites[0])
        for number in rows[:, 0].to(torch.int64).tolist():
            found.setdefault(number, set()).add(name)
    return found


def one_split(store, key):
    """Whether all sequences with the same key lie in one split, and all splits are used."""
    by_key: dict[Any, set[str]] = {}
    for number, names in splits_of(store).items():
        by_key.setdefault(key[number], set()).update(names)
    assert set().union(*by_key.values()) == set(SPLITS)
    return all(len(names) == 1 for names in by_key.values())


@pytest.mark.parametrize("column", ["doc_id", "document", "chat_id", "conversation_id", "group"])
@pytest.mark.parametrize("per", ["sequence", "row"])
def test_all_of_one_group_lie_in_one_split(tmp_path, column, per):
    group = DOCUMENT if per == "sequence" else np.repeat(DOCUMENT, T)
    content = {"activations": ROWS, column: group, "sequence_id": np.arange(S)}
    import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE)
    assert one_split(tmp_path / "s", DOCUMENT)
    sequences = {
        sequence
        for name in SPLITS
        for sequence in open_store(tmp_path / "s")
        .read(open_store(tmp_path / "s").entry(Site(0, "all")).shards[0], name)["sequence"]
        .to_pylist()
    }
    assert sequences == set(DOCUMENT.tolist()), (
        "FORMAT.md: the split follows from the sequence's id"
    )


def test_without_a_group_they_do_not(tmp_path):
    content = {"activations": ROWS, "sequence_id": np.arange(S)}
    import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE)
    assert not one_split(tmp_path / "s", DOCUMENT)


@pytest.mark.parametrize("name", ["npz", "pt", "safetensors", "parquet", "parquet_grids", "hdf5"])
def test_a_key_names_the_group_in_every_format(tmp_path, name):
    file = FORMATS_OF_ANY[name](tmp_path / "x", {"activations": ROWS.copy(), "who": DOCUMENT})
    import_activations(file, tmp_path / "s", **PLACE, keys={"group": "who"})
    assert one_split(tmp_path / "s", DOCUMENT)


def parquet(path, content):
    columns = {n: v.tolist() for n, v in content.items() if n != "activations"}
    kind = pa.fixed_shape_tensor(pa.float32(), [T, D])
    rows = pa.array(content["activations"].reshape(-1))
    tensors = pa.FixedSizeListArray.from_arrays(rows, T * D)
    columns["activations"] = pa.ExtensionArray.from_storage(kind, tensors)
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


FORMATS_OF_ANY = {**FORMATS, "parquet": parquet}
NAMES = np.array([f"document {number} ü" for number in DOCUMENT])


def test_ids_that_are_text_are_hashed_alike_in_every_format(tmp_path):
    def lists(path, content):
        content = {
            n: v.tolist() if v.dtype.kind == "U" else torch.from_numpy(v)
            for n, v in content.items()
        }
        torch.save(content, path.with_suffix(".pt"))
        return path.with_suffix(".pt")

    def text_hdf5(path, content):
        import h5py

        with h5py.File(path.with_suffix(".h5"), "w") as file:
            file["activations"] = content["activations"]
            file["doc_id"] = content["doc_id"].tolist()
        return path.with_suffix(".h5")

    found = []
    for number, write in enumerate((npz, lists, parquet, text_hdf5)):
        file = write(tmp_path / str(number), {"activations": ROWS, "doc_id": NAMES})
        import_activations(file, tmp_path / f"s{number}", **PLACE)
        found.append(
            [shard.sha256 for shard in open_store(tmp_path / f"s{number}").manifest.sites[0].shards]
        )
        assert one_split(tmp_path / f"s{number}", DOCUMENT)
    assert all(one == found[0] for one in found)
    np.save(tmp_path / "ids.npy", NAMES)
    np.save(tmp_path / "x.npy", ROWS)
    import_activations(tmp_path / "x.npy", tmp_path / "s", **PLACE, sequences=tmp_path / "ids.npy")
    shards = open_store(tmp_path / "s").manifest.sites[0].shards
    assert [shard.sha256 for shard in shards] == found[0]


def test_a_hash_is_the_first_bytes_of_sha256():
    import hashlib

    digest = hashlib.sha256("a ü".encode()).digest()
    assert hashed(["a ü", "b", "a ü"]).tolist()[0] == int.from_bytes(
        digest[:8], "little", signed=True
    )
    assert len(set(hashed(["a ü", "b", "a ü"]).tolist())) == 2


def test_a_group_that_cuts_sequences_is_asked_about(tmp_path):
    """Packed sequences have rows of several documents: no split keeps both whole."""
    documents = np.arange(S * T) // 6
    file = npz(tmp_path / "x", {"activations": ROWS, "doc_id": documents})
    with pytest.raises(
        UserError, match=r"doc_id could be the group.*--key group=doc_id.*group=none"
    ):
        import_activations(file, tmp_path / "s", **PLACE)
    import_activations(file, tmp_path / "s", **PLACE, keys={"group": "doc_id"})
    import_activations(file, tmp_path / "t", **PLACE, keys={"group": "none"})
    assert one_split(tmp_path / "t", np.arange(S))


def test_several_groups_are_asked_about(tmp_path):
    content = {"activations": ROWS, "doc_id": DOCUMENT, "chat_id": DOCUMENT}
    with pytest.raises(UserError, match="several could be the group: doc_id, chat_id"):
        import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE)


def test_a_column_of_another_length_or_kind_is_no_group_by_its_name_alone(tmp_path):
    content = {"activations": ROWS, "document": np.arange(7), "page": np.array(["a", "b"])}
    import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE)
    content = {"activations": ROWS, "doc_id": np.arange(7)}
    with pytest.raises(UserError, match=r"doc_id \(group\) has 7 values; expected 480 or 120"):
        import_activations(npz(tmp_path / "y", content), tmp_path / "r", **PLACE)
    table = pa.table({"acts": list(ROWS[:, 0]), "page": [0.5] * S, "document": [{"a": 1}] * S})
    pq.write_table(table, tmp_path / "x.parquet")
    import_activations(tmp_path / "x.parquet", tmp_path / "t", **PLACE)
    with pytest.raises(
        UserError, match=r"page \(group\) is double; expected whole numbers or text"
    ):
        import_activations(tmp_path / "x.parquet", tmp_path / "u", **PLACE, keys={"group": "page"})


def test_ids_of_a_file_of_their_own_count_more_than_a_group(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(S) % 40)
    file = npz(tmp_path / "x", {"activations": ROWS, "doc_id": DOCUMENT})
    import_activations(file, tmp_path / "s", **PLACE, sequences=tmp_path / "ids.npy")
    assert one_split(tmp_path / "s", np.arange(S) % 40)


def test_ids_that_occur_in_several_files_of_a_folder_stay_together(tmp_path):
    (tmp_path / "x").mkdir()
    for number in range(4):
        table = pa.table({"acts": list(ROWS[number::4, 0]), "doc_id": DOCUMENT[number::4]})
        pq.write_table(table, tmp_path / f"x/{number}.parquet")
    import_activations(tmp_path / "x", tmp_path / "s", **PLACE)
    assert one_split(tmp_path / "s", DOCUMENT)


# Token ids and texts

REPEATED = np.arange(S) % 40
"""Which of 40 texts each sequence has."""


@pytest.mark.parametrize("name", ["npz", "pt", "pt_batches", "parquet", "parquet_grids", "hdf5"])
def test_sequences_of_the_same_tokens_lie_in_one_split_and_are_counted(tmp_path, name):
    content = {"activations": ROWS.copy(), "input_ids": TOKENS[REPEATED]}
    done = import_activations(
        FORMATS_OF_ANY[name](tmp_path / "x", content), tmp_path / "s", **PLACE
    )
    assert one_split(tmp_path / "s", REPEATED)
    assert any(
        "80 of 120 sequences have the same tokens as an earlier one" in n for n in done.notes
    )


def test_a_text_is_the_same_however_it_is_padded(tmp_path):
    rows = np.zeros((2 * S, T + 2, D), np.float32)
    ids, mask = np.full((2, S, T + 2), 9), np.zeros((2, S, T + 2), int)
    for copy, shift in enumerate((0, 2)):
        ids[copy, :, shift : T + shift] = TOKENS
        mask[copy, :, shift : T + shift] = 1
    rows[:, :, 0] = np.arange(2 * S)[:, None]
    content = {"acts": rows, "token_ids": ids.reshape(2 * S, -1), "mask": mask.reshape(2 * S, -1)}
    import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE)
    assert one_split(tmp_path / "s", np.arange(2 * S) % S)


def test_the_order_of_tokens_and_their_number_count(tmp_path):
    ids = np.stack([TOKENS, TOKENS[:, ::-1]]).reshape(2 * S, T)
    rows = np.concatenate([ROWS, ROWS])
    done = import_activations(
        npz(tmp_path / "x", {"a": rows, "input_ids": ids}), tmp_path / "s", **PLACE
    )
    assert not any("same tokens" in note for note in done.notes)


def test_without_repeats_the_ids_are_the_numbers_in_the_file(tmp_path):
    import_activations(
        npz(tmp_path / "x", {"a": ROWS, "input_ids": TOKENS}), tmp_path / "s", **PLACE
    )
    codes = split_of(np.arange(S), 0.3, 0.3)
    assert splits_of(tmp_path / "s") == {s: {SPLITS[codes[s]]} for s in range(S)}


def test_flat_rows_with_token_ids_of_sequences_are_sequences(tmp_path):
    content = {"activations": ROWS.reshape(-1, D), "input_ids": TOKENS}
    plan = plan_import(npz(tmp_path / "x", content), tmp_path / "s", ImportOptions(**PLACE))
    assert f"rows read as [{S}, {T}, {D}], by the shape of input_ids" in printed(plan)
    import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE)
    assert one_split(tmp_path / "s", np.arange(S))


def test_ids_that_differ_for_the_same_tokens_are_told(tmp_path):
    content = {"a": ROWS, "input_ids": TOKENS[REPEATED], "sequence": np.arange(S)}
    done = import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE)
    assert any(
        "80 of 120 sequences have the same tokens as one with another id" in n for n in done.notes
    )
    import_activations(
        npz(tmp_path / "x", content), tmp_path / "t", **PLACE, keys={"sequence": "none"}
    )
    assert one_split(tmp_path / "t", REPEATED)


@pytest.mark.parametrize("column", ["text", "prompts", "question"])
def test_a_column_of_texts_keeps_a_text_in_one_split(tmp_path, column):
    texts = [f"text {number} of many" for number in REPEATED]
    table = pa.table({"acts": list(ROWS[:, 0]), column: texts, "layer": [0] * S})
    pq.write_table(table, tmp_path / "x.parquet")
    place = {**PLACE, "layer": None}
    import_activations(tmp_path / "x.parquet", tmp_path / "s", **place)
    assert one_split(tmp_path / "s", REPEATED)
    torch.save({"acts": torch.from_numpy(ROWS), column: texts}, tmp_path / "x.pt")
    import_activations(tmp_path / "x.pt", tmp_path / "t", **PLACE)
    assert one_split(tmp_path / "t", REPEATED)


# Without ids and tokens


def test_rows_that_repeat_are_counted_and_told(tmp_path):
    np.save(tmp_path / "x.npy", ROWS[REPEATED][:, 0])
    done = import_activations(tmp_path / "x.npy", tmp_path / "s", **PLACE)
    assert any("80 of 120 rows are equal to an earlier one" in note for note in done.notes)
    np.save(tmp_path / "y.npy", ROWS[REPEATED])
    done = import_activations(tmp_path / "y.npy", tmp_path / "t", **{**PLACE, "position": -1})
    assert any("80 of 120 sequences are equal to an earlier one" in note for note in done.notes)


def test_repeats_are_no_concern_where_ids_decide_or_they_are_few(tmp_path):
    content = {"acts": ROWS[REPEATED], "doc_id": DOCUMENT}
    assert import_activations(npz(tmp_path / "x", content), tmp_path / "s", **PLACE).notes == ()
    rows = RNG.standard_normal((500, D)).astype(np.float32)
    rows[7] = rows[3]
    np.save(tmp_path / "x.npy", rows)
    assert import_activations(tmp_path / "x.npy", tmp_path / "t", **PLACE).notes == ()


def test_rows_that_are_alike_where_they_are_looked_at_are_not_taken_for_equal(tmp_path):
    rows = np.zeros((400, 64), np.float32)
    rows[np.arange(400), 1 + 4 * (np.arange(400) % 15)] = np.arange(400) + 1.0
    np.save(tmp_path / "x.npy", rows)
    assert import_activations(tmp_path / "x.npy", tmp_path / "s", **PLACE).notes == ()


def test_the_printout_says_what_the_split_follows_from(tmp_path):
    file = npz(tmp_path / "x", {"acts": ROWS, "doc_id": NAMES, "sequence_id": np.arange(S)})
    said = printed(plan_import(file, tmp_path / "s", ImportOptions(**PLACE)))
    assert "group from doc_id" in said and "sequence from sequence_id" in said
    assert "doc_id is text: its hash is the id" in said and "the split follows from doc_id" in said


def test_groups_are_aligned_over_layers_added_later(tmp_path):
    for layer in (0, 1):
        file = pt(tmp_path / str(layer), {"acts": ROWS, "chat_id": DOCUMENT})
        import_activations(file, tmp_path / "s", **{**PLACE, "layer": layer}, shard_rows=100)
    found = [splits_of(tmp_path / "s", Site(layer, "all")) for layer in (0, 1)]
    assert found[0] == found[1] and one_split(tmp_path / "s", DOCUMENT)


def test_a_text_beside_ids_is_no_second_id(tmp_path):
    texts = [f"text {number}" for number in range(S)]
    content = {"acts": torch.from_numpy(ROWS), "problem": texts, "problem_id": DOCUMENT.tolist()}
    torch.save({**content, "example": ["only one"], "document": "a title"}, tmp_path / "x.pt")
    import_activations(tmp_path / "x.pt", tmp_path / "s", **PLACE)
    assert one_split(tmp_path / "s", DOCUMENT)
    table = pa.table({"acts": list(ROWS[:, 0]), "problem": texts, "problem_id": DOCUMENT})
    pq.write_table(table, tmp_path / "x.parquet")
    import_activations(tmp_path / "x.parquet", tmp_path / "t", **PLACE)
    assert one_split(tmp_path / "t", DOCUMENT)


def test_a_text_column_with_nulls_is_not_used(tmp_path):
    table = pa.table({"acts": list(ROWS[:, 0]), "text": ["a", None] * (S // 2)})
    pq.write_table(table, tmp_path / "x.parquet")
    import_activations(tmp_path / "x.parquet", tmp_path / "s", **PLACE)
    assert one_split(tmp_path / "s", np.arange(S))
