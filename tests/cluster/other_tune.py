"""Makes the installed Tune differ as another release may, and runs a trial with it; see ``other_ray.py``.

``python other_tune.py FOLDER`` prints a line of JSON: for each change, the trial's result, whether names
were replaced in each run of Tune, and what the log says.
"""

import json
import logging
import sys
from contextlib import contextmanager
from importlib import import_module

from raysae.cluster.ray_internals import run_tune
from raysae.cluster.session import ray_session
from raysae.config import ResourcesConfig
from raysae.console.quiet import quiet_environment
from tests.cluster.other_ray import rewrite

quiet_environment()

from ray import tune  # noqa: E402
from ray.air._internal import usage  # noqa: E402
from ray.tune.execution import class_cache  # noqa: E402

CACHE = class_cache._ActorClassCache
TUNE = import_module("ray.tune.tune")


class Other:
    """The module ``usage`` as another release of Tune would use it."""

    def __init__(self, tag_callbacks):
        self.tag_callbacks = tag_callbacks

    def __getattr__(self, name):
        return getattr(usage, name)


@contextmanager
def renamed():
    tag = usage.tag_callbacks
    del usage.tag_callbacks
    TUNE.air_usage = Other(tag)
    yield
    usage.tag_callbacks, TUNE.air_usage = tag, usage


@contextmanager
def counted_otherwise():
    tag = usage.tag_callbacks
    usage.tag_callbacks = lambda callbacks, *, weight: (tag(callbacks), weight)

    def use(callbacks):
        _, weight = usage.tag_callbacks(callbacks, weight=1)
        assert weight == 1

    TUNE.air_usage = Other(use)
    yield
    usage.tag_callbacks, TUNE.air_usage = tag, usage


@contextmanager
def variables_called():
    kept, get = class_cache.DEFAULT_ENV_VARS, CACHE.get
    class_cache.DEFAULT_ENV_VARS = lambda: dict(kept)
    rewrite(CACHE, "get", "DEFAULT_ENV_VARS.copy()", "DEFAULT_ENV_VARS()")
    yield
    class_cache.DEFAULT_ENV_VARS, CACHE.get = kept, get


@contextmanager
def variable_needed():
    get = CACHE.get
    rewrite(CACHE, "get", "DEFAULT_ENV_VARS.copy()", "{'x': DEFAULT_ENV_VARS['PL_DISABLE_FORK']}")
    yield
    CACHE.get = get


@contextmanager
def unchanged():
    yield


CHANGES = {
    "nothing": unchanged,
    "a missing name": renamed,
    "another arity": counted_otherwise,
    "a constant that became a function": variables_called,
    "a variable that is needed": variable_needed,
    "lean is false": unchanged,
}


class Trial(tune.Trainable):
    def step(self):
        return {"value": 7, "done": True}


def main(folder):
    said, runs = [], []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("raysae.cluster").addHandler(handler)

    def fit():
        runs.append(class_cache.DEFAULT_ENV_VARS is not variables)
        config = tune.RunConfig(storage_path=folder, verbose=0)
        (result,) = tune.Tuner(tune.with_resources(Trial, {"cpu": 1}), run_config=config).fit()
        return result.metrics["value"]

    told = {}
    with ray_session(ResourcesConfig(cpus=1)):
        for change, changed in CHANGES.items():
            resources = ResourcesConfig(lean=change != "lean is false")
            with changed():
                variables = class_cache.DEFAULT_ENV_VARS
                value = run_tune(fit, resources, lambda: False)
            told[change] = {"value": value, "runs": list(runs), "said": list(said)}
            said.clear()
            runs.clear()
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
