"""The columns of a shard, and conversion between torch and Arrow without a Python object per row.

An activation is one non-null ``FixedSizeBinary(d_in * itemsize)`` value: pyarrow reads that column
6 to 10 times faster than a list column, and it carries bfloat16, which Arrow lacks.
"""

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:  # a worker that only passes shards on need not import torch
    import torch
    from torch import Tensor

Dtype = Literal["float16", "bfloat16", "float32"]
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
DTYPE_KEY, D_IN_KEY = b"raysae.dtype", b"raysae.d_in"


def shard_schema(dtype: str, d_in: int) -> pa.Schema:
    """The Arrow schema of a shard whose activations are ``d_in`` values of ``dtype``."""
    width = d_in * ITEM_BYTES[dtype]
    return pa.schema(
        [
            pa.field("activation", pa.binary(width), nullable=False),
            pa.field("sequence", pa.int64(), nullable=False),
            pa.field("token_index", pa.int32(), nullable=False),
            pa.field("token_id", pa.int32(), nullable=False),
        ],
        metadata={DTYPE_KEY: dtype.encode(), D_IN_KEY: str(d_in).encode()},
    )


SEQUENCES_SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("documents", pa.list_(pa.int64()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_id", pa.list_(pa.int32()), nullable=False),
        pa.field("token_start", pa.list_(pa.int32()), nullable=False),
        pa.field("token_end", pa.list_(pa.int32()), nullable=False),
        pa.field("is_text", pa.list_(pa.bool_()), nullable=False),
        pa.field("patterns", pa.list_(pa.int32()), nullable=False),
    ]
)
"""The columns of ``sequences/part-*.parquet``: a row per sequence, with lists of an item per token."""


def columns_text(schema: pa.Schema) -> str:
    """The names and types of a schema's columns, for messages."""
    return ", ".join(f"{f.name} {f.type}{' or null' if f.nullable else ''}" for f in schema)


def torch_dtype(dtype: str) -> "torch.dtype":
    """The torch dtype of a store's dtype, such as ``"bfloat16"``."""
    import torch

    return getattr(torch, dtype)


def empty_rows(rows: int, d_in: int, dtype: str) -> "Tensor":
    """Memory for rows ``[rows, d_in]`` of a store's dtype, whose values are not set.

    It is numpy's, which asks the kernel for huge pages where it is large, as torch's is not: to fill
    64 MB for the first time takes less than half as long.
    """
    import torch

    if not rows:
        return torch.empty(0, d_in, dtype=torch_dtype(dtype))
    memory = np.empty((rows, d_in * ITEM_BYTES[dtype]), np.uint8)
    return torch.from_numpy(memory).view(torch_dtype(dtype))


def to_arrow(rows: "Tensor") -> pa.Array:
    """Rows ``[rows, d_in]`` as a FixedSizeBinary array of ``rows`` values. It shares their memory when
    they are contiguous."""
    import torch

    rows = rows.contiguous()
    width = rows.shape[1] * rows.element_size()
    buffer = pa.py_buffer(rows.view(torch.uint8).numpy())
    return pa.Array.from_buffers(pa.binary(width), len(rows), [None, buffer])


def to_torch(column: pa.ChunkedArray, dtype: str) -> "list[Tensor]":
    """The column's chunks as tensors ``[rows, d_in]`` of ``dtype``. They share the column's memory, which
    must not be written to."""
    return [_chunk_to_torch(chunk, dtype) for chunk in column.chunks if len(chunk)]


def _chunk_to_torch(chunk: pa.Array, dtype: str) -> "Tensor":
    width = chunk.type.byte_width
    start = chunk.offset * width
    content = chunk.buffers()[1].slice(start, len(chunk) * width)
    return as_values(content, dtype).view(len(chunk), -1)


def as_values(content: pa.Buffer, dtype: str) -> "Tensor":
    """A buffer's bytes as values ``[*]`` of ``dtype``. They share its memory, which must not be written
    to."""
    import torch

    # numpy accepts any buffer, also those of Ray's object store, which torch.frombuffer refuses
    data = np.frombuffer(content, dtype=np.uint8)
    with warnings.catch_warnings():
        # torch warns of read-only memory; nothing here writes to it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(data).view(torch_dtype(dtype))
