"""Starts Ray and runs Tune without the parts that a sweep does not use: a start is seconds shorter.

This replaces names inside Ray, and any release of Ray may change them. So every failure here leads to
one more attempt without replacements and to a warning in the log. ``resources.lean=false`` replaces
nothing.
"""

import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any, TypeVar

from raysae.config import ResourcesConfig
from raysae.errors import in_one_line

LOGGER = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
MAX_PRELOADED = 8
"""At most so many workers import the trials' modules before the first trial; each takes 300 MB."""
IDLE_MS = 60_000
"""Milliseconds that an idle worker lives, at least: the next stage then finds processes that have
imported torch. Ray's default is one second."""

MANY_WORKERS = 1_000_000
"""More than there are."""

T = TypeVar("T")


def start_ray(resources: ResourcesConfig, workers_import: str, **options: Any) -> str | None:
    """Start Ray with ``ray.init(**options)``, without what ``resources.lean`` leaves out.

    It listens on this machine's loopback interface alone, whatever ``resources.lean`` says.
    ``workers_import`` names a module that workers import while they are idle, or is empty. Returns None,
    or the reason why Ray was started plainly although ``resources.lean`` is set. Raises what the plain
    start raises.
    """
    import ray

    reason = None
    with on_loopback() as loopback:
        options |= loopback
        if resources.lean:
            try:
                with fewer_processes(resources):
                    ray.init(_system_config=preloading(resources, workers_import), **options)
                return None
            except Exception as error:
                reason = _in_words(error)
                _stop_what_started(error)
        ray.init(**options)
    return reason


def run_tune(call: Callable[[], T], resources: ResourcesConfig, begun: Callable[[], bool]) -> T:
    """Run Tune by ``call``, without what ``resources.lean`` leaves out; return what ``call`` returns.

    If ``call`` fails before ``begun()`` says that a trial has started, it is called once more with
    nothing left out. Raises what ``call`` raises.
    """
    import ray

    if resources.lean:
        try:
            with fewer_tune_steps():
                return call()
        except Exception as error:
            if begun() or not ray.is_initialized():
                raise
            reason = _in_words(error)
        warn_of_plain("Tune", reason)
    return call()


def warn_of_plain(what: str, reason: str) -> None:
    """Say in the log that ``what`` was started plainly, and why."""
    LOGGER.warning(
        "%s was started plainly, without the time savings of resources.lean, because this release of Ray "
        "did not take them (%s); resources.lean=false skips the attempt",
        what,
        reason,
    )


def preloading(resources: ResourcesConfig, module: str) -> dict[str, Any]:
    """Ray's settings that make its idle workers, one for each CPU, import ``module``.

    They are empty on a machine with more CPUs than MAX_PRELOADED: the workers would take too much
    memory.
    """
    if not module or (resources.cpus or os.cpu_count() or 1) > MAX_PRELOADED:
        return {}
    return {"preload_python_modules": [module], "idle_worker_killing_time_threshold_ms": IDLE_MS}


@contextmanager
def on_loopback() -> Iterator[dict[str, str]]:
    """Yields the options with which ``ray.init``, inside the block, starts a Ray on loopback alone.

    Ray replaces the loopback address by this machine's own, and then listens on all interfaces, unless it
    is stopped from replacing it. When this release of Ray has other names, there are no options, and a
    warning is logged.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(
                _replaced("ray._private.services", "resolve_ip_for_localhost", _as_given)
            )
        except (ImportError, AttributeError, TypeError) as error:
            LOGGER.warning(
                "Ray listens on all interfaces of this machine, because this release of it cannot be "
                "kept to the loopback interface (%s); its token is then all that keeps others out",
                _in_words(error),
            )
            yield {}
            return
        yield {"_node_ip_address": LOOPBACK}


@contextmanager
def fewer_processes(resources: ResourcesConfig) -> Iterator[None]:
    """Inside the block, Ray starts without the processes that only a dashboard or an autoscaler needs.

    Even without a dashboard, Ray starts a server that counts its users, and waits for it. Raises
    ImportError, AttributeError, TypeError or ValueError if this release of Ray has other names.
    """
    if resources.dashboard:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_replaced("ray._private.parameter", "RayParams", _without_monitors))
        stack.enter_context(_replaced("ray._private.services", "start_api_server", _no_api_server))
        yield


@contextmanager
def fewer_tune_steps() -> Iterator[None]:
    """Inside the block, a sweep skips four steps of Tune.

    First, Tune sets an environment variable for its workers that stops PyTorch Lightning from forking;
    Ray then starts new workers although some are ready. Second, Tune imports MLflow and every other
    library that has a logger for Tune, to count their users. Third, it hands AWS's secret keys to its
    workers through Ray, which writes them to its logs; workers have those of their node. Fourth, it stops
    all workers but one when no trial waits, as at the end of a wave, and starts new ones for the next.
    Raises the same errors as ``fewer_processes``.
    """
    with ExitStack() as stack:
        stack.enter_context(
            _replaced("ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE", _without_keys)
        )
        stack.enter_context(
            _replaced("ray.tune.execution.class_cache", "DEFAULT_ENV_VARS", _without_fork_variable)
        )
        stack.enter_context(_replaced("ray.air._internal.usage", "tag_callbacks", _no_counting))
        stack.enter_context(
            _replaced("ray.tune.execution.tune_controller", "_ObjectCache", _keeping_workers)
        )
        yield


def _without_monitors(parameters: Any) -> Any:
    fewer = {"no_monitor": True, "include_log_monitor": False}
    signature(parameters).bind_partial(**fewer)  # raises TypeError when it does not take them
    return partial(parameters, **fewer)


def _no_api_server(start: Any) -> Any:
    _check_callable(start)
    return lambda *args, **kwargs: (None, None)  # Ray's own result when a dashboard fails to start


def _as_given(resolve: Any) -> Any:
    _check_callable(resolve)
    return lambda host: host


def _without_fork_variable(variables: Any) -> Any:
    return {name: value for name, value in variables.items() if name != "PL_DISABLE_FORK"}


def _without_keys(variables: Any) -> Any:
    return {name for name in variables if not name.startswith("AWS_")}


def _no_counting(tag: Any) -> Any:
    _check_callable(tag)
    return lambda *args, **kwargs: False


def _keeping_workers(cache: Any) -> Any:
    """Tune's cache of idle workers, which gives one up only when all of them go: at the sweep's end."""
    signature(cache.cache_object).bind(None, "key", "worker")  # raise what ``_replaced`` may
    signature(cache.flush_cached_objects).bind(None, force_all=True)
    signature(cache.increase_max).bind(None, "key", by=1)

    class Keeping(cache):
        def cache_object(self, key: Any, worker: Any) -> Any:
            self.increase_max(key, by=MANY_WORKERS)
            kept = super().cache_object(key, worker)
            self.decrease_max(key, by=MANY_WORKERS)
            return kept

        def flush_cached_objects(self, force_all: bool = False) -> Any:
            return super().flush_cached_objects(force_all=True) if force_all else iter(())

    return Keeping


def _check_callable(value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{value!r} is not callable")


@contextmanager
def _replaced(module_name: str, name: str, replacement: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block, ``name`` of the module has the value ``replacement(original)``."""
    module = import_module(module_name)
    original = getattr(module, name)
    setattr(module, name, replacement(original))
    try:
        yield
    finally:
        setattr(module, name, original)


def _stop_what_started(error: BaseException) -> None:
    """Stop the processes of a Ray whose start ended with ``error``.

    ``ray.shutdown`` knows them only after all have started. Before that, only the stack frames of the
    failed start hold the node.
    """
    import ray

    with suppress(Exception):
        ray.shutdown()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        kill = getattr(frame.f_locals.get("self"), "kill_all_processes", None)
        if callable(kill):
            with suppress(Exception):
                kill(check_alive=False)


def _in_words(error: BaseException) -> str:
    return in_one_line(error) if str(error).strip() else f"{type(error).__name__}: no message"


def actor_is_dead(actor: str) -> bool:
    """Whether Ray says that the actor with this id is dead; False for "" and where it does not say."""
    import ray

    try:
        return bool(actor) and ray._private.state.actors(actor_id=actor)["State"] == "DEAD"
    except (
        Exception
    ):  # another Ray keeps this elsewhere; a dead reader is then only held for longer
        return False


def keep_for_actor(text: str) -> None:
    """Keep a text for this process's actor, should Ray start it anew; see ``kept_for_actor``."""
    from ray.experimental.internal_kv import _internal_kv_put

    with suppress(Exception):  # another Ray keeps nothing; the actor then begins as it was made
        if (key := _key_of_actor()) is not None:
            _internal_kv_put(key, text)


def kept_for_actor() -> str | None:
    """What ``keep_for_actor`` kept before Ray started this actor anew; None when there is nothing."""
    from ray.experimental.internal_kv import _internal_kv_get

    with suppress(Exception):
        key = _key_of_actor()
        kept = None if key is None else _internal_kv_get(key)
        return None if kept is None else kept.decode()
    return None


def _key_of_actor() -> str | None:
    """None where this process has no actor."""
    import ray

    actor = ray.get_runtime_context().get_actor_id()
    return None if actor is None else f"raysae-{actor}"
