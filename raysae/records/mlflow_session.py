"""Several writes to MLflow's own database in one transaction.

MLflow's client opens a session for each call, and four for a batch of metrics; each costs milliseconds,
and each commit waits for the disk. Here MLflow's own store makes the same rows in one session. Other
stores, such as a server, are written call by call.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any


class TransactionClient:
    """The calls of MLflow's client that make a run, answered by a store in one session."""

    def __init__(self, store: Any):
        self._store = store

    def create_run(
        self, experiment: str, start_time: int, tags: dict[str, str], run_name: str
    ) -> Any:
        """See ``MlflowClient.create_run``."""
        from mlflow.entities import RunTag

        made = [RunTag(key, value) for key, value in tags.items()]
        return self._store.create_run(experiment, "unknown", start_time, made, run_name)

    def log_inputs(self, run_id: str, datasets: list[Any]) -> None:
        """See ``MlflowClient.log_inputs``."""
        self._store.log_inputs(run_id, datasets)

    def log_batch(
        self, run_id: str, metrics: list[Any], params: list[Any], tags: Sequence[Any] = ()
    ) -> None:
        """See ``MlflowClient.log_batch``; here all that is written together is at most 1,000."""
        most = 1000 - len(params) - len(tags)
        self._store.log_batch(run_id, metrics[:most], params, list(tags))
        if metrics[most:]:
            self._store.log_batch(run_id, metrics[most:], [], [])

    def set_terminated(self, run_id: str, *, end_time: int) -> None:
        """See ``MlflowClient.set_terminated``; the run is finished."""
        from mlflow.entities import RunStatus

        self._store.update_run_info(run_id, RunStatus.FINISHED, end_time, None)


@contextmanager
def one_transaction(client: Any) -> Iterator[TransactionClient | None]:
    """A client whose writes are committed together at the end of the block, or not at all when it
    raises; None where ``client``, an ``MlflowClient``, does not write to a database itself."""
    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    maker = getattr(store, "ManagedSessionMaker", None)
    if store is None or maker is None:
        yield None
        return
    writes = {"read_only": False} if "read_only" in inspect.signature(maker).parameters else {}
    with maker(**writes) as session:
        session.commit = session.flush  # the store's methods commit; the last commit is below
        own = copy.copy(store)
        own.ManagedSessionMaker = lambda read_only=True: nullcontext(session)
        try:
            yield TransactionClient(own)
        finally:
            del session.commit
