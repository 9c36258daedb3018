"""A file larger than memory can be imported: what is held follows the shard, not the file."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MB = 2**20
FILE_MB = 288
HELD_MB = FILE_MB * 0.6
"""What is held is the libraries' and threads' own for the most part: with 40 MB it is no less."""
D_IN = 256
ROWS = FILE_MB * MB // (4 * D_IN)

MEASURED = """
import sys, threading, time
import pyarrow.parquet, torch
from raysae.activations.importing.run import import_activations

def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon"))

peak, before = 0.0, held()

def watch():
    global peak
    while True:
        peak = max(peak, held() - before)
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
import_activations(sys.argv[1], sys.argv[2], layer=0, position="all", shard_rows=4000)
assert not {"ray", "mlflow", "optuna"} & set(sys.modules)
print(peak)
"""


def npy(folder, rows):
    np.save(folder / "x.npy", rows)
    return folder / "x.npy"


def parquet(folder, rows):
    """One row group, as pyarrow writes it by default."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), D_IN)
    pq.write_table(pa.table({"x": column}), folder / "x.parquet", row_group_size=ROWS)
    return folder / "x.parquet"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("write", [npy, parquet])
def test_memory_held_stays_well_below_the_file(tmp_path, write):
    rows = np.random.default_rng(0).standard_normal((ROWS, D_IN), dtype=np.float32)
    file = write(tmp_path, rows)
    command = [sys.executable, "-c", MEASURED, str(file), str(tmp_path / "s")]
    held = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"held {held:.0f} MB of {file.stat().st_size / MB:.0f}")
    assert held < HELD_MB
