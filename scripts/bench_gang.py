"""Eight SAEs of different sizes on one stream of rows (R3), compared with eight trainings.

    python scripts/bench_gang.py [--rows 16384] [--epochs 4] [--repeats 3] [--device cuda]

The rows (d_in 768, float16) are a site of a store. They are streamed from disk during training, in
windows of 4,096 rows. "rows read" counts the rows that training received; "waited" is the time that
training waited for them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_training import Shape, rows_of
from machine import machine, synchronize

import raysae
from raysae.activations import Site
from raysae.activations.streaming import StreamedRows
from raysae.activations.writer import write_store
from raysae.training import Splits, TrainingConfig
from raysae.training.rows import Rows

CONFIGS = [
    {"variant": "topk", "d_sae": d_sae, "k": k}
    for d_sae, k in (
        (512, 150), (512, 100), (384, 75), (256, 75), (256, 50), (192, 40), (256, 30), (192, 20),
    )
]  # fmt: skip
SHAPE = Shape(768, 512, 150, 256, steps=0)
SITE = Site(8, 3)


class CountedRows(StreamedRows):
    """Streamed rows that count how many of them were read."""

    delivered = 0

    def taken(self, order, batch_size):  # type: ignore[no-untyped-def]
        """See ``IndexedRows.taken``; it also counts the rows."""
        for part_ND in super().taken(order, batch_size):
            self.delivered += len(part_ND)
            yield part_ND


def run(precision: str, store: Path, args: argparse.Namespace) -> None:
    """Measure and print the table's rows for one precision."""
    training = TrainingConfig(
        batch_size=SHAPE.batch, epochs=args.epochs, lr=1e-3, precision=precision, evaluations=1,
        shuffle_rows=4096,
    )  # fmt: skip
    held_out = Rows(rows_of(SHAPE, 1024, 2).to(args.device))
    results: dict[str, list[tuple[float, int, float]]] = {"gang": [], "eight fits": []}
    evs: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        for way in results:
            rows = CountedRows(raysae.open_store(store), SITE, "train")
            splits = Splits(rows, held_out)
            synchronize(args.device)
            started = time.perf_counter()
            if way == "gang":
                fits = raysae.fit_many(
                    CONFIGS, splits, training, device=args.device, progress=False
                )
            else:
                fits = [
                    raysae.fit(config, splits, training, device=args.device, progress=False)
                    for config in CONFIGS
                ]
            synchronize(args.device)
            results[way].append((time.perf_counter() - started, rows.delivered, waited(fits, way)))
            evs[way] = [fit.metrics["explained_variance"] for fit in fits]
    gang = [seconds for seconds, _, _ in results["gang"]]
    for way, measured in results.items():
        times = [seconds for seconds, _, _ in measured]
        ratio = statistics.median(time / least for time, least in zip(times, gang, strict=True))
        print(f"{precision:9} {way:11} {statistics.median(times):7.2f} s {ratio:6.2f} "
              f"{measured[0][1]:>12,} {statistics.median(w for _, _, w in measured):8.2f} s")  # fmt: skip
    apart = max(abs(a - b) for a, b in zip(evs["gang"], evs["eight fits"], strict=True))
    print(f"{precision:9} EV {min(evs['gang']):.4f} to {max(evs['gang']):.4f}; "
          f"gang and fits differ by at most {apart:.1e}")  # fmt: skip


def waited(fits: list[raysae.training.Fit], way: str) -> float:
    """Seconds of waiting for rows; the members of ``fit_many`` wait together."""
    every = [fit.wait_seconds for fit in fits]
    return max(every) if way == "gang" else sum(every)


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"{machine(args.device)}, {torch.get_num_threads()} threads; {args.rows:,} rows, "
          f"{args.epochs} epochs; medians of {args.repeats}")  # fmt: skip
    print(f"{'type':9} {'way':11} {'time':>9} {'/ gang':>6} {'rows read':>12} {'waited':>10}")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        write_store(
            store, {SITE: [rows_of(SHAPE, args.rows, 1)]}, provenance="synthetic", source={},
            dtype="float16", split={"validation": 0.0, "test": 0.0},
        )  # fmt: skip
        for precision in ("bfloat16", "float32"):
            run(precision, store, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
