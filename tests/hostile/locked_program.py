"""A process that ends a run while MLflow at the address given does not take its records.

``python locked_program.py FOLDER URI LOCK``: with LOCK (``EXCLUSIVE`` or ``IMMEDIATE``) another process
holds the SQLite file locked from before the last records until this process has ended.
"""

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from raysae.config import load_recipe
from raysae.records.events import Failed, Item, RunEnded
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import MLflowRecorder

LOCK = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
other.execute(f"BEGIN {sys.argv[2]}")
print("locked", flush=True)
sys.stdin.read()
"""


def hold(file, kind):
    """Start a process that locks the file; its stdin, once closed, ends the lock."""
    lock = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(file), kind],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert lock.stdout.readline() == "locked\n"
    return lock


def count(file, rows):
    """How many rows of a kind the SQLite file has; 0 while it is made."""
    if not Path(file).exists():
        return 0
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
            return database.execute(f"select count(*) from {rows}").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def events(number):
    return [Failed(Item(f"trial/{n}", f"trial {n}", {"sae.k": n}), "no SAE") for n in range(number)]


def main(folder, uri, kind):
    given = [f"runs_dir={folder}", "name=r", f"records.tracking_uri={uri}"]
    with open_run(load_recipe(None, given)) as run:
        recorder = MLflowRecorder(run)
        if kind:  # the first records are written
            recorder.hear(events(1)[0])
            file = uri.removeprefix("sqlite:///")
            while not count(file, "runs where status = 'FAILED'"):
                time.sleep(0.05)
            lock = hold(file, kind)
        for event in events(5)[1:]:
            recorder.hear(event)
        recorder.hear(RunEnded({"l0": 1.0}, {}, []))
        started = time.monotonic()
        lost = recorder.close()
        report = {"lost": lost, "reason": recorder.reason, "close": time.monotonic() - started}
        Path(folder, f"{kind or 'server'}.json").write_text(json.dumps(report))
        if kind:
            lock.stdin.detach()  # held until the test has seen this process end


if __name__ == "__main__":
    main(*sys.argv[1:])
