"""A Ray of three nodes on this machine shares a site in pieces; one node is killed afterwards.

The store lives at a URI, and every node has a cache of its own: no two share a folder.
"""

import hashlib
import json
import sys
from pathlib import Path

from raysae.console.quiet import quiet_environment

quiet_environment()

import ray  # noqa: E402
import torch  # noqa: E402
from ray._common.utils import reset_ray_address  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.experimental import get_object_locations  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

import raysae  # noqa: E402
from raysae.cluster.sharing import share_site  # noqa: E402


def digest(site) -> str:
    """Of the rows' bytes: a sum of floats would depend on the number of threads."""
    rows = torch.cat(site.tensors("train"))
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def main(home: Path) -> None:
    node = {"num_cpus": 1, "object_store_memory": 200_000_000}
    caches = iter(range(3))

    def cache() -> dict:
        return {"env_vars": {"RAYSAE_CACHE": str(home / f"cache-{next(caches)}")}}

    cluster = Cluster(initialize_head=True, head_node_args={**node, **cache()})
    reset_ray_address()  # which Cluster writes for all of the machine, the tests beside this one too
    others = [cluster.add_node(**node, **cache()) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()
    store = raysae.open_store(f"file://{home}/store")
    (site,) = store.sites
    shared = share_site(store, site, piece_bytes=2 * 2**20)
    places = get_object_locations(shared.blocks["train"])
    holders = [set(places[block]["node_ids"]) for block in shared.blocks["train"]]
    there = NodeAffinitySchedulingStrategy(others[0].node_id, soft=False)
    pulled = ray.get(ray.remote(digest).options(scheduling_strategy=there).remote(shared))
    cluster.remove_node(others[1], allow_graceful=False)
    lost = sum(held == {others[1].node_id} for held in holders)
    rows = shared.rows("train")
    equal = torch.equal(rows.read(0, len(rows)), store.train(site))
    told = {"pieces": len(holders), "readers": len(set.union(*holders)), "lost": lost}
    print(json.dumps({**told, "equal": equal, "pulled": pulled == digest(shared)}))
    ray.shutdown()
    cluster.shutdown()


main(Path(sys.argv[1]))
