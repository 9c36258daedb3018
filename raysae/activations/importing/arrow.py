"""What Parquet and Arrow files have in common: lists of numbers, under extension types or not."""

import pyarrow as pa


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type below an extension type: those that a loaded library registered are known to Arrow."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def storage(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def is_list(kind: pa.DataType) -> bool:
    tests = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(test(kind) for test in tests)


def is_float_list(kind: pa.DataType) -> bool:
    return is_list(kind) and pa.types.is_floating(kind.value_type)
