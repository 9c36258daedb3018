"""Ways to damage the files of a store or of an SAE. Used by ``fuzz_store.py``.

Each takes a random generator and the file's bytes. It returns the damaged bytes and says in words what
it did.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz_thrift import (
    BINARY,
    DOUBLE,
    FALSE,
    I8,
    I16,
    I32,
    I64,
    LIST,
    MAP,
    SET,
    STRUCT,
    TRUE,
    Field,
    Items,
    fields_of,
    read_struct,
    varint,
    write_struct,
    zigzag,
)

Damaged = tuple[bytes, str]
Mutation = Callable[[Random, bytes], Damaged]

KINDS = (TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, 13, 15)
EXTREME = (
    *(-1, 0, 1, 2, 3, 7, 127, 128, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 70, -(1 << 31), -(1 << 63), -100, -25),
)
DEPTHS = (20, 600, 100_000)
FOOTER_SCHEMA, FOOTER_ROWS, FOOTER_GROUPS, FOOTER_METADATA = 2, 3, 4, 5
GROUP_COLUMNS, CHUNK_METADATA, PAGE_OFFSET, PAGE_HEADER = 1, 3, 9, 5


# Bytes anywhere


def flip(random: Random, data: bytes) -> Damaged:
    """Change one to eight bytes."""
    out, places = bytearray(data), []
    for _ in range(random.randint(1, 8)):
        place = random.randrange(len(out))
        out[place] ^= random.randint(1, 255)
        places.append(place)
    return bytes(out), f"bytes {places} changed"


def insert(random: Random, data: bytes) -> Damaged:
    """Insert a few bytes."""
    place, added = random.randrange(len(data) + 1), random.randbytes(random.randint(1, 40))
    return data[:place] + added + data[place:], f"{len(added)} bytes inserted at {place}"


def remove(random: Random, data: bytes) -> Damaged:
    """Remove a few bytes."""
    place, count = random.randrange(len(data)), random.randint(1, 40)
    return data[:place] + data[place + count :], f"{count} bytes removed at {place}"


def truncate(random: Random, data: bytes) -> Damaged:
    """Cut the end off."""
    length = random.randrange(len(data))
    return data[:length], f"cut to {length} bytes"


def swap(random: Random, data: bytes) -> Damaged:
    """Exchange two blocks of one size."""
    size = random.randint(1, min(200, len(data) // 2))
    first, second = sorted(random.randrange(len(data) - size + 1) for _ in range(2))
    out = bytearray(data)
    out[first : first + size], out[second : second + size] = (
        data[second : second + size], data[first : first + size],
    )  # fmt: skip
    return bytes(out[: len(data)]), f"{size} bytes at {first} and {second} exchanged"


def erase(random: Random, data: bytes) -> Damaged:
    """Overwrite a block with one value."""
    place, size = random.randrange(len(data)), random.randint(1, 200)
    value = random.choice((0, 255, 128, 127))
    out = bytearray(data)
    out[place : place + size] = bytes([value]) * len(out[place : place + size])
    return bytes(out), f"{size} bytes at {place} set to {value}"


BYTES: dict[str, Mutation] = {
    "flip": flip, "insert": insert, "remove": remove, "truncate": truncate, "swap": swap,
    "erase": erase,
}  # fmt: skip


# Parquet


def footer_bytes(random: Random, data: bytes) -> Damaged:
    """Damage the bytes of the footer, its length kept right."""
    start = _footer_start(data)
    name = random.choice(list(BYTES))
    footer, words = BYTES[name](random, data[start:-8])
    return _with_footer(data[:start], footer), f"footer: {words}"


def footer_length(random: Random, data: bytes) -> Damaged:
    """Claim another length of the footer."""
    length = random.choice([*EXTREME, random.randrange(len(data))]) & 0xFFFFFFFF
    return data[:-8] + length.to_bytes(4, "little") + data[-4:], f"footer length {length}"


def footer_field(random: Random, data: bytes) -> Damaged:
    """Change one or two fields of the footer, whole numbers more often."""
    start = _footer_start(data)
    footer, _ = read_struct(data, start)
    words = [_change(random, footer) for _ in range(random.choice((1, 1, 2)))]
    return _with_footer(data[:start], write_struct(footer)), f"footer: {'; '.join(words)}"


def metadata_value(random: Random, data: bytes) -> Damaged:
    """Change a key or a value of the schema's metadata."""
    start = _footer_start(data)
    footer, _ = read_struct(data, start)
    pairs = _field(footer, FOOTER_METADATA)
    if pairs is None:
        return footer_field(random, data)
    pair = random.choice(pairs.values)
    field = random.choice(pair)
    old = bytes(field.value)
    texts = [b"", b"\xff\xfe", b"float16", b"-1", b"4294967296", b"9" * 5000, b"\0", old * 2]
    field.value = random.choice([*texts, flip(random, old or b"x")[0]])
    words = f"metadata {old[:20]!r} is {field.value[:20]!r}"
    return _with_footer(data[:start], write_struct(footer)), words


def page_field(random: Random, data: bytes) -> Damaged:
    """Change fields of a page header; the footer's offsets and sizes are made to fit."""
    footer, chunk, at = _page_of(random, data)
    header, end = read_struct(data, at)
    words = [_change(random, header) for _ in range(random.choice((1, 1, 2)))]
    return _with_header(data, footer, chunk, at, end, write_struct(header), words)


def page_bytes(random: Random, data: bytes) -> Damaged:
    """Damage the bytes of a page header; the footer's offsets and sizes are made to fit."""
    footer, chunk, at = _page_of(random, data)
    _, end = read_struct(data, at)
    header, words = BYTES[random.choice(list(BYTES))](random, data[at:end])
    return _with_header(data, footer, chunk, at, end, header, [words])


def page_sizes(random: Random, data: bytes) -> Damaged:
    """Give a page header of activations wrong sizes or counts: the fields that place the rows."""
    start = _footer_start(data)
    footer, _ = read_struct(data, start)
    chunk = _chunks(footer)[0]
    at = _field(chunk, PAGE_OFFSET)
    header, end = read_struct(data, at)
    known = {field.number: field for field in header}
    fields = [known[2], known[3], *known[PAGE_HEADER].value[:2]]
    words = []
    for field in random.sample(fields, random.randint(1, 2)):
        old, field.value = field.value, random.choice([*EXTREME, field.value + 1, -field.value])
        words.append(f"field {field.number}: {old} is {field.value}")
    return _with_header(data, footer, chunk, at, end, write_struct(header), words)


PARQUET: dict[str, Mutation] = {
    "footer bytes": footer_bytes, "footer length": footer_length, "footer field": footer_field,
    "metadata": metadata_value, "page field": page_field, "page bytes": page_bytes,
    "page sizes": page_sizes,
}  # fmt: skip


def _footer_start(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _with_footer(body: bytes, footer: bytes) -> bytes:
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _page_of(random: Random, data: bytes) -> tuple[list[Field], list[Field], int]:
    """The footer, a chunk of a column drawn from it, and the offset of the chunk's first page."""
    footer, _ = read_struct(data, _footer_start(data))
    chunk = random.choice(_chunks(footer)[: random.choice((1, 1, 99))])
    return footer, chunk, _field(chunk, PAGE_OFFSET)


def _field(fields: list[Field], number: int) -> Any:
    return next((field.value for field in fields if field.number == number), None)


def _chunks(footer: list[Field]) -> list[list[Field]]:
    groups = _field(footer, FOOTER_GROUPS).values
    return [_field(c, CHUNK_METADATA) for g in groups for c in _field(g, GROUP_COLUMNS).values]


def _with_header(
    data: bytes, footer: list[Field], chunk: list[Field], at: int, end: int, header: bytes,
    words: list[str],
) -> Damaged:  # fmt: skip
    """The file with another page header; what comes after it moves, and the footer says so."""
    moved, start = len(header) - (end - at), _footer_start(data)
    for field in chunk:
        if field.number in (6, 7):  # the chunk's sizes
            field.value += moved
    for other in _chunks(footer):
        for field in other:
            if field.number == PAGE_OFFSET and field.value > at:
                field.value += moved
    body = data[:at] + header + data[end:start]
    return _with_footer(body, write_struct(footer)), f"page at {at}: {'; '.join(words)}"


def _change(random: Random, struct: list[Field]) -> str:
    """Change one field of a struct or of those in it; says how."""
    field = random.choice(fields_of(struct))
    name = f"field {field.number}"
    change = random.choice(("value", "value", "value", "kind", "drop", "double", "nest", "claim"))
    if change == "kind":
        field.raw, field.kind = _plain(field), random.choice(KINDS)
        return f"{name} is of kind {field.kind}"
    if change == "drop":
        return f"{name} dropped" if _drop(struct, field) else name
    if change == "double":
        struct.append(Field(field.number, field.kind, field.value, field.raw))
        return f"{name} once more at the end"
    if change == "nest":
        depth, kind = random.choice(DEPTHS), random.choice((STRUCT, LIST))
        field.kind = kind
        field.raw = (b"\x1c" if kind == STRUCT else b"\x19") * depth + b"\0" * depth
        return f"{name} nested {depth} deep"
    if change == "claim":
        size = random.choice([n for n in EXTREME if n >= 0])
        field.raw = (b"\xfc" if field.kind in (LIST, SET) else b"") + varint(size)
        return f"{name} claims a length of {size}"
    return f"{name}: {_new_value(random, field)}"


def _new_value(random: Random, field: Field) -> str:
    if field.kind in (I16, I32, I64):
        old, field.value = field.value, random.choice([*EXTREME, field.value + 1, -field.value])
        if random.random() < 0.1:  # a number in more bytes than it needs
            long = zigzag(field.value)
            field.raw = (
                long[:-1] + bytes([long[-1] | 128]) + b"\x80" * random.choice((3, 300)) + b"\0"
            )
        return f"{old} is {field.value}"
    if field.kind == BINARY:
        old = field.value
        field.value = random.choice([b"", old * 3, old[::-1], random.randbytes(9), b"\xff" * 30])
        return f"{old[:20]!r} is {field.value[:20]!r}"
    if field.kind in (LIST, SET):
        values = field.value.values
        field.value = Items(field.value.kind, random.choice([[], values * 2, values[:-1]]))
        return f"{len(values)} items are {len(field.value.values)}"
    field.raw = random.randbytes(random.randint(0, 9))
    return f"is {field.raw!r}"


def _plain(field: Field) -> bytes:
    """The field's bytes without its head."""
    if field.raw is not None:
        return field.raw
    return write_struct([Field(1, field.kind, field.value)])[1:-1]


def _drop(struct: list[Field], wanted: Field) -> bool:
    for index, field in enumerate(struct):
        if field is wanted:
            del struct[index]
            return True
        if field.raw is not None:
            continue
        inner = [field.value] if field.kind == STRUCT else []
        if field.kind in (LIST, SET) and field.value.kind == STRUCT:
            inner = field.value.values
        if any(_drop(one, wanted) for one in inner):
            return True
    return False


# JSON

VALUES = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 1 << 31, 1 << 63, 1 << 64, 10**30, "", "x"),
    *(
        "../../etc/passwd",
        "/dev/zero",
        "\0",
        "\ud800",
        "é" * 200,
        "a" * 300,
        [],
        {},
        [[]],
        {"a": 1},
    ),
    *(float("nan"), float("inf"), float("-inf")),
)
TEXTS = ('{"a": 1, "a": 2}', "1e999", "-", "9" * 5000, "[" * 3000 + "]" * 3000, "[" * 90 + "]" * 90)


def json_value(random: Random, data: bytes) -> Damaged:
    """Replace, remove or double a value of a JSON file."""
    document = json.loads(data)
    holder, key = random.choice(list(_places(document)))
    where, change = f"{key!r}", random.choice(("value", "value", "value", "remove", "other", "add"))
    if change == "remove":
        del holder[key]
    elif change == "other":
        other, name = random.choice(list(_places(document)))
        holder[key] = json.loads(json.dumps(other[name]))
    elif change == "add" and isinstance(holder, dict):
        holder[random.choice(("extra", "", "FORMAT", "k", "d_in"))] = random.choice(VALUES)
    elif change == "add":
        holder.append(holder[key])
    elif isinstance(holder[key], int) and random.random() < 0.5:
        old = holder[key]
        holder[key] = random.choice((old + 1, -old - 1, float(old), f"{old}"))
    else:
        holder[key] = random.choice(VALUES)
    return json.dumps(document).encode(), f"{where}: {change}"


def json_text(random: Random, data: bytes) -> Damaged:
    """Replace a value by text that ``json.dumps`` would not write, or give a key twice."""
    document = json.loads(data)
    holder, key = random.choice(list(_places(document)))
    text = random.choice(TEXTS)
    if isinstance(holder, dict) and random.random() < 0.3:
        text = f"{json.dumps(holder[key])}, {json.dumps(key)}: {json.dumps(random.choice(VALUES))}"
    holder[key] = "@@@"
    return json.dumps(document).replace('"@@@"', text).encode(), f"{key!r} is {text[:60]}"


JSON: dict[str, Mutation] = {**BYTES, "value": json_value, "value ": json_value, "text": json_text}


def _places(value: Any) -> Any:
    """Every place of a JSON value: what holds it, and its key or index there."""
    items: Any = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        yield from _places(item)


# safetensors


def header_value(random: Random, data: bytes) -> Damaged:
    """Change the header of a safetensors file, its length kept right."""
    length = int.from_bytes(data[:8], "little")
    header, words = random.choice((json_value, json_text))(random, data[8 : 8 + length].strip())
    return len(header).to_bytes(8, "little") + header + data[8 + length :], f"header {words}"


def header_length(random: Random, data: bytes) -> Damaged:
    """Claim another length of the header."""
    length = random.choice([*EXTREME, 100_000_000, 100_000_001]) & (1 << 64) - 1
    return length.to_bytes(8, "little") + data[8:], f"header of {length} bytes"


def weights(random: Random, data: bytes) -> Damaged:
    """Write NaN, infinity or large numbers among the values."""
    start = 8 + int.from_bytes(data[:8], "little")
    place = start + random.randrange((len(data) - start) // 4) * 4
    value = random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f"))
    return data[:place] + value + data[place + 4 :], f"value at {place} is {value.hex()}"


SAFETENSORS: dict[str, Mutation] = {
    **BYTES, "header": header_value, "header length": header_length, "weights": weights,
}  # fmt: skip
