"""Arrow types shared by Parquet and SAELens files: lists of numbers, with or without extension types."""

import pyarrow as pa


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
