"""The same rows as every kind of file that can be imported, and what a store made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from raysae.activations.schema import shard_schema, to_arrow
from raysae.activations.splits import SPLITS
from raysae.activations.store import Store, open_store
from raysae.sites import Site

SEQUENCES, TOKENS, D_IN = 60, 5, 8
ROWS = SEQUENCES * TOKENS
SEQUENCE = np.repeat(np.arange(SEQUENCES) * 7 + 3, TOKENS)
TOKEN = np.tile(np.arange(TOKENS), SEQUENCES)
HOOK = "blocks.3.hook_resid_post"

Places = dict[tuple[int, int], bytes]


@dataclass(frozen=True)
class Foreign:
    """How a kind of file is written, and what its rows are known by."""

    write: Callable[[Path, Tensor], Path]
    dtypes: tuple[str, ...]
    known_by: str
    """``row``, ``token`` (a dimension of tokens) or ``ids`` (columns)."""
    options: dict[str, Any]


def rows_of(dtype: str, seed: int = 0) -> Tensor:
    """Rows ``[ROWS, D_IN]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, D_IN, generator=generator).to(getattr(torch, dtype))


def places(rows: Tensor, known_by: str) -> Places:
    """The bytes of every row by sequence and token index."""
    keys = {
        "row": [(row, 0) for row in range(ROWS)],
        "token": [divmod(row, TOKENS) for row in range(ROWS)],
        "ids": list(zip(SEQUENCE.tolist(), TOKEN.tolist(), strict=True)),
    }[known_by]
    data = rows.contiguous().view(torch.uint8).numpy()
    return {key: row.tobytes() for key, row in zip(keys, data, strict=True)}


def stored(store: Store | Path, site: Site) -> Places:
    """The same, as a store has it."""
    store = store if isinstance(store, Store) else open_store(store)
    found: Places = {}
    for table in tables(store, site):
        columns = (table[name].to_pylist() for name in ("sequence", "token_index", "activation"))
        found |= {(s, t): value for s, t, value in zip(*columns, strict=True)}
    assert len(found) == store.entry(site).rows.total, "rows of one place"
    return found


def tables(store: Store, site: Site) -> list[pa.Table]:
    """The site's shards by split, in the store's order."""
    return [
        store.read(shard, split)
        for shard in store.entry(site).shards
        for split in SPLITS
        if getattr(shard.rows, split)
    ]


def order(store: Path, site: Site) -> list[int]:
    """The sequences in the store's order."""
    return [s for table in tables(open_store(store), site) for s in table["sequence"].to_pylist()]


def by_token(rows: Tensor) -> Tensor:
    return rows.view(-1, TOKENS, D_IN)


def ids() -> dict[str, Any]:
    return {"problem_ids": SEQUENCE.tolist(), "token_index": torch.from_numpy(TOKEN)}


def pt(content: Callable[[Tensor], Any], **options: Any) -> Callable[[Path, Tensor], Path]:
    def write(folder: Path, rows: Tensor) -> Path:
        torch.save(content(rows), folder / "acts.pt", **options)
        return folder / "acts.pt"

    return write


def npy(shape: Callable[[Tensor], Any], fortran: bool = False) -> Callable[[Path, Tensor], Path]:
    def write(folder: Path, rows: Tensor) -> Path:
        array = np.asarray(shape(rows))
        np.save(folder / "acts.npy", np.asfortranarray(array) if fortran else array)
        return folder / "acts.npy"

    return write


def raw(folder: Path, rows: Tensor) -> Path:
    (folder / "acts.bin").write_bytes(rows.view(torch.uint8).numpy().tobytes())
    return folder / "acts.bin"


def safetensors(content: Callable[[Tensor], dict[str, Tensor]]) -> Callable[[Path, Tensor], Path]:
    def write(folder: Path, rows: Tensor) -> Path:
        save_file(content(rows), folder / "acts.safetensors")
        return folder / "acts.safetensors"

    return write


def parquet(column: Callable[[Tensor], pa.Array], **columns: Any) -> Callable[[Path, Tensor], Path]:
    def write(folder: Path, rows: Tensor) -> Path:
        table = pa.table({"activation": column(rows), **columns})
        pq.write_table(table, folder / "acts.parquet", row_group_size=37)
        return folder / "acts.parquet"

    return write


def parquet_folder(folder: Path, rows: Tensor) -> Path:
    table = pa.table({"acts": lists(rows), "example_id": SEQUENCE, "token_index": TOKEN})
    (folder / "parts").mkdir()
    for number, start in enumerate(range(0, ROWS, 110)):
        pq.write_table(table.slice(start, 110), folder / f"parts/{number}.parquet")
    return folder / "parts"


def own_parquet(folder: Path, rows: Tensor) -> Path:
    dtype = str(rows.dtype).removeprefix("torch.")
    columns = [to_arrow(rows), SEQUENCE, TOKEN.astype(np.int32), TOKEN.astype(np.int32)]
    table = pa.table(columns, schema=shard_schema(dtype, D_IN))
    pq.write_table(table, folder / "acts.parquet", row_group_size=64)
    return folder / "acts.parquet"


def npz(folder: Path, rows: Tensor, save: Callable[..., None] = np.savez, **arrays: Any) -> Path:
    save(folder / "acts.npz", activations=by_token(rows).numpy(), **arrays)
    return folder / "acts.npz"


def hdf5(folder: Path, rows: Tensor, **options: Any) -> Path:
    import h5py

    with h5py.File(folder / "acts.h5", "w") as file:
        file.create_dataset("run/acts", data=by_token(rows).numpy(), **options)
    return folder / "acts.h5"


def npy_folder(folder: Path, rows: Tensor) -> Path:
    (folder / "parts").mkdir()
    for number, part in enumerate(np.split(by_token(rows).numpy(), 4)):
        np.save(folder / f"parts/{number}.npy", part)
    return folder / "parts"


def other_order(rows: Tensor) -> NDArray[Any]:
    array = by_token(rows).numpy()
    return array.astype(array.dtype.newbyteorder(">"))


def grids(rows: Tensor) -> pa.Array:
    return pa.array(by_token(rows).numpy().tolist(), pa.list_(lists(rows).type))


def lists(rows: Tensor) -> pa.Array:
    return fixed_lists(rows).cast(pa.list_(pa.from_numpy_dtype(rows.numpy().dtype)))


def large_lists(rows: Tensor) -> pa.Array:
    return fixed_lists(rows).cast(pa.large_list(pa.from_numpy_dtype(rows.numpy().dtype)))


def fixed_lists(rows: Tensor, width: int = D_IN) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().ravel()), width)


def fixed_tensors(rows: Tensor) -> pa.Array:
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(rows.numpy().dtype), [D_IN])
    return pa.ExtensionArray.from_storage(kind, fixed_lists(rows))


def fixed_token_tensors(rows: Tensor) -> pa.Array:
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(rows.numpy().dtype), [TOKENS, D_IN])
    return pa.ExtensionArray.from_storage(kind, fixed_lists(rows, TOKENS * D_IN))


def saelens(
    folder: Path, rows: Tensor, hook: str = HOOK, shards: int = 1, token_ids: bool = True
) -> Path:
    """As ``CacheActivationsRunner._create_shard`` writes it, in ``shards`` Arrow files."""
    from datasets import Array2D, Dataset, Features, Sequence, Value, disable_progress_bars

    disable_progress_bars()
    dtype = str(rows.dtype).removeprefix("torch.")
    features = {hook: Array2D(shape=(TOKENS, D_IN), dtype=dtype)}
    content: dict[str, Any] = {hook: by_token(rows).numpy()}
    if token_ids:
        features["token_ids"] = Sequence(Value(dtype="int32"), length=TOKENS)
        content["token_ids"] = (SEQUENCE * 10 + TOKEN).reshape(-1, TOKENS).astype(np.int32)
    data = Dataset.from_dict(content, features=Features(features))
    data.save_to_disk(folder / "cached", num_shards=shards)
    return folder / "cached"


IDS = {"sequence": SEQUENCE, "token_index": TOKEN}
ANY, NUMPY = ("float16", "bfloat16", "float32"), ("float16", "float32")
ALL = {"layer": 3, "position": "all"}
FORMATS = {
    "pt matrix": Foreign(pt(lambda x: x), ANY, "row", ALL),
    "pt tokens": Foreign(pt(by_token), ANY, "token", ALL),
    "pt strided": Foreign(
        pt(lambda x: by_token(x).transpose(0, 1).contiguous().transpose(0, 1)), ANY, "token", ALL
    ),
    "pt dictionary": Foreign(
        pt(lambda x: {"activations": x, "metadata": ids(), "config": {"d_model": D_IN, "s": "x"}}),
        ANY, "ids", ALL,
    ),
    "pt legacy": Foreign(
        pt(lambda x: {"run": {"x": x}}, _use_new_zipfile_serialization=False), ANY, "row", ALL
    ),
    "npy matrix": Foreign(npy(lambda x: x), NUMPY, "row", ALL),
    "npy tokens": Foreign(npy(by_token), NUMPY, "token", ALL),
    "npy fortran": Foreign(npy(by_token, fortran=True), NUMPY, "token", ALL),
    "npy of the other byte order": Foreign(npy(other_order), NUMPY, "token", ALL),
    "npy folder": Foreign(npy_folder, NUMPY, "token", {**ALL, "keys": {"sequence": "item"}}),
    "npz": Foreign(npz, NUMPY, "token", ALL),
    "npz compressed": Foreign(partial(npz, save=np.savez_compressed), NUMPY, "token", ALL),
    "hdf5": Foreign(hdf5, NUMPY, "token", ALL),
    "hdf5 in chunks": Foreign(
        partial(hdf5, chunks=(7, 2, 3), compression="gzip"), NUMPY, "token", ALL
    ),
    "pt list of tensors": Foreign(
        pt(lambda x: list(by_token(x).clone())), ANY, "token", {**ALL, "keys": {"sequence": "item"}}
    ),
    "pt list of batches": Foreign(pt(lambda x: list(by_token(x).split(7))), ANY, "token", ALL),
    "pt list of dictionaries": Foreign(
        pt(lambda x: [{"acts": t.clone(), "i": i} for i, t in enumerate(by_token(x))]),
        ANY, "token", {**ALL, "keys": {"sequence": "item"}},
    ),
    "parquet of lists of lists": Foreign(parquet(grids), NUMPY, "token", ALL),
    "raw": Foreign(raw, ANY, "row", {**ALL, "d_in": D_IN}),
    "safetensors tokens": Foreign(safetensors(lambda x: {"x": by_token(x)}), ANY, "token", ALL),
    "safetensors columns": Foreign(
        safetensors(
            lambda x: {
                "x": x,
                "sequence_ids": torch.from_numpy(SEQUENCE),
                "token_idx": torch.from_numpy(TOKEN),
            }
        ),
        ANY, "ids", ALL,
    ),
    "parquet lists": Foreign(parquet(lists, **IDS), NUMPY, "ids", ALL),
    "parquet large lists": Foreign(parquet(large_lists, **IDS), NUMPY, "ids", ALL),
    "parquet fixed lists": Foreign(parquet(fixed_lists), NUMPY, "row", ALL),
    "parquet tensors": Foreign(parquet(fixed_tensors, **IDS), NUMPY, "ids", ALL),
    "parquet token tensors": Foreign(parquet(fixed_token_tensors), NUMPY, "token", ALL),
    "parquet folder": Foreign(parquet_folder, NUMPY, "ids", ALL),
    "parquet of raysae": Foreign(own_parquet, ANY, "ids", ALL),
    "saelens": Foreign(saelens, NUMPY, "token", {}),
}  # fmt: skip
