"""A Ray of three nodes on this machine; a sweep joins it, and one node is killed in mid-sweep.

Run and store live at a URI, and every node has a cache of its own: no two share a folder.
"""

import json
import sys
import threading
import time
from pathlib import Path

from raysae.console.quiet import quiet_environment

quiet_environment()

import ray  # noqa: E402
from ray._common.utils import reset_ray_address  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

import raysae  # noqa: E402


def main(recipe: dict, home: Path) -> None:
    node = {"num_cpus": 1, "object_store_memory": 200_000_000}
    caches = iter(range(3))

    def cache() -> dict:
        return {"env_vars": {"RAYSAE_CACHE": str(home / f"cache-{next(caches)}")}}

    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 2, **cache()})
    reset_ray_address()  # which Cluster writes for all of the machine, the tests beside this one too
    lost = cluster.add_node(**node, **cache())
    cluster.add_node(**node, **cache())
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()
    killed: list[int] = []
    trials = home / "runs" / recipe["name"] / "trials"

    def kill_a_node() -> None:
        while (committed := len(list(trials.glob("*/metrics.json")))) < 2:
            time.sleep(0.05)
        killed.append(committed)  # others may end while the node is taken away
        cluster.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    result = raysae.sweep(recipe)
    killer.join()
    states = [row["state"] for row in result.trials]
    told = {"states": states, "failures": result.failures, "committed": killed[0]}
    print(json.dumps({**told, "folder": str(result.folder)}))
    ray.shutdown()
    cluster.shutdown()


main(json.loads(sys.argv[1]), Path(sys.argv[2]))
