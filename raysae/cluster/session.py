"""Starting and joining Ray, quietly, and what it has to offer."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from raysae.config import ResourcesConfig

QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Set before Ray, MLflow and tokenizers are imported; values the user has set stay."""


def quiet_environment() -> None:
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def ray_session(resources: ResourcesConfig) -> Iterator[None]:
    """A connected Ray inside the block: the caller's own, a cluster's, or one started here.

    What was started here is stopped at the end.
    """
    import ray

    if ray.is_initialized():
        _quiet_data()
        yield
        return
    address = resources.address or os.environ.get("RAY_ADDRESS")
    common = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        ray.init(address=address, **common)
    else:
        ray.init(
            address="local", num_cpus=resources.cpus, include_dashboard=resources.dashboard,
            dashboard_host="127.0.0.1", **common,
        )  # fmt: skip
    _quiet_data()
    try:
        yield
    finally:
        ray.shutdown()


def dashboard_url() -> str | None:
    import ray

    url = getattr(ray.get_runtime_context(), "dashboard_url", None) or getattr(
        ray._private.worker.global_worker.node, "webui_url", None
    )
    return f"http://{url}" if url else None


def _quiet_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
