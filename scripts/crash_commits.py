"""Every kind of commit, and the ways to crash one: what ``scripts/crashes.py`` tries."""

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet  # noqa: F401  (imported once, not by each child)
import torch

from raysae.activations.store_command import main as store_command
from raysae.activations.synthetic import SuperpositionWorld
from raysae.console.command_line import run_command
from raysae.records.run_files import RunFiles
from raysae.records.tables import write_table
from raysae.sae import build_sae, sae_config, save_sae
from raysae.sites import Site
from raysae.storage import files, leftovers, remote
from raysae.storage.files import remove_temporary, replacing_folder, write_json
from raysae.sweep.trials.gang import Gang
from raysae.sweep.trials.trial import Trial
from raysae.training import TrainingConfig
from raysae.training.ensemble import Member
from raysae.training.rows import Rows

HERE = Site(0, "all")
WORLD = SuperpositionWorld(d_in=16, atoms=24, p=0.1)
CALLS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
"""Audit events of calls that change the disk; ``open`` only for writing."""
VOLATILE = (
    b'"seconds"', b'"started"', b'"tokens_per_second"', b'"wait_seconds"', b'"memory_bytes"',
    b'"waited"',
)  # fmt: skip
"""Lines of records that differ between two equal trainings."""


@dataclass(frozen=True)
class Kind:
    """One kind of commit: ``before`` makes what is there already, ``act`` is the command."""

    name: str
    before: Callable[[Path], None]
    act: Callable[[Path], None]
    product: str
    """The folder or file that is old or new at any moment, below the folder of the commit."""
    replaces: bool = True
    """Whether the product is there before."""
    by_place: bool = False
    """Whether what is there before depends on where it is, so that it cannot be copied."""


def _sae(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = sae_config({"variant": "topk", "d_sae": 32, "k": 2})
    save_sae(build_sae(config, 16), folder / "sae", metrics={"seed": seed})


def _folder(folder: Path, text: str) -> None:
    with replacing_folder(folder / "page") as temporary:
        for name in ("a", "b", "deep/c"):
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text * 3000)


def train(folder: Path, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train and commit trial 0 in the run ``folder``, with a checkpoint at every step; its report."""
    training = TrainingConfig(epochs=2, batch_size=64, lr=3e-3, evaluations=2)
    config = sae_config({"variant": "topk", "d_sae": 32, "k": 2})
    asked = {"trial": 0, "parameters": parameters or {}}
    trial = Trial(asked, RunFiles(folder), "cpu", {"store": "s", **asked["parameters"]})
    if not trial.ended:
        rows = Rows(WORLD.rows(200, 0)), Rows(WORLD.rows(100, 1))
        gang = Gang([trial.begin({(HERE, 0): Member(config, training, *rows)}, None)], 0)
        for _ in gang.rounds():
            trial.advance({HERE: {}})
    if "failed" in trial.report:
        raise OSError(trial.report["failed"])
    return trial.report


def _pushed(folder: Path, text: str) -> None:
    local = remote.bind((folder / "there").as_uri())
    for name in ("a", "b", "metrics.json"):
        write_json(local / "trial" / name, {"text": text * 2000})
    remote.push(local / "trial", last="metrics.json")


def _synthetic(folder: Path) -> None:
    _quietly(store_command, "synthetic", "--out", folder / "store", "--d-in", 8, "--atoms", 12,
             "--rows", 90, "--sites", 2, "--shard-rows", 40)  # fmt: skip


def _rows(folder: Path) -> None:
    for layer in range(2):
        np.save(folder / f"rows{layer}.npy", WORLD.rows(80, layer).numpy())


def _import(folder: Path, layer: int) -> None:
    file = folder / f"rows{layer}.npy"
    _quietly(store_command, "import", file, "--out", folder / "imported", "--layer", layer,
             "--position", "all", "--shard-rows", 30)  # fmt: skip


def _quietly(command: Callable[[list[str]], int], *arguments: object) -> None:
    """Run a command; raises OSError with its message when it does not end with 0."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = run_command(command, [str(argument) for argument in arguments])
    if code and "has layer" not in said.getvalue():  # the import is done already
        raise OSError(f"exit code {code}: {said.getvalue().strip()}")


def _set_aside(folder: Path) -> None:
    run = RunFiles(folder)
    run.committed(run.trial(0), {"store": "s", "round": 1})
    train(folder, {"round": 2})


KINDS = (
    Kind("file", lambda f: write_json(f / "a.json", {"x": 1}),
         lambda f: write_json(f / "a.json", {"x": 2}), "a.json"),
    Kind("folder", lambda f: _folder(f, "old"), lambda f: _folder(f, "new"), "page"),
    Kind("table", lambda f: write_table(f / "t.parquet", [{"x": 1}]),
         lambda f: write_table(f / "t.parquet", [{"x": 2}, {"x": 3}]), "t.parquet"),
    Kind("SAE", lambda f: _sae(f, 0), lambda f: _sae(f, 1), "sae"),
    Kind("trial with checkpoints", lambda f: None, lambda f: train(f) and None, "trials/000",
         replaces=False),
    Kind("trial for another", lambda f: train(f, {"round": 1}) and None, _set_aside,
         "trials/000"),
    Kind("URI", lambda f: _pushed(f, "old"), lambda f: _pushed(f, "new"),
         "there/trial/metrics.json", by_place=True),
    Kind("synthetic store", lambda f: None, _synthetic, "store", replaces=False),
    Kind("import", _rows, lambda f: _import(f, 0), "imported/manifest.json", replaces=False),
    Kind("import into a store", lambda f: (_rows(f), _import(f, 0))[1], lambda f: _import(f, 1),
         "imported/manifest.json"),
)  # fmt: skip


def content(place: Path) -> dict[str, bytes]:
    """The files in a folder (or one file) by name, without hidden ones and the lines of times."""
    found = [place] if place.is_file() else sorted(place.rglob("*"))
    return {
        file.relative_to(place).as_posix(): _steady(file.read_bytes())
        for file in found
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(place).parts)
    }


def _steady(data: bytes) -> bytes:
    lines = data.splitlines() if data[:1] == b"{" else [data]
    return b"\n".join(one for one in lines if not one.strip().startswith(VOLATILE))


def in_child(work: Callable[[], None]) -> tuple[int, str]:
    """Do ``work`` in a process of its own; its exit code (minus the signal), and why it failed."""
    told = tempfile.TemporaryFile("w+")  # noqa: SIM115  (read after the child)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException as error:
            told.write(
                str(error) if isinstance(error, (OSError, ValueError)) else traceback.format_exc()
            )
            told.flush()
            code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    told.seek(0)
    return os.waitstatus_to_exitcode(status), told.read()


def at_call(folder: Path, number: int, react: Callable[[], None]) -> list[int]:
    """Call ``react`` before this process changes the disk below ``folder`` for the ``number``-th time.

    Returns a list whose one element is the number of such calls so far.
    """
    count = [0]

    def step(place: object) -> None:
        name = os.fsdecode(place) if isinstance(place, str | bytes | os.PathLike) else ""
        if name.startswith(str(folder)):
            count[0] += 1
            if count[0] == number:
                react()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CALLS and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            step(arguments[0])

    exchange, flush = leftovers.exchange, leftovers.flush
    files.exchange = lambda one, other: (step(other), exchange(one, other))[1]
    files.flush = lambda path: (step(path), flush(path))[1]
    sys.addaudithook(hook)
    return count


def calls_of(kind: Kind, folder: Path) -> int:
    """How many calls of the commit change the disk."""
    place = _prepared(kind, folder, "counted")

    def counted() -> None:
        count = at_call(place, -1, lambda: None)
        kind.act(place)
        raise OSError(str(count[0]))

    _, told = in_child(counted)
    return int(told)


def kill_everywhere(kind: Kind, folder: Path, most: int = 1000) -> tuple[int, list[str]]:
    """Kill the commit before each of its calls; the number of kills, and what went wrong.

    With more calls than ``most``, that many of them are drawn.
    """
    before, wanted = _undisturbed(kind, folder)
    wrong, tries = [], _drawn(calls_of(kind, folder), most)
    for number in tries:
        place = _prepared(kind, folder, f"killed-{number}")

        def killed(place: Path = place, number: int = number) -> None:
            at_call(place, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            kind.act(place)

        code, told = in_child(killed)
        if code not in (0, -signal.SIGKILL):
            wrong.append(f"call {number}: {told}")
        wrong += [f"call {number}: {one}" for one in _after(kind, place, before, wanted)]
        shutil.rmtree(place)
    return len(tries), wrong


def _drawn(calls: int, most: int) -> list[int]:
    numbers = range(1, calls + 1)
    return list(numbers) if calls <= most else sorted(random.sample(numbers, most))


def _prepared(kind: Kind, folder: Path, name: str) -> Path:
    """A new folder that holds what is there before the commit."""
    template, place = folder / "template", folder / name
    if kind.by_place:
        place.mkdir(parents=True)
        _done(kind.before, place)
        return place
    if not template.exists():
        template.mkdir(parents=True)
        _done(kind.before, template)
    shutil.copytree(template, place)
    return place


def _undisturbed(kind: Kind, folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The product before and after an undisturbed commit."""
    place = _prepared(kind, folder, "undisturbed")
    before = content(place / kind.product)
    _done(kind.act, place)
    return before, content(place / kind.product)


def _done(act: Callable[[Path], None], place: Path) -> None:
    code, told = in_child(lambda: act(place))
    if code:
        raise RuntimeError(f"without a crash: {told}")


def _after(
    kind: Kind, place: Path, before: dict[str, bytes], wanted: dict[str, bytes]
) -> Iterator[str]:
    """What is wrong after a crash, and after the same command was given again."""
    found = content(place / kind.product)
    if found not in (wanted, before if kind.replaces else {}):
        yield f"neither the old nor the new {kind.product}: {sorted(found)}"
    code, told = in_child(lambda: (remove_temporary(place), kind.act(place))[0])
    if code:
        yield f"the same command failed: {told}"
    elif content(place / kind.product) != wanted:
        yield f"{kind.product} is not that of an undisturbed command"
    left = [p.name for p in place.rglob(".*") if leftovers.STAMPED.fullmatch(p.name)]
    if left:
        yield f"left behind: {left}"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of ``size`` mounted at ``folder/disk``. Raises OSError when it cannot be mounted."""
    disk = folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EPERM, f"no small disk could be mounted: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, free: int) -> None:
    """Fill the disk, but for ``free`` bytes."""
    usage = os.statvfs(disk)
    with (disk / "filler").open("wb") as filler:
        filler.write(bytes(max(usage.f_bavail * usage.f_frsize - free, 0)))


def full_disk(kind: Kind, folder: Path, step: int = 4096) -> tuple[int, list[str]]:
    """Try the commit on a disk with 0, 1, 2 ... free pages, until it fits; then with free space."""
    before, wanted = _undisturbed(kind, folder)
    wrong, tries = [], 0
    for free in range(0, 1 << 20, step):
        with small_disk(folder, "2m") as disk:
            place = _prepared(kind, folder, "disk/run")
            fill(disk, free)
            code, told = in_child(lambda place=place: kind.act(place))
            (disk / "filler").unlink()
            if code == 0 and content(place / kind.product) == wanted:
                return tries, wrong
            tries += 1
            if code != 1 or "Traceback" in told:
                wrong.append(f"{free} bytes free: {told or code}")
            wrong += [f"{free} bytes free: {one}" for one in _after(kind, place, before, wanted)]
    return tries, wrong


def failing_disk(kind: Kind, folder: Path, error: int, most: int = 1000) -> tuple[int, list[str]]:
    """Let each call of the commit fail with the error number ``error``, as ``kill_everywhere`` does."""
    before, wanted = _undisturbed(kind, folder)
    wrong, tries = [], _drawn(calls_of(kind, folder), most)
    for number in tries:
        place = _prepared(kind, folder, f"failed-{number}")

        def failing(place: Path = place, number: int = number) -> None:
            def fail() -> None:
                raise OSError(error, os.strerror(error), str(place))

            at_call(place, number, fail)
            kind.act(place)

        code, told = in_child(failing)
        if code not in (0, 1) or "Traceback" in told:
            wrong.append(f"call {number}: {told.strip().splitlines()[-1]}")
        wrong += [f"call {number}: {one}" for one in _after(kind, place, before, wanted)]
        shutil.rmtree(place)
    return len(tries), wrong
