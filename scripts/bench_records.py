"""What records cost: reports of a trial, and a tracking server that is down, slow, or dies in the middle.

    python scripts/bench_records.py [--part reports,outages] [--seconds 240] [--turns 1]

reports: what the driver's processor needs for one report, told to all listeners (console, MLflow in a
SQLite file, gauges of a real Ray); and what each of several hundred reports adds to a trial's time, with
MLflow and Ray's dashboard, against the same trial with one report at its end and without MLflow. What
their evaluations take is left out, by the same two trainings in this process. The best of --turns counts.

outages: the same sweep of about --seconds without records, with a healthy server, and with one that is
down from the start, takes 2 s a call, or is killed once half of the trials are done. Afterwards a healthy
server is there, the same command runs again, and all that MLflow should have is looked for.

For the outer clock the machine should do nothing else. The exit code is 1 when a report costs 2% of a
second or more, when a sweep takes 5% longer than without records, or when a record is missing in the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from counting_proxy import CountingProxy
from mlflow import MlflowClient
from mlflow_server import HOST, MLflowServer
from s3_server import free_port

import raysae
from raysae.activations import Site
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.console.quiet import quiet_environment
from raysae.records.events import Events, Item, Progressed
from raysae.records.tables import read_table
from raysae.storage.files import read_json

ROOT = Path(__file__).resolve().parents[1]
WIDTH, ROWS, BATCH = 64, 20_000, 256
SAE = {"d_sae": 512, "k": 16}
TRIALS, LAYERS = 8, 4
SLOW_SECONDS = 2.0
MOST_OF_A_SECOND, MOST_GROWTH = 0.02, 0.05
"""A report's cost, and a sweep's growth, that are too much."""
REPORTS = 400
TOLD_OFTEN = 500
"""Reports of a trial that makes many."""
KINDS = ("off", "healthy", "down", "slow", "dying")


def training(seconds: float, speed: float, evaluations: int) -> dict[str, Any]:
    """Settings of a training that takes about ``seconds`` at ``speed`` tokens a second."""
    epochs = max(round(seconds * speed / ROWS), 1)
    return {"epochs": epochs, "batch_size": BATCH, "lr": 1e-3, "evaluations": evaluations}


def speed_of(store: Path) -> float:
    """Tokens a second of one such training on one thread, as a trial has it."""
    torch.set_num_threads(1)
    opened = raysae.open_store(store)
    rows, count = opened.site(Site(0, "all")), opened.entry(Site(0, "all")).rows.train
    config, settings = {"variant": "topk", **SAE}, training(0.0, 0.0, 1)
    raysae.fit(config, rows, settings, progress=False)  # compiles the kernels
    began = time.perf_counter()
    raysae.fit(config, rows, {**settings, "epochs": 4}, progress=False)
    return 4 * count / (time.perf_counter() - began)


class Sweep:
    """A sweep in a process of its own, as the command line makes it."""

    def __init__(self, folder: Path, name: str, given: dict[str, Any], uri: str | None):
        self.run, self.cpu = folder / "runs" / name, 0.0
        self.file = folder / f"{name}.yaml"
        self.file.write_text(json.dumps({
            "name": name, "runs_dir": str(folder / "runs"), "store": str(folder / "store"),
            "source": None, "sae": SAE, "select": {"rule": "max_ev"}, "analyze": {"phases": []},
            "records": {"mlflow": uri is not None}, **given,
        }))  # fmt: skip
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if uri is not None:
            self.environment["MLFLOW_TRACKING_URI"] = uri

    def seconds(self) -> float:
        """Run it; the clock's seconds. Raises RuntimeError when it fails."""
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "raysae.sweep", str(self.file)], stdout=said,
                stderr=subprocess.STDOUT, env=self.environment,
            )  # fmt: skip
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            took, self.cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
            said.seek(0)
            if process.returncode:
                raise RuntimeError(f"{self.file.stem}: {said.read()[-4000:]}")
        return took

    @property
    def lost(self) -> int:
        """Records that MLflow did not take."""
        return int(read_json(self.run / "status.json").get("records_lost", 0))

    @property
    def committed(self) -> int:
        """Trials that are done."""
        return len(list((self.run / "trials").glob("*/metrics.json")))


def listed(count: int) -> dict[str, Any]:
    """So many trials, each with a K of its own."""
    configs = [{"sae.k": 8 + number} for number in range(count)]
    return {"sampler": "list", "configs": configs, "controls": "none"}


# -- reports ------------------------------------------------------------------------------------------


def driver_seconds(folder: Path) -> float:
    """The processor's seconds of this process for one report that all listeners hear."""
    from raysae.cluster.session import ray_session
    from raysae.config import parse_recipe
    from raysae.config.resources import ResourcesConfig
    from raysae.pipeline.gauges import GaugeListener
    from raysae.records.console_listener import ConsoleListener
    from raysae.records.folder import open_run
    from raysae.records.mlflow_listener import MLflowRecorder

    recipe = parse_recipe({"name": "told", "runs_dir": str(folder / "told"), "source": None,
                           "store": str(folder / "store")})  # fmt: skip
    record = {
        "explained_variance": 0.8, "l0": 16.0, "dead_fraction": 0.01, "mse": 0.2, "fvu": 0.2,
        "loss": 0.3, "tokens": 1, "tokens_per_second": 5e4, "wait_seconds": 0.1, "lr": 1e-3,
        "memory_bytes": 3e8,
    }  # fmt: skip
    items = [Item(f"trial/{n}", f"trial {n}", {"sae.k": n}) for n in range(TRIALS)]
    with ray_session(ResourcesConfig(dashboard=True)), open_run(recipe) as run:
        recorder, gauges = MLflowRecorder(run), GaugeListener("told")
        events = Events(ConsoleListener(), recorder, gauges)
        with events.work("Sweep", TRIALS) as emit:
            tell(emit, items, record, 0)
            wait_for(recorder)
            began = time.process_time()
            for number in range(1, REPORTS // TRIALS + 1):
                tell(emit, items, record, number)
            wait_for(recorder)
            took = time.process_time() - began
        gauges.close()
        recorder.close()
    return took / REPORTS


def tell(emit: Callable[[Any], None], items: list[Item], record: dict[str, Any], step: int) -> None:
    """A report of each trial."""
    for item in items:
        figures = {**record, "step": step, "explained_variance": 0.8 + step * 1e-4}
        emit(Progressed(item, figures, step / REPORTS))


def wait_for(recorder: Any) -> None:
    """Wait until MLflow has all that was told."""
    while recorder._lanes.left:
        time.sleep(0.01)


def trial_seconds(folder: Path, name: str, given: dict[str, Any], uri: str | None) -> float:
    """Seconds of the one trial of a sweep, from its start to its commit."""
    made = {"sweep": listed(1), "atlas": {"enabled": False}, **given}
    sweep = Sweep(folder, name, made, uri)
    sweep.seconds()
    (row,) = read_table(sweep.run / "trials.parquet")
    return float(row["seconds"])


def evaluation_seconds(folder: Path, settings: dict[str, Any]) -> float:
    """Seconds of the same training in this process, which reports to nobody."""
    began = time.perf_counter()
    store = raysae.open_store(folder / "store")
    rows = store.site(Site(0, "all"))
    raysae.fit({"variant": "topk", **SAE}, rows, settings, progress=False)
    return time.perf_counter() - began


def reports(folder: Path, seconds: float, turns: int, speed: float) -> bool:
    """Measure and print what reports cost; whether it is little enough."""
    each = driver_seconds(folder)
    print(f"a report costs the driver {1000 * each:.2f} ms of the processor", flush=True)
    often, once = (training(seconds, speed, count) for count in (TOLD_OFTEN, 1))
    given = {"resources": {"dashboard": True, "max_concurrent": 1}}
    took: dict[str, list[float]] = {
        name: [] for name in ("often", "once", "alone often", "alone once")
    }
    for turn in range(turns):
        uri = f"sqlite:///{folder}/often-{turn}.db"
        took["often"].append(
            trial_seconds(folder, f"often-{turn}", {**given, "training": often}, uri)
        )
        took["once"].append(
            trial_seconds(folder, f"once-{turn}", {**given, "training": once}, None)
        )
        took["alone often"].append(evaluation_seconds(folder, often))
        took["alone once"].append(evaluation_seconds(folder, once))
        print(", ".join(f"{name} {values[-1]:.1f} s" for name, values in took.items()), flush=True)
    best = {name: min(values) for name, values in took.items()}
    evaluation = (best["alone often"] - best["alone once"]) / TOLD_OFTEN
    whole = (best["often"] - best["once"]) / TOLD_OFTEN
    print(
        f"a trial takes {1000 * whole:.1f} ms longer for each evaluation with a report, records, gauges "
        f"and dashboard; the evaluation alone takes {1000 * evaluation:.1f} ms: a report costs "
        f"{whole - evaluation:.1%} of a second"
    )
    return each < MOST_OF_A_SECOND and whole - evaluation < MOST_OF_A_SECOND


# -- outages ------------------------------------------------------------------------------------------


@contextmanager
def tracking(kind: str, server: MLflowServer, sweep: Sweep) -> Iterator[str]:
    """The address of a tracking server of this kind, for the block."""
    if kind == "down":
        yield server.uri
    elif kind == "slow":
        server.start()
        with CountingProxy(server.port) as proxy:
            proxy.fail("delay", seconds=SLOW_SECONDS)
            yield f"http://{HOST}:{proxy.port}"
    elif kind == "dying":
        server.start()
        over = threading.Event()
        killer = threading.Thread(
            target=kill_in_the_middle, args=(server, sweep, over), daemon=True
        )
        killer.start()
        yield server.uri
        over.set()
        killer.join()
    else:
        yield server.start().uri


def kill_in_the_middle(server: MLflowServer, sweep: Sweep, over: threading.Event) -> None:
    """Kill the server once half of the trials are done."""
    while sweep.committed < TRIALS // 2 and not over.wait(0.05):
        pass
    server.kill()


def timed(
    folder: Path, kind: str, name: str, given: dict[str, Any]
) -> tuple[float, float, int, list[str]]:
    """Seconds of a sweep by the clock, those of its driver's processor, records that were lost, and what
    is missing after the same command again."""
    if kind == "off":
        sweep = Sweep(folder, name, given, None)
        return sweep.seconds(), sweep.cpu, 0, []
    place = folder / f"server-{name}"
    place.mkdir()
    server = MLflowServer(place, free_port())
    sweep = Sweep(folder, name, given, server.uri)
    try:
        with tracking(kind, server, sweep) as uri:
            sweep.environment["MLFLOW_TRACKING_URI"] = uri
            seconds, cpu, lost = sweep.seconds(), sweep.cpu, sweep.lost
        server.kill()
        server.start()
        sweep.environment["MLFLOW_TRACKING_URI"] = server.uri
        sweep.seconds()
        return seconds, cpu, lost, missing(server.uri, given["training"]["evaluations"])
    finally:
        server.kill()


def missing(uri: str, evaluations: int) -> list[str]:
    """What MLflow lacks of the sweep, in words."""
    client = MlflowClient(uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    found = [one.data.tags.get("kind", "") for one in runs]
    wanted = {"sweep": 1, "trial": TRIALS, "site": LAYERS}
    wrong = [f"{kind}: {found.count(kind)} of {number}" for kind, number in wanted.items()
             if found.count(kind) != number]  # fmt: skip
    for one in runs:
        name, about = one.info.run_name, one.data.tags.get("kind")
        if one.info.status != "FINISHED":
            wrong.append(f"{name}: {one.info.status}")
        if about in ("trial", "site"):
            steps = client.get_metric_history(one.info.run_id, "explained_variance")
            if len({metric.step for metric in steps}) != evaluations:
                wrong.append(f"{name}: {len(steps)} evaluations")
            if len(client.list_artifacts(one.info.run_id, "sae")) < 3:
                wrong.append(f"{name}: no files")
    models = client.search_logged_models([runs[0].info.experiment_id]) if runs else []
    return wrong if len(models) == 2 else [*wrong, f"{len(models)} models"]


def outages(folder: Path, seconds: float, turns: int, speed: float, kinds: list[str]) -> bool:
    """Measure and print what outages cost; whether it is little enough, and nothing is missing."""
    given = {
        "training": training(2 * seconds / (TRIALS + LAYERS), speed, 10), "sweep": listed(TRIALS),
        "resources": {"max_concurrent": 2},
    }  # fmt: skip
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    good = True
    for turn in range(turns):
        for kind in kinds:
            seconds, cpu, lost, wrong = timed(folder, kind, f"{kind}-{turn}", given)
            took[kind].append(seconds)
            good = good and not wrong
            told = "complete" if not wrong else f"MISSING {'; '.join(wrong)}"
            print(
                f"{kind:8} {seconds:7.1f} s (the driver {cpu:.0f} s of the processor), {lost} records "
                f"sent later, then {told}",
                flush=True,
            )
    base = statistics.median(took[kinds[0]])
    for kind in kinds[1:]:
        growth = statistics.median(took[kind]) / base - 1
        good = good and (kind == "healthy" or growth < MOST_GROWTH)
        print(f"{kind:8} {growth:+.1%} against {kinds[0]}")
    return good


def main() -> int:
    """Measure, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="reports,outages")
    parser.add_argument("--seconds", type=float, default=240.0, help="of a sweep (240)")
    parser.add_argument("--trial", type=float, default=20.0, help="seconds of a trial that reports")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help="of tracking servers, the base first"
    )
    args = parser.parse_args()
    quiet_environment()
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = SuperpositionWorld(d_in=WIDTH, atoms=2 * WIDTH, p=0.05)
        write_synthetic_store(folder / "store", world, ROWS, sites=LAYERS, test=0.0)
        speed = speed_of(folder / "store")
        print(f"one training: {speed:,.0f} tokens a second on one thread", flush=True)
        if "reports" in args.part:
            good = reports(folder, args.trial, args.turns, speed) and good
        if "outages" in args.part:
            kinds = args.kinds.split(",")
            good = outages(folder, args.seconds, args.turns, speed, kinds) and good
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
