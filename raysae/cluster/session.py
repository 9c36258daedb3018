"""Starting and joining Ray, quietly, and what it has to offer."""

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raysae.cluster.ray_internals import start_ray, warn_of_plain
from raysae.config import Recipe, ResourcesConfig
from raysae.console.quiet import home_is_writable
from raysae.errors import UserError
from raysae.storage.remote import is_uri

JOB_PACKAGE = "_ray_pkg_"
"""What the name of a submitted job's working folder begins with."""


def _start_ray(
    resources: ResourcesConfig, meanwhile: Callable[[], object], workers_import: str, **options: Any
) -> None:
    """Start Ray, most of which is waiting for its processes; ``meanwhile`` is called beside it."""
    if not home_is_writable() and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Ray guards a cluster by a token in the home folder; without one, by the environment
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with stderr_held_back(), ThreadPoolExecutor(1) as beside:
        # not Ray in the thread: its processes would end with it, and all wait for them
        called = beside.submit(_politely, meanwhile)
        plain_because = start_ray(
            resources,
            workers_import,
            address="local",
            num_cpus=resources.cpus,
            include_dashboard=resources.dashboard,
            dashboard_host="127.0.0.1",
            **options,
        )
        called.result()
    if plain_because is not None:  # here, where stderr is shown again
        warn_of_plain("Ray", plain_because)


def _politely(call: Callable[[], object]) -> None:
    """Call it in a thread that lets others have the processor first, for its own rest of life."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + 10)
    call()


def _join_ray(address: str, **options: Any) -> None:
    import ray

    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"resources.address {address!r}: no Ray cluster answers there ({reason}); check that it "
            "runs, and that this machine has its token (RAY_AUTH_TOKEN or ~/.ray/auth_token)"
        ) from None


@contextmanager
def stderr_held_back() -> Iterator[None]:
    """Show what is written to stderr inside only if the block fails.

    Ray's C++ core writes there, past every logging setting, such as that a machine has no network.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def check_dashboard(resources: ResourcesConfig) -> None:
    """Raise UserError when a dashboard is asked for that this installation cannot serve."""
    if resources.dashboard and find_spec("aiohttp_cors") is None:
        raise UserError(
            "resources.dashboard is true, but Ray's dashboard is not installed; "
            "pip install 'raysae[dashboard]' (or 'ray[default]')"
        )


def check_address(resources: ResourcesConfig) -> None:
    """Raise UserError when a cluster's host and port are named and nothing listens there.

    Ray itself would try for two minutes.
    """
    host, _, port = (resources.address or "").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"resources.address {resources.address!r}: nothing answers there ({error}); "
            "check that the cluster runs, or leave it out to start Ray here"
        ) from None


def check_job_folders(recipe: Recipe) -> None:
    """Raise UserError when this is a submitted job and the run or store would lie in its working folder:
    that is a copy, which Ray removes."""
    if not any(part.startswith(JOB_PACKAGE) for part in Path.cwd().parts):
        return
    stored = recipe.store or f"stores/{recipe.name}"
    for key, name in (("runs_dir", recipe.runs_dir), ("store", stored)):
        if not is_uri(name) and not Path(name).expanduser().is_absolute():
            raise UserError(
                f"{key} is {name!r}, which in a submitted job lies in a folder that Ray removes; "
                f"give an absolute path that every node sees, or a URI: {key}=s3://BUCKET/FOLDER"
            )


@contextmanager
def ray_session(
    resources: ResourcesConfig,
    meanwhile: Callable[[], object] = lambda: None,
    workers_import: str = "",
) -> Iterator[Callable[[], None]]:
    """A connected Ray inside the block: the caller's own, a cluster's, or one started here.

    What was started here is stopped at the end, or from when the function that the block is given is
    called, beside what the block has left to do. ``meanwhile`` is called while Ray starts;
    ``workers_import`` names a module that its workers will need.
    """
    import ray

    if ray.is_initialized():
        _quiet_libraries()
        yield lambda: None
        return
    address = resources.address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        _join_ray(address, **common)
    else:
        _start_ray(resources, meanwhile, workers_import, **common)
    _quiet_libraries()
    _leave_on_sigterm()
    stopping = threading.Thread(target=ray.shutdown)

    def stop() -> None:
        if stopping.ident is None:
            stopping.start()

    try:
        yield stop
    finally:
        stop()
        stopping.join()


def dashboard_url() -> str | None:
    import ray

    url = getattr(ray.get_runtime_context(), "dashboard_url", None) or getattr(
        ray._private.worker.global_worker.node, "webui_url", None
    )
    return f"http://{url}" if url else None


def _leave_on_sigterm() -> None:
    """Let SIGTERM end the run as Ctrl-C does; Ray's own handler dumps a stack and exits."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _quiet_libraries() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a lost block is told in our words
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost trial is told in our table
