"""What Ray and Tune do that a sweep on one machine has no use for, left out: seconds of every start.

These are Ray's internals. Where a release has another name for one of them, it is done after all, which
only takes longer; ``tests/cluster/test_lean.py`` says so.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from raysae.config import ResourcesConfig

MOST_READY = 8
"""Workers that may import what trials need before there are any trials; each holds some 300 MB."""
READY_MS = 5_000
"""For how long they are kept without work; Ray's own second is over before the first trial comes."""


def ready_workers(resources: ResourcesConfig, module: str) -> dict[str, Any]:
    """Ray's settings by which the workers that it starts beforehand, one a CPU, import ``module`` while
    there is nothing for them to do yet; none on a machine with more of them than trials would take."""
    if not module or (resources.cpus or os.cpu_count() or 1) > MOST_READY:
        return {}
    return {"preload_python_modules": [module], "idle_worker_killing_time_threshold_ms": READY_MS}


@contextmanager
def lean_ray(resources: ResourcesConfig) -> Iterator[None]:
    """Start Ray inside without the processes that only a dashboard or an autoscaler needs.

    Where no dashboard is wanted, Ray waits for one all the same, that counts its users.
    """
    if resources.dashboard:
        yield
        return
    parameter = import_module("ray._private.parameter")
    few = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    with ExitStack() as stack:
        stack.enter_context(_replaced("ray._private.parameter", "RayParams", few))
        stack.enter_context(_replaced("ray._private.services", "start_api_server", _no_api_server))
        yield


@contextmanager
def lean_tune() -> Iterator[None]:
    """Spare a sweep what Tune does for others.

    It asks for a variable in its workers' environment that keeps PyTorch Lightning from forking, so that
    they are started anew where Ray has some waiting; and it imports MLflow, and whatever else has a
    logger for Tune, to count who uses them.
    """
    with ExitStack() as stack:
        stack.enter_context(_replaced("ray.tune.execution.class_cache", "DEFAULT_ENV_VARS", {}))
        stack.enter_context(_replaced("ray.air._internal.usage", "tag_callbacks", _not_counted))
        yield


def _no_api_server(*args: Any, **kwargs: Any) -> tuple[None, None]:
    """No address and no process: what Ray goes on with where a dashboard failed to start."""
    return None, None


def _not_counted(callbacks: Any) -> bool:
    return False


@contextmanager
def _replaced(module_name: str, name: str, value: Any) -> Iterator[None]:
    try:
        module = import_module(module_name)
        kept = getattr(module, name)
    except (ImportError, AttributeError):
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)
