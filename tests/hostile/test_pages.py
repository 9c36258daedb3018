"""Page headers that lie: every field is checked before its rows are read without decoding."""

import hashlib
import importlib
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import raysae
from raysae.activations import Site
from raysae.activations.pages import activation_runs
from raysae.activations.streaming import StreamedRows
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
thrift = importlib.import_module("fuzz_thrift")
mutations = importlib.import_module("fuzz_mutations")
sys.path.pop(0)

D_IN, ROWS = 4, 60
ROW_BYTES = D_IN * 4
SITE = Site(0, "all")
SHARD = "layer=00/position=all/part-00000.parquet"
ENORMOUS = (0, 1, -1, -19, 2**31 - 1, -(2**31), 2**31, 2**32, 2**63, 2**64, 2**70, -(2**63))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "s"
    write_synthetic_store(folder, SuperpositionWorld(D_IN, 8), ROWS)
    return (folder / SHARD).read_bytes()


@pytest.fixture
def store(tmp_path):
    write_synthetic_store(tmp_path / "s", SuperpositionWorld(D_IN, 8), ROWS)
    return tmp_path / "s"


def header_of(data):
    return thrift.read_struct(data, 4)


def with_header(data, header):
    """The file with another first page header; its footer's offsets are made to fit."""
    _, end = header_of(data)
    footer, _ = thrift.read_struct(data, mutations._footer_start(data))
    chunk = mutations._chunks(footer)[0]
    return mutations._with_header(data, footer, chunk, 4, end, header, [])[0]


def changed(data, change):
    header, _ = header_of(data)
    change({field.number: field for field in header}, header)
    return with_header(data, thrift.write_struct(header))


def runs_of(tmp_path, data):
    """What our parser finds in the file, or None; "refused" when pyarrow cannot open its footer."""
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    try:
        metadata = pq.ParquetFile(path).metadata
    except OSError:
        return None
    with path.open("rb") as file:

        def read(length, at):
            file.seek(at)
            return file.read(length)

        return activation_runs(read, len(data), metadata, ROW_BYTES)


def install(store, data):
    (store / SHARD).write_bytes(data)
    manifest = json.loads((store / "manifest.json").read_text())
    entry = manifest["sites"][0]["shards"][0]
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (store / "manifest.json").write_text(json.dumps(manifest))


def pyarrow_rows(store):
    """The bytes of the training rows as pyarrow reads them from the changed file, or None."""
    try:
        table = pq.ParquetFile(store / SHARD).read_row_group(0, columns=["activation"])
    except OSError:
        return None
    return b"".join(table["activation"].to_pylist())


def inner(number):
    """The field of that number: 11 is the first of the data page's header."""

    def find(fields):
        if number < 10:
            return fields[number]
        return next(f for f in fields[5].value if f.number == number - 10)

    return find


def set_value(number, value):
    def change(fields, header):
        inner(number)(fields).value = value

    return change


def set_kind(number, kind):
    def change(fields, header):
        field = inner(number)(fields)
        field.raw, field.kind = mutations._plain(field), kind

    return change


def drop(number):
    return lambda fields, header: mutations._drop(header, inner(number)(fields))


def repeat(number):
    def change(fields, header):
        field = inner(number)(fields)
        header.append(thrift.Field(field.number, field.kind, field.value))

    return change


def nested(kind, depth):
    def change(fields, header):
        body = bytes([0x10 | kind]) * depth
        header.append(thrift.Field(6, kind, None, raw=body + b"\0" * depth))

    return change


def long_number(number, length):
    def change(fields, header):
        inner(number)(fields).raw = b"\x80" * length + b"\0"

    return change


FIELDS = (1, 2, 3, 5, 11, 12, 13, 14)
NUMBERS = tuple(field for field in FIELDS if field != 5)
TRUTH = {1: 0, 12: 0, 13: 3, 14: 3}
"""Values that a header has, so that they are no attack."""
ATTACKS = {
    **{
        f"field {n} is {value}": set_value(n, value)
        for n in NUMBERS for value in ENORMOUS if TRUTH.get(n) != value
    },
    **{
        f"field {n} of kind {kind}": set_kind(n, kind)
        for n in FIELDS for kind in mutations.KINDS if kind != (12 if n == 5 else 5)
    },
    **{f"no field {n}": drop(n) for n in FIELDS},
    **{f"field {n} twice": repeat(n) for n in (1, 2, 3, 5)},
    **{f"{k} nested {d}": nested(k, d) for k in (9, 10, 11, 12) for d in (30, 400, 100_000)},
    **{f"field {n} in {size} bytes": long_number(n, size) for n in NUMBERS for size in (6, 100, 10_000)},
    "page of an index": lambda fields, header: header.append(thrift.Field(6, 12, [])),
    "page of a dictionary": lambda fields, header: header.append(thrift.Field(7, 12, [])),
    "field 0": lambda fields, header: header.insert(0, thrift.Field(0, 5, 0)),
    "negative field": lambda fields, header: header.append(thrift.Field(-3, 5, 0)),
}  # fmt: skip


def test_a_sound_header_is_read_without_decoding(whole, tmp_path):
    runs = runs_of(tmp_path, with_header(whole, thrift.write_struct(header_of(whole)[0])))
    assert runs is not None
    assert sum(run.rows for group in runs for run in group) == ROWS


@pytest.mark.parametrize("name", ATTACKS)
def test_a_header_that_lies_is_never_believed(whole, tmp_path, name):
    """Such a page is left to pyarrow, at once; before, some headers hung, recursed or raised."""
    assert runs_of(tmp_path, changed(whole, ATTACKS[name])) is None


@pytest.mark.parametrize("name", [n for i, n in enumerate(ATTACKS) if i % 9 == 0])
def test_every_way_of_reading_refuses_in_words_or_gives_the_rows(whole, store, name):
    install(store, changed(whole, ATTACKS[name]))
    expected, count = pyarrow_rows(store), raysae.open_store(store).entry(SITE).rows.train
    ways = (
        lambda s: s.train(SITE),
        lambda s: StreamedRows(s, SITE, "train").read(0, count),
        lambda s: s.site(SITE).train.read(0, count),
    )
    for read in ways:
        try:
            found = read(raysae.open_store(store))
        except UserError as error:
            assert SHARD in str(error)
        else:
            assert found.numpy().tobytes() == expected


def test_a_page_may_not_reach_past_its_column(whole, tmp_path):
    """Sizes that fit each other, but not the place: the rows would be bytes of another column."""
    header, _ = header_of(whole)
    fields = {field.number: field for field in header}
    rows = fields[5].value[0].value
    for extra in (1, 40, 2000):
        fields[2].value = fields[3].value = (rows + extra) * ROW_BYTES
        fields[5].value[0].value = rows + extra
        assert runs_of(tmp_path, with_header(whole, thrift.write_struct(header))) is None


def test_pages_of_no_rows_do_not_go_on_for_ever(whole, tmp_path):
    header, _ = header_of(whole)
    fields = {field.number: field for field in header}
    fields[2].value = fields[3].value = fields[5].value[0].value = 0
    empty = thrift.write_struct(header)
    assert runs_of(tmp_path, with_header(whole, empty * 5 + empty)) is None


def test_the_column_is_found_by_its_place_and_not_by_what_the_chunk_calls_itself(whole, store):
    """pyarrow goes by the schema's order; a chunk that says "activation" may be another column."""
    footer, _ = thrift.read_struct(whole, mutations._footer_start(whole))
    for chunk in mutations._chunks(footer):
        for field in chunk:
            if field.number == 3:
                old = bytes(field.value.values[0])
                new = {b"activation": b"sequence", b"sequence": b"activation"}.get(old, old)
                field.value.values[0] = new
    body = whole[: mutations._footer_start(whole)]
    expected = raysae.open_store(store).train(SITE)
    install(store, mutations._with_footer(body, thrift.write_struct(footer)))
    try:
        found = raysae.open_store(store).train(SITE)
    except UserError:
        return
    assert found.equal(expected)
