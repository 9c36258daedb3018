"""Arrow types shared by Parquet and SAELens files: lists of numbers, with or without extension types.

Shapes: S rows of the file, T items of a list.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysae.activations.importing.columns import TextIds, hashed
from raysae.errors import UserError


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type that an extension type stores; any other type itself. Arrow knows the extension types
    that loaded libraries have registered."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def storage(column: pa.Array) -> pa.Array:
    """The array that an extension array stores; any other array itself."""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def is_list(kind: pa.DataType) -> bool:
    """Whether the type is a list of any kind."""
    tests = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(test(kind) for test in tests)


def is_float_list(kind: pa.DataType) -> bool:
    """Whether the type is a list of floating point numbers."""
    return is_list(kind) and pa.types.is_floating(kind.value_type)


def is_grid(kind: pa.DataType) -> bool:
    """Whether the type is a list of lists of floating point numbers, such as an ``Array2D``."""
    kind = storage_type(kind)
    return is_list(kind) and is_float_list(kind.value_type)


def is_text(kind: pa.DataType) -> bool:
    """Whether the type is text, also of a dictionary's numbers."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether the type is a number or a boolean."""
    tests = pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating
    return any(test(kind) for test in tests)


def values_of(column: pa.Array, where: str) -> Any:
    """The values of a column without nulls: numbers ``[S]``, ``[S, T]`` of lists of one length or flat
    of others, or the hashes of texts; None for other types.

    Raises UserError, naming ``where``, when a list holds a null.
    """
    column = storage(column)
    if is_text(column.type):
        return TextIds(hashed(column.cast(pa.large_string()).to_pylist()))
    if is_list(column.type) and is_number(column.type.value_type):
        flat = column.flatten()
        if flat.null_count:
            raise UserError(f"{where}: nulls among the numbers of its lists")
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        even = len(lengths) > 0 and bool((lengths == lengths[0]).all())
        values = flat.to_numpy(zero_copy_only=False)
        return values.reshape(len(lengths), -1) if even else values
    return column.to_numpy(zero_copy_only=False) if is_number(column.type) else None


def joined(parts: list[Any]) -> Any:
    """The values of a column's parts in one; lists of unequal lengths flat."""
    if not parts or any(part is None for part in parts):
        return None
    if isinstance(parts[0], TextIds):
        return TextIds(np.concatenate([part.values for part in parts]))
    even = len({part.shape[1:] for part in parts}) == 1
    return np.concatenate(parts if even else [part.reshape(-1) for part in parts])
