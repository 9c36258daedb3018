"""Thrift's compact protocol as a tree that can be changed: the footer and page headers of Parquet.

Used by ``fuzz_store.py``. A struct is a list of ``Field``, a list of values is an ``Items``.
"""

from dataclasses import dataclass
from typing import Any

TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
WHOLE = (I16, I32, I64)


@dataclass
class Field:
    """A field of a struct. ``raw``, where it is set, is written in place of the value."""

    number: int
    kind: int
    value: Any
    raw: bytes | None = None


@dataclass
class Items:
    """A list of values of one kind. ``claimed`` is written as its length, where it is set."""

    kind: int
    values: list[Any]
    claimed: int | None = None


def read_struct(data: bytes, at: int = 0) -> tuple[list[Field], int]:
    """The fields of the struct at ``at``, and the index of the first byte after it."""
    fields, number = [], 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        value, at = _read(head & 15, data, at)
        fields.append(Field(number, head & 15, value))
    return fields, at + 1


def write_struct(fields: list[Field]) -> bytes:
    """The bytes of a struct. The inverse of ``read_struct``."""
    out, last = bytearray(), 0
    for field in fields:
        step = field.number - last
        if 0 < step < 16:
            out.append(step << 4 | field.kind & 15)
        else:
            out.append(field.kind & 15)
            out += zigzag(field.number)
        out += _write(field.kind, field.value) if field.raw is None else field.raw
        last = field.number
    return bytes(out) + b"\0"


def varint(value: int) -> bytes:
    """A whole number of any size from 0 on, 7 bits a byte."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> bytes:
    """A whole number with its sign."""
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def fields_of(fields: list[Field]) -> list[Field]:
    """All fields of a struct, of the structs in it, and so on."""
    found = []
    for field in fields:
        found.append(field)
        if field.raw is not None:  # changed already
            continue
        if field.kind == STRUCT:
            found += fields_of(field.value)
        elif field.kind in (LIST, SET) and field.value.kind == STRUCT:
            for one in field.value.values:
                found += fields_of(one)
    return found


def _read(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == I8:
        return data[at], at + 1
    if kind in WHOLE:
        return _zigzag(data, at)
    if kind == DOUBLE:
        return data[at : at + 8], at + 8
    if kind == BINARY:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    if kind in (LIST, SET):
        return _read_items(data, at)
    assert kind == STRUCT, f"thrift kind {kind} does not occur in Parquet"
    return read_struct(data, at)


def _read_items(data: bytes, at: int) -> tuple[Items, int]:
    head, at = data[at], at + 1
    count, values = head >> 4, []
    if count == 15:
        count, at = _varint(data, at)
    for _ in range(count):
        if head & 15 in (TRUE, FALSE):
            value, at = data[at], at + 1
        else:
            value, at = _read(head & 15, data, at)
        values.append(value)
    return Items(head & 15, values), at


def _write(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE):
        return b""
    if kind == I8:
        return bytes([value & 255])
    if kind in WHOLE:
        return zigzag(value)
    if kind == DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind in (LIST, SET):
        return _write_items(value)
    return write_struct(value)


def _write_items(items: Items) -> bytes:
    count = len(items.values) if items.claimed is None else items.claimed
    head = bytes([min(count, 15) << 4 | items.kind]) + (varint(count) if count >= 15 else b"")
    if items.kind in (TRUE, FALSE):
        return head + bytes(items.values)
    return head + b"".join(_write(items.kind, value) for value in items.values)


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
