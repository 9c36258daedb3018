"""A cluster of several nodes: whether each sees the folders that trials read and write."""

import uuid
from collections.abc import Sequence
from pathlib import Path

from raysae.errors import UserError
from raysae.storage.file_systems import reached
from raysae.storage.files import write_text
from raysae.storage.remote import bind, is_copy

LOOK_SECONDS = 120
"""Seconds to wait for the answers of all nodes."""


def check_nodes(
    run: Path, stored: Path | None, uris: Sequence[str] = (), read: Sequence[str] = ()
) -> None:
    """Check that every node of the connected Ray sees the same folders as this process.

    ``run`` is the run's folder and ``stored`` a file of the store. Local copies of a URI are not
    checked; instead, every node must reach each of ``uris``, of which it keeps a copy, and of ``read``,
    which are read where they are. With one node there is nothing to check.
    Raises UserError that lists each node's problems.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    marker = run / f".seen-{uuid.uuid4().hex}"
    write_text(marker, marker.name)
    files = {run: marker, **({} if stored is None else {stored.parent: stored})}
    files = {folder: file for folder, file in files.items() if not is_copy(folder)}
    try:
        answers = {
            node["NodeManagerAddress"] + " " + node["NodeID"][:8]: _look_from(
                node["NodeID"], files, uris, read
            )
            for node in nodes
        }
        ready, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=LOOK_SECONDS)
        problems = [
            f"node {name} {problem}"
            for name, answer in answers.items()
            for problem in (ray.get(answer) if answer in ready else ["did not answer"])
        ]
    finally:
        marker.unlink(missing_ok=True)
    if problems:
        raise UserError(
            f"{'; '.join(problems)}; trials read and write these on every node: use "
            "folders on storage that all nodes mount, or URIs that all nodes reach "
            "(runs_dir=s3://..., store=s3://...)"
        )


def _look_from(  # type: ignore[no-untyped-def]
    node: str, files: dict[Path, Path], uris: Sequence[str], read: Sequence[str]
):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(unseen).remote(files, uris, read)


def unseen(
    files: dict[Path, Path], uris: Sequence[str] = (), read: Sequence[str] = ()
) -> list[str]:
    """What this process cannot see or reach, one clause each.

    ``files`` maps each folder to a file in it that must be visible.
    """
    problems = [f"does not see {folder}" for folder, file in files.items() if not file.is_file()]
    for reach, uri in (*((bind, uri) for uri in uris), *((reached, uri) for uri in read)):
        try:
            reach(uri)
        except UserError as error:
            problems.append(str(error))
    return problems
