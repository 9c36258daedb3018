"""What 1,000 sites cost beside their training: milliseconds a site, MLflow's part, the report's.

    python scripts/many_sites.py [--sites 1000] [--shape tiny] [--no-mlflow] [--folder FOLDER]

Writes a synthetic store of so many layers and trains an atlas of a given config on it, without the
analysis of features. A tiny site has a few hundred rows of 16 numbers; one of R3's shape has 800 training
rows of 768 numbers, for an SAE of 512 latents in 25 epochs. Overhead is what the atlas takes beyond its
training loops, in its workers' time. The exit code is 1 when it is 50 ms a tiny site or more, when MLflow
takes longer than the atlas itself, or when the records of sites of R3's shape take 5% of their training:
of the processor's time, or by the wait at the end.
"""

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.pipeline.result import SweepResult
from raysae.records.lanes import Lanes
from raysae.records.mlflow_listener import MLflowRecorder

MOST = 0.05
"""Seconds of overhead a tiny site that count as too many; and the part of a training that its records
may take."""


@dataclass(frozen=True)
class Shape:
    """A site and its training."""

    d_in: int
    atoms: int
    rows: int
    sae: dict[str, Any]
    training: dict[str, Any]


SHAPES = {
    "tiny": Shape(16, 24, 300, {"d_sae": 32, "k": 2}, {"epochs": 3, "batch_size": 64}),
    "r3": Shape(768, 1024, 1000, {"d_sae": 512, "k": 150}, {"epochs": 25, "batch_size": 256}),
}


def recipe(folder: Path, shape: Shape, mlflow: bool) -> dict[str, Any]:
    """The recipe of an atlas without a search."""
    return {
        "name": "many", "runs_dir": str(folder / "runs"), "store": str(folder / "store"),
        "source": None, "sweep": {"enabled": False}, "sae": shape.sae,
        "training": {**shape.training, "evaluations": 2},
        "records": {"mlflow": mlflow}, "analyze": {"phases": []},
    }  # fmt: skip


class Waited:
    """How long a run waited at its end for MLflow, and the processor's time of the thread that writes."""

    seconds = processor = 0.0

    def __enter__(self) -> "Waited":
        close, work = self._methods = MLflowRecorder.close, Lanes._work

        def timed(recorder: MLflowRecorder) -> int:
            began = time.monotonic()
            lost = close(recorder)
            self.seconds += time.monotonic() - began
            return lost

        def counted(lanes: Lanes, waiting: Any) -> None:
            work(lanes, waiting)
            self.processor += time.thread_time()

        MLflowRecorder.close = timed  # type: ignore[method-assign]
        Lanes._work = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        MLflowRecorder.close, Lanes._work = self._methods  # type: ignore[method-assign]


def training_seconds(result: SweepResult) -> float:
    """Seconds that the training loops took, summed over the sites: steps and waiting for rows."""
    return sum(row["tokens"] / row["tokens_per_second"] for row in result.atlas)


def told(result: SweepResult, waited: Waited, workers: int, tiny: bool) -> bool:
    """Print the figures; whether they are good."""
    sites, atlas = len(result.atlas), result.run.seconds("atlas") or 0.0
    trained = training_seconds(result)
    overhead = (atlas - trained / workers) / sites
    page = result.run.report_page.stat().st_size
    print(
        f"{sites} sites: atlas {atlas:.1f} s, of which training {trained / workers:.1f} s in {workers} "
        "workers"
    )
    print(
        f"overhead {1000 * overhead:.1f} ms a site; MLflow waited for at the end {waited.seconds:.1f} s, "
        f"{1000 * waited.processor / sites:.1f} ms of the processor a site"
    )
    print(f"report {result.run.seconds('report') or 0.0:.1f} s, a page of {page / 1e6:.2f} MB")
    shares = waited.processor / trained, waited.seconds / atlas
    print(f"records: {shares[0]:.1%} of the training by the processor, {shares[1]:.1%} by the wait")
    good = overhead < MOST if tiny else max(shares) < MOST
    return good and waited.seconds <= atlas and not result.failures


def main() -> int:
    """Run, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-mlflow", action="store_true")
    parser.add_argument("--profile", action="store_true", help="what the driver's time goes to")
    parser.add_argument("--folder", type=Path, help="where the store and the run stay")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, Waited() as waited:
        folder = arguments.folder or Path(temporary)
        shape = SHAPES[arguments.shape]
        world = SuperpositionWorld(d_in=shape.d_in, atoms=shape.atoms, p=0.08)
        if not (folder / "store").exists():
            write_synthetic_store(
                folder / "store", world, shape.rows, sites=arguments.sites, test=0.0
            )
        wanted = recipe(folder, shape, not arguments.no_mlflow)
        wanted["resources"] = {"max_concurrent": arguments.workers}
        profile = cProfile.Profile()
        if arguments.profile:
            profile.enable()
        result = raysae.sweep(wanted)
        if arguments.profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
        tiny = arguments.shape == "tiny"
        return 0 if told(result, waited, arguments.workers, tiny) else 1


if __name__ == "__main__":
    sys.exit(main())
