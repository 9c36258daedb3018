"""Makes the installed Ray differ as another release may: in names, signatures, results. Then starts it.

``python other_ray.py CHANGE`` starts Ray as a sweep does, runs a task, and prints a line of JSON.
"""

import inspect
import json
import sys
import textwrap
from importlib import import_module
from pathlib import Path

from raysae.cluster import ray_internals
from raysae.cluster.session import ray_session
from raysae.config import ResourcesConfig
from raysae.console.quiet import quiet_environment

quiet_environment()

NODE, SERVICES = "ray._private.node", "ray._private.services"


def rewrite(owner, name, old, new):
    """Replace text in a function or method of Ray."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert old in source, source
    space = {}
    exec(source.replace(old, new), function.__globals__, space)
    setattr(owner, name, space[name])


def rename_the_server():
    services, node = import_module(SERVICES), import_module(NODE)
    services.start_rest_server = services.start_api_server
    del services.start_api_server
    rewrite(
        node.Node, "start_api_server", "services.start_api_server", "services.start_rest_server"
    )


def return_one_more():
    services, node = import_module(SERVICES), import_module(NODE)
    start = services.start_api_server
    services.start_api_server = lambda *args, **kwargs: (*start(*args, **kwargs), "token")
    rewrite(node.Node, "start_api_server", "process_info = ", "process_info, token = ")


class _Fewer:
    """Ray's parameters without the two that a sweep sets."""

    def __init__(self, parameters, seen):
        self.parameters = parameters
        if seen:
            given = inspect.signature(parameters)
            fewer = [one for one in given.parameters.values() if one.name not in GONE]
            self.__signature__ = given.replace(parameters=fewer)

    def __call__(self, **settings):
        if gone := GONE & settings.keys():
            raise TypeError(f"unexpected keyword arguments {sorted(gone)}")
        return self.parameters(**settings)


GONE = {"no_monitor", "include_log_monitor"}


def take_fewer_parameters(seen=True):
    module = import_module("ray._private.parameter")
    module.RayParams = _Fewer(module.RayParams, seen)


def forget_a_setting():
    ray_internals.preloading = lambda resources, module: {"no_such_setting_of_ray": 1}


CHANGES = {
    "nothing": lambda: None,
    "a missing name": rename_the_server,
    "a changed signature": take_fewer_parameters,
    "a signature that does not show its change": lambda: take_fewer_parameters(seen=False),
    "another arity": return_one_more,
    "an unknown setting": forget_a_setting,
    "lean is false": lambda: None,
}


def programs_of_ray():
    """Names of the programs that this process has as children."""
    lines = [file.read_text() for file in Path("/proc/self/task").glob("*/children")]
    commands = [Path(f"/proc/{pid}/cmdline") for line in lines for pid in line.split()]
    return [Path(file.read_text().split("\0")[0]).name for file in commands]


def main(change):
    CHANGES[change]()
    resources = ResourcesConfig(cpus=1, lean=change != "lean is false")
    with ray_session(resources, workers_import="this"):
        import ray

        task = ray.remote(lambda: "ran").remote()
        told = {
            "result": ray.get(task, timeout=300),
            "processes": list(ray._private.worker._global_node.all_processes),
            "servers": programs_of_ray().count("gcs_server"),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
