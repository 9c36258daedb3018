"""Starting or joining Ray without its output, and the checks before that."""

import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from raysae.cluster.ray_internals import start_ray, warn_of_plain
from raysae.cluster.session_folder import session_options
from raysae.cluster.token import use_token
from raysae.config import Recipe, ResourcesConfig
from raysae.errors import UserError
from raysae.redaction import redacted
from raysae.storage.files import expanded
from raysae.storage.remote import is_uri

JOB_PACKAGE = "_ray_pkg_"
"""The prefix of the name of a submitted job's working folder."""


def _start_ray(
    resources: ResourcesConfig, meanwhile: Callable[[], object], workers_import: str, **options: Any
) -> None:
    """Start Ray. Most of this time is waiting for processes, so ``meanwhile`` runs in a thread."""
    use_token(starting=True)
    options |= session_options()
    with stderr_held_back(), ThreadPoolExecutor(1) as thread:
        # Ray itself starts in this thread: its processes would end with another thread
        called = thread.submit(_with_low_priority, meanwhile)
        plain_reason = start_ray(
            resources,
            workers_import,
            address="local",
            num_cpus=resources.cpus,
            include_dashboard=resources.dashboard,
            dashboard_host="127.0.0.1",
            **options,
        )
        called.result()
    if plain_reason is not None:  # here, where stderr is shown again
        warn_of_plain("Ray", plain_reason)


def _with_low_priority(call: Callable[[], object]) -> None:
    """Lower this thread's priority for the rest of its life, then call ``call``."""
    if sys.platform == "linux":  # on other systems a thread has no priority of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + 10)
    call()


def _join_ray(address: str, **options: Any) -> None:
    import ray

    use_token(starting=False)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"resources.address {address!r}: no Ray cluster answers there ({reason}); check that "
            "the cluster runs, and that this machine has its token (RAY_AUTH_TOKEN or ~/.ray/auth_token)"
        ) from None


@contextmanager
def stderr_held_back() -> Iterator[None]:
    """Show what the block writes to stderr only if the block fails.

    Ray's C++ core writes there whatever the logging settings are, for example that a machine has no
    network.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            said = held.read().decode(errors="replace")
            os.write(original, redacted(said).encode(errors="replace"))
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


def check_dashboard(resources: ResourcesConfig) -> None:
    """Raise UserError when the recipe asks for a dashboard and it is not installed."""
    if resources.dashboard and find_spec("aiohttp_cors") is None:
        raise UserError(
            "resources.dashboard is true, but Ray's dashboard is not installed; "
            "pip install 'ray[default]'"
        )


def check_address(resources: ResourcesConfig) -> None:
    """Raise UserError when ``resources.address`` is HOST:PORT and nothing listens there.

    Ray itself would try for two minutes.
    """
    host, _, port = (resources.address or "").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:  # a port or a name that there cannot be
        raise UserError(
            f"resources.address {resources.address!r}: nothing answers there ({error}); "
            "check that the cluster runs, or leave out resources.address to start Ray here"
        ) from None


def check_job_folders(recipe: Recipe) -> None:
    """Raise UserError when a submitted job would write its run or store to its working folder.

    That folder is a copy, which Ray removes.
    """
    if not any(part.startswith(JOB_PACKAGE) for part in recipe.base.parts):
        return
    stored = recipe.store or f"stores/{recipe.name}"
    for key, name in (("runs_dir", recipe.runs_dir), ("store", stored)):
        if not is_uri(name) and not expanded(name).is_absolute():
            raise UserError(
                f"{key} is {name!r}, a relative path: in a submitted job it would be in a folder "
                "that Ray removes; "
                f"give an absolute path that every node sees, or a URI: {key}=s3://BUCKET/FOLDER"
            )


@contextmanager
def ray_session(
    resources: ResourcesConfig,
    meanwhile: Callable[[], object] = lambda: None,
    workers_import: str = "",
) -> Iterator[Callable[[], None]]:
    """A connected Ray inside the block: the caller's own, a cluster's, or one started here.

    The block receives a function that begins to stop a Ray started here, in a thread, while the block
    continues; otherwise it is stopped at the end of the block. ``meanwhile`` is called while Ray
    starts. ``workers_import`` names a module that its workers will need. Raises UserError when the
    cluster does not answer.
    """
    import ray

    if ray.is_initialized():
        quiet_libraries()
        yield lambda: None
        return
    address = resources.address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address and address != "local":
        _join_ray(address, **common)
    else:
        _start_ray(resources, meanwhile, workers_import, **common)
    quiet_libraries()
    _leave_on_sigterm()
    stopping = threading.Thread(target=ray.shutdown)

    def stop() -> None:
        if stopping.ident is None:
            gc.freeze()  # freeing a reference to an object of Ray in mid-shutdown ends the process
            stopping.start()

    try:
        yield stop
    finally:
        stop()
        stopping.join()
        gc.unfreeze()


def dashboard_url() -> str | None:
    """The address of the connected Ray's dashboard; None when it has none."""
    import ray

    url = getattr(ray.get_runtime_context(), "dashboard_url", None) or getattr(
        ray._private.worker.global_worker.node, "webui_url", None
    )
    return f"http://{url}" if url else None


def _leave_on_sigterm() -> None:
    """Make SIGTERM end the run as Ctrl-C does; Ray's own handler prints a stack and exits."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def quiet_libraries() -> None:
    """Let Ray Data and Tune print nothing in this process: raysae reports what is lost itself."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # raysae reports a lost block itself
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # raysae reports a lost trial itself
