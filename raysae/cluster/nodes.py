"""A cluster of several nodes: whether each of them sees the folders that trials write to and read."""

import uuid
from collections.abc import Sequence
from pathlib import Path

from raysae.errors import UserError
from raysae.storage.files import write_text
from raysae.storage.remote import bind, is_copy

LOOK_SECONDS = 120


def check_nodes(run: Path, stored: Path | None, uris: Sequence[str] = ()) -> None:
    """Raise UserError when a node of the connected Ray does not see the folder ``run``, or the file
    ``stored`` of a store, as this process does; of those that live at one of ``uris``, when it cannot
    reach that.

    With one node there is nothing to check.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    mark = run / f".seen-{uuid.uuid4().hex}"
    write_text(mark, mark.name)
    tokens = {run: mark, **({} if stored is None else {stored.parent: stored})}
    tokens = {folder: token for folder, token in tokens.items() if not is_copy(folder)}
    try:
        looks = {
            node["NodeManagerAddress"] + " " + node["NodeID"][:8]: _look_from(
                node["NodeID"], tokens, uris
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
            "all nodes mount, or that all reach (runs_dir=s3://..., store=s3://...)"
        )


def _look_from(node: str, tokens: dict[Path, Path], uris: Sequence[str]):  # type: ignore[no-untyped-def]
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(unseen).remote(tokens, uris)


def unseen(tokens: dict[Path, Path], uris: Sequence[str] = ()) -> list[str]:
    """What this process lacks of the folders, a clause each."""
    blind = [f"does not see {folder}" for folder, token in tokens.items() if not token.is_file()]
    for uri in uris:
        try:
            bind(uri)
        except UserError as error:
            blind.append(str(error))
    return blind
