"""Crash every kind of commit for real, and look at what is left.

    python scripts/crashes.py [--part kill|disk|failing|records|runs] [--most 1000] [--seed 0]

- ``kill``: SIGKILL before every call with which a commit changes the disk.
- ``disk``: a disk of 2 MB with 0, 1, 2 ... free pages, until the commit fits (as root).
- ``failing``: every call fails: quota, read-only, input/output error, no permission.
- ``records``: clocks that are an hour off, two users of one folder, damaged records: the suite's tests.
- ``runs``: whole runs whose folder or store is deleted, or whose disk is full (with Ray: minutes).

Each crash is tried in a process of its own. Afterwards the old or the new product must be there, the
same command must succeed, and the product must equal an undisturbed one to the bit. A table says what
was tried, how many times, and how it ended; the exit code is 1 when something was lost. ``--most``
limits the calls of a commit that are tried; they are drawn by the seed.
"""

import argparse
import errno
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml
from crash_commits import KINDS, failing_disk, fill, full_disk, kill_everywhere, small_disk
from kill_aims import atlas_recipe, sweep_recipe

from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store

FAILURES = (errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)
ON_DISK = ("file", "folder", "table", "SAE", "trial with checkpoints", "synthetic store", "import")
"""Kinds of commit that a full disk is tried with; the local copy of a URI is elsewhere."""
LIMIT_SECONDS = 300
HOSTILE = Path(__file__).parents[1] / "tests" / "hostile"
Row = tuple[str, int, list[str]]
"""What was tried, how many times, and what went wrong."""


def kills(folder: Path, most: int) -> Iterator[Row]:
    """SIGKILL in every kind of commit."""
    for number, kind in enumerate(KINDS):
        yield f"SIGKILL: {kind.name}", *kill_everywhere(kind, folder / str(number), most)


def full_disks(folder: Path, most: int) -> Iterator[Row]:
    """A disk that fills up in every kind of commit."""
    for number, kind in enumerate(kind for kind in KINDS if kind.name in ON_DISK):
        yield f"full disk: {kind.name}", *full_disk(kind, folder / str(number))


def failing_disks(folder: Path, most: int) -> Iterator[Row]:
    """A disk that refuses, in every kind of commit."""
    for number, kind in enumerate(KINDS):
        for error in FAILURES:
            place = folder / f"{number}-{error}"
            row = failing_disk(kind, place, error, most)
            yield f"{os.strerror(error)}: {kind.name}", *row


def records(folder: Path, most: int) -> Iterator[Row]:
    """What the suite tries with clocks, two users and damaged records; each test is one try."""
    for name, file, tests in (
        ("clock an hour off", "test_deleted_folders.py", "clock"),
        ("a folder of two users", "test_deleted_folders.py", "another_user"),
        ("damaged records", "test_damaged_records.py", ""),
    ):
        words = [str(HOSTILE / file), "-k", tests, "-m", "long or not long", "-q", "-p", "no:xdist"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words], cwd=HOSTILE.parents[1],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        passed = re.search(r"(\d+) passed", done.stdout)
        wrong = [] if done.returncode == 0 else [done.stdout[-1500:]]
        yield name, int(passed[1]) if passed else 0, wrong


def runs(folder: Path, most: int) -> Iterator[Row]:
    """Whole runs from which something is taken away in the middle."""
    trial, site = "trials/*.training", "atlas/*/*/metrics.json"
    for name, recipe, moment, take, words in (
        ("run folder deleted in the sweep", sweep_recipe, trial, _run_folder, "was deleted"),
        ("run folder deleted in the atlas", atlas_recipe, site, _run_folder, "was deleted"),
        ("store deleted in the atlas", atlas_recipe, site, _store, "was deleted"),
    ):
        place = folder / name.replace(" ", "-")
        yield name, 1, list(_taken(place, recipe(place, "x"), moment, take, words))
    with small_disk(folder, "256m") as disk:
        recipe = atlas_recipe(disk, "x")
        yield "full disk in the atlas", 1, list(_taken(disk, recipe, site, _space, "No space left"))


def _run_folder(place: Path) -> None:
    shutil.rmtree(place / "runs" / "x", ignore_errors=True)


def _store(place: Path) -> None:
    shutil.rmtree(place / "store")


def _space(place: Path) -> None:
    fill(place, 0)


def _taken(
    place: Path, recipe: dict, moment: str, take: Callable[[Path], None], words: str
) -> Iterator[str]:
    """Start a run, take something away at a moment, and say what was wrong with how it ended."""
    place.mkdir(parents=True, exist_ok=True)
    world = SuperpositionWorld(d_in=64, atoms=256, p=0.02)
    write_synthetic_store(place / "store", world, 20_000, sites=6, test=0.0)
    shutil.copytree(place / "store", place / "kept")
    recipe = {**recipe, "records": {"mlflow": False}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    process = _start(place)
    while process.poll() is None and not list((place / "runs" / "x").glob(moment)):
        time.sleep(0.02)
    take(place)
    out, _ = process.communicate(timeout=LIMIT_SECONDS)
    if process.returncode != 1 or "Traceback" in out or words not in out:
        yield f"exit code {process.returncode}: {out[-1500:]}"
    (place / "filler").unlink(missing_ok=True)
    if not (place / "store").exists():
        shutil.move(place / "kept", place / "store")
    again = _start(place)
    out, _ = again.communicate(timeout=LIMIT_SECONDS)
    if again.returncode:
        yield f"the same command ended with {again.returncode}: {out[-1500:]}"


def _start(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "raysae.sweep", str(place / "recipe.yaml")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


PARTS = {
    "kill": kills,
    "disk": full_disks,
    "failing": failing_disks,
    "records": records,
    "runs": runs,
}


def main() -> int:
    """Try the parts and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)  # of more, a forked child has none
    lost = 0
    print(f"{'what was tried':<44} times  outcome")
    for part in args.part or PARTS:
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["RAYSAE_CACHE"] = str(Path(temporary) / "cache")
            for name, times, wrong in PARTS[part](Path(temporary) / part, args.most):
                told = "nothing lost" if not wrong else f"{len(wrong)} WRONG, first: {wrong[0]}"
                print(f"{name:<44} {times:>5}  {told}", flush=True)
                lost += len(wrong)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
