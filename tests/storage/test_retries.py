"""Requests are tried again with growing waits, up to a limit; what no try mends is told at once."""

import io
import threading

import pytest

from raysae.errors import UserError
from raysae.storage import retries
from raysae.storage.file_systems import Stamp, with_timeouts
from raysae.storage.remote_files import RangeFile, RemoteFiles
from raysae.storage.retries import StorageError, retried, within
from tests.storage.faulty import FaultyFileSystem


@pytest.fixture
def waits(monkeypatch):
    slept = []
    monkeypatch.setattr(retries.time, "sleep", slept.append)
    return slept


def failing(times, error):
    left = [error] * times

    def request():
        if left:
            raise left.pop()
        return "answer"

    return request


def test_the_waits_grow_to_half_a_minute(waits):
    assert retried(failing(4, ConnectionError("reset"))) == "answer"
    assert waits == sorted(waits) and sum(waits) == 30
    with pytest.raises(StorageError, match="reset, at the last of 5 tries"):
        retried(failing(5, ConnectionError("reset")))


@pytest.mark.parametrize(
    "error", [PermissionError("not yours"), OSError("AWS Error ACCESS_DENIED during GetObject")]
)
def test_what_no_try_mends_is_told_at_once(error, waits):
    with pytest.raises(StorageError, match="not yours$|ACCESS_DENIED during GetObject$"):
        retried(failing(1, error))
    with pytest.raises(UserError, match="ours"):
        retried(failing(1, UserError("ours")))
    assert waits == []


def test_a_look_can_end_the_tries(waits):
    def look():
        raise UserError("it is gone")

    with pytest.raises(UserError, match="it is gone"):
        retried(failing(1, OSError("404")), look)
    assert waits == []


def test_an_answer_is_not_waited_for_for_ever():
    ended = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        within(0.01, ended.wait)
    ended.set()
    assert within(60, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(60, {}.__getitem__, "x")


def test_s3_has_limits_of_time_and_keeps_what_the_uri_says():
    from pyarrow import fs

    uri = "s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http&region=eu-west-3"
    found, _ = fs.FileSystem.from_uri(uri)
    _, (options,) = with_timeouts(found).__reduce__()
    assert options["request_timeout"] == 30 and options["connect_timeout"] == 10
    assert (options["endpoint_override"], options["scheme"]) == ("127.0.0.1:1", "http")
    assert options["region"] == "eu-west-3"
    local = fs.LocalFileSystem()
    assert with_timeouts(local) is local


def test_stamps_are_compared_by_what_both_have():
    listed, looked = Stamp(3, (("mtime", "1"),)), Stamp(3, (("ETag", "x"), ("mtime", "1")))
    assert listed.fits(looked) and looked.fits(Stamp(3, ()))
    assert not listed.fits(Stamp(3, (("mtime", "2"),))) and not listed.fits(Stamp(4, ()))


def test_a_remote_file_reads_as_pythons_files_do():
    FaultyFileSystem.reset()
    FaultyFileSystem().pipe_file("/bucket/a/x.bin", bytes(range(100)))
    FaultyFileSystem().pipe_file("/bucket/a/.hidden", b"x")
    files = RemoteFiles("faulty://bucket/a")
    assert files.names() == ["x.bin"]
    file = RangeFile(files.file("x.bin"))
    assert file.read(3) == b"\0\1\2" and file.tell() == 3
    assert file.seek(-2, io.SEEK_END) == 98 and file.read() == b"bc" and file.read(5) == b""
    memory = bytearray(10)
    assert (
        file.seek(95) == 95 and file.readinto(memory) == 5 and memory[:5] == bytes(range(95, 100))
    )
    assert FaultyFileSystem.bytes_read() == 3 + 2 + 5
    with pytest.raises(UserError, match=r"faulty://bucket/a/y.bin: missing"):
        files.file("y.bin").content()
    with pytest.raises(UserError, match=r"x.bin: the file ends too early"):
        files.file("x.bin").pread(10, 95)
