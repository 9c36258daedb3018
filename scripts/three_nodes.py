"""Three nodes that share nothing but an S3 server: one is killed in mid-extraction, one in mid-scan.

    scripts/s3.sh  # once
    python scripts/three_nodes.py [--sequences 300] [--trials 4]

The nodes are raylets on this machine, each with a folder of its own for caches and temporary files.
Extracted store and run live on the server; the store is scanned from there. Killed is the node with the
most raysae actors; before the second kill, a new node takes the place of the first. The same recipe runs
undisturbed in a local folder. The exit code is 1 when a byte of the store, the trials' table or a trial's
weights differ from it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from kill_storm import content, stable
from pyarrow import fs
from s3_server import S3Server, missing, s3_server

BUCKET = "bucket"
NODE = {"num_cpus": 3, "object_store_memory": 200_000_000}
HEAD = {**NODE, "num_cpus": 0}
"""It stays, and so nothing is placed there that needs a CPU."""
OURS = ("PoolWorker", "Trainable", "SAETrials", "ScanService")
"""Parts of the names of raysae's actors."""


def recipe(place: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """An extraction and a sweep of scanned rows, both below ``place``."""
    source = {
        "sequences": args.sequences, "sequences_per_shard": args.sequences // 12, "layers": [1],
        "positions": ["all"],
    }  # fmt: skip
    configs = [{"sae.d_sae": 64, "sae.k": k} for k in range(2, 2 + args.trials)]
    return {
        "name": name, "runs_dir": f"{place}/runs", "store": f"{place}/store", "source": source,
        "atlas": {"enabled": False}, "records": {"mlflow": False},
        "training": {
            "epochs": 6, "batch_size": 64, "lr": 3e-3, "evaluations": 4, "shuffle_rows": 1024,
        },
        "sweep": {"sampler": "list", "configs": configs},
        "resources": {
            "reading": "scan", "memory": 3_000_000, "checkpoint_seconds": 0.5, "max_concurrent": 2,
            "retries": 10,
        },
    }  # fmt: skip


class Nodes:
    """The cluster of this process: a head that stays, and two nodes that may be killed."""

    def __init__(self, home: Path):
        from ray._common.utils import reset_ray_address
        from ray.cluster_utils import Cluster

        self.home, self.made = home, 0
        self.cluster = Cluster(initialize_head=True, head_node_args={**HEAD, **self._own()})
        reset_ray_address()  # which Cluster writes for all of the machine
        self.add()
        self.add()

    def add(self) -> None:
        """One more node."""
        self.cluster.add_node(**NODE, **self._own())

    def kill_busiest(self) -> list[str]:
        """Kill the node with the most of raysae's actors, not the head; the names of their classes."""
        import ray

        on: dict[str, list[str]] = {node.node_id: [] for node in self.cluster.worker_nodes}
        for actor in ray._private.state.actors().values():
            name, node = actor["ActorClassName"], actor["Address"]["NodeID"]
            if actor["State"] == "ALIVE" and node in on and any(one in name for one in OURS):
                on[node].append(name)
        lost = max(self.cluster.worker_nodes, key=lambda node: len(on[node.node_id]))
        self.cluster.remove_node(lost, allow_graceful=False)
        return sorted(on[lost.node_id])

    def _own(self) -> dict[str, dict[str, str]]:
        folders = {
            name: self.home / f"node-{self.made}" / name for name in ("RAYSAE_CACHE", "TMPDIR")
        }
        self.made += 1
        for folder in folders.values():
            folder.mkdir(parents=True)
        return {"env_vars": {name: str(folder) for name, folder in folders.items()}}


def listed(place: str, end: str) -> int:
    """How many objects below BUCKET/``place`` have a path with ``end`` in it."""
    there, path = fs.FileSystem.from_uri(f"s3://{BUCKET}")
    below = fs.FileSelector(f"{path}/{place}", recursive=True, allow_not_found=True)
    return sum(end in info.path for info in there.get_file_info(below))


def kills(nodes: Nodes, name: str, told: dict[str, Any], over: threading.Event) -> None:
    """Kill a node in mid-extraction, and one in mid-scan."""

    def wait(until: Callable[[], bool]) -> bool:
        while not (there := until()) and not over.is_set():
            time.sleep(0.1)
        return there

    if wait(lambda: listed("store", ".parquet") >= 2):
        told["shards there at the first kill"] = listed("store", ".parquet")
        told["whole store at the first kill"] = listed("store", "manifest.json") > 0
        told["first kill"] = nodes.kill_busiest()
        nodes.add()
    trials = f"runs/{name}/trials"
    if wait(lambda: listed(trials, ".training") + listed(trials, "metrics.json") > 0):
        told["trials there at the second kill"] = listed(trials, "metrics.json")
        told["second kill"] = nodes.kill_busiest()


def disturbed(asked: dict[str, Any], home: Path) -> dict[str, Any]:
    """Run the recipe on three nodes, two of which are killed; what was seen."""
    import ray

    import raysae

    nodes, over = Nodes(home), threading.Event()
    told: dict[str, Any] = {}
    ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
    nodes.cluster.wait_for_nodes()
    killer = threading.Thread(target=kills, args=(nodes, asked["name"], told, over))
    killer.start()
    try:
        result = raysae.sweep(asked)
        told |= {"folder": str(result.folder), "failures": result.failures}
        told["states"] = dict(Counter(row["state"] for row in result.trials))
    finally:
        over.set()
        killer.join()
        ray.shutdown()
        nodes.cluster.shutdown()
    return told


def program(config: Path, server: S3Server | None, home: Path) -> subprocess.CompletedProcess[str]:
    """The recipe in a process of its own: undisturbed, or with a server on three nodes."""
    cache = {"RAYSAE_CACHE": str(home / "driver")}
    command = ["-m", "raysae.sweep", str(config)]
    if server is not None:
        command = [__file__, "--disturbed", str(config), str(home)]
    return subprocess.run(
        [sys.executable, *command], check=False, capture_output=True, text=True,
        env={**os.environ, **cache, **(server.environment if server else {})},
    )  # fmt: skip


def brought(server: S3Server, place: str, to: Path) -> dict[str, bytes]:
    """The content of the objects below BUCKET/``place``, also written to a folder."""
    with server.named_in(os.environ):
        there, path = fs.FileSystem.from_uri(f"s3://{BUCKET}/{place}")
        fs.copy_files(path, str(to), source_filesystem=there)
    return visible(to)


def visible(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder that are not hidden."""
    found = content(folder, "*")
    return {name: value for name, value in found.items() if not hidden(name)}


def hidden(name: str) -> bool:
    """Whether a part of a path begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def compared(server: S3Server, folder: Path) -> dict[str, bool]:
    """Whether each product on the server is that of the undisturbed run."""
    store = brought(server, "store", folder / "there" / "store")
    run, peace = folder / "there" / "run", folder / "peace" / "runs" / "nodes"
    brought(server, "runs/nodes", run)
    weights = [content(one / "trials", "sae.safetensors") for one in (peace, run)]
    return {
        f"store ({len(store)} files)": store == visible(folder / "peace" / "store"),
        "trials.parquet": stable(run / "trials.parquet") == stable(peace / "trials.parquet"),
        f"weights ({len(weights[1])} files)": weights[0] == weights[1],
    }


def measured(server: S3Server, folder: Path, args: argparse.Namespace) -> bool:
    """Run both, print what was seen; returns whether all is equal."""
    server.make_bucket(BUCKET)
    for name, place in (("peace", str(folder / "peace")), ("nodes", f"s3://{BUCKET}")):
        config, began = folder / f"{name}.yaml", time.monotonic()
        config.write_text(yaml.safe_dump(recipe(place, "nodes", args)))
        done = program(config, server if name == "nodes" else None, folder / name)
        print(f"{name}: exit code {done.returncode}, {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-4000:])
            return False
    told = json.loads(done.stdout.splitlines()[-1])
    for key, value in told.items():
        print(f"  {key}: {value}")
    checks = compared(server, folder)
    for name, equal in checks.items():
        print(f"  {name}: {'equal' if equal else 'DIFFERENT'}")
    both = "second kill" in told and not told["whole store at the first kill"]
    in_time = both and told["trials there at the second kill"] < args.trials
    return all(checks.values()) and in_time and not told["failures"]


def main() -> int:
    """Run the test; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--disturbed", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.disturbed:
        config, home = args.disturbed
        print(json.dumps(disturbed(yaml.safe_load(config.read_text()), home)))
        return 0
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name, s3_server() as server:
        return 0 if measured(server, Path(name), args) else 1


if __name__ == "__main__":
    from raysae.console.quiet import quiet_environment

    quiet_environment()
    sys.exit(main())
