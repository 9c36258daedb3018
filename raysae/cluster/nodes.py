"""A cluster of several nodes: whether each of them sees the folders that trials write to and read."""

import uuid
from pathlib import Path

from raysae.errors import UserError
from raysae.files import write_text

LOOK_SECONDS = 120


def check_nodes(run: Path, stored: Path | None) -> None:
    """Raise UserError when a node of the connected Ray does not see the folder ``run``, or the file
    ``stored`` of a store, as this process does.

    With one node there is nothing to check.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    mark = run / f".seen-{uuid.uuid4().hex}"
    write_text(mark, mark.name)
    tokens = {run: mark, **({} if stored is None else {stored.parent: stored})}
    try:
        looks = {
            node["NodeManagerAddress"] + " " + node["NodeID"][:8]: _look_from(
                node["NodeID"], tokens
            )
            for node in nodes
        }
        ready, _ = ray.wait(list(looks.values()), num_returns=len(looks), timeout=LOOK_SECONDS)
        blind = [
            f"node {name} {problem}"
            for name, look in looks.items()
            for problem in (ray.get(look) if look in ready else ["did not answer"])
        ]
    finally:
        mark.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"{'; '.join(blind)}; trials read and write there on every node: use folders on storage that "
            "all nodes mount (runs_dir=, store=), or a cluster of nodes that do"
        )


def _look_from(node: str, tokens: dict[Path, Path]):  # type: ignore[no-untyped-def]
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(unseen).remote(tokens)


def unseen(tokens: dict[Path, Path]) -> list[str]:
    """What this process lacks of the folders, a clause each."""
    return [f"does not see {folder}" for folder, token in tokens.items() if not token.is_file()]
