"""Names of the trials' tasks in Ray's dashboard: Tune itself gives those of all trials the same name.

This replaces names inside Ray, and any release of Ray may change them; the tasks then have Tune's name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any

Label = Callable[[dict[str, Any]], str]
"""From a trial's config to its name."""


@contextmanager
def named_tasks(label: Label) -> Iterator[None]:
    """Inside the block, the tasks that Tune begins are named like ``SAETrials.train trial 3``."""
    try:
        from ray.air.execution._internal.actor_manager import RayActorManager
        from ray.tune.execution.tune_controller import TuneController

        schedule, send = (
            TuneController._schedule_trial_task,
            RayActorManager._schedule_tracked_actor_task,
        )
        signature(schedule).bind(None, trial=None, method_name="train")
        signature(send).bind(None, tracked_actor_task=None, method_name="train")
    except (ImportError, AttributeError, TypeError):
        yield
        return
    labels: dict[Any, str] = {}
    TuneController._schedule_trial_task = _noting(schedule, label, labels)
    RayActorManager._schedule_tracked_actor_task = _naming(send, labels)
    try:
        yield
    finally:
        TuneController._schedule_trial_task = schedule
        RayActorManager._schedule_tracked_actor_task = send


def _noting(schedule: Any, label: Label, labels: dict[Any, str]) -> Any:
    """``schedule``, which notes the trial that an actor works for."""

    def noting(controller: Any, trial: Any, *args: Any, **kwargs: Any) -> Any:
        with suppress(Exception):  # a name is worth no trial
            labels[controller._trial_to_actor[trial]] = label(trial.config)
        return schedule(controller, trial, *args, **kwargs)

    return noting


def _naming(send: Any, labels: dict[Any, str]) -> Any:
    """``send``, through a stand-in for the actor whose tasks have names."""

    def naming(manager: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            task = signature(send).bind(manager, *args, **kwargs).arguments["tracked_actor_task"]
            tracked, actors = task._tracked_actor, manager._live_actors_to_ray_actors_resources
            held, name = actors[tracked], labels[tracked]
            actors[tracked] = (_Named(held[0], name), *held[1:])
        except Exception:
            return send(manager, *args, **kwargs)
        try:
            return send(manager, *args, **kwargs)
        finally:
            actors[tracked] = held

    return naming


class _Named:
    """An actor whose methods' tasks have a name."""

    def __init__(self, actor: Any, name: str):
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> Any:
        return getattr(self._actor, method).options(name=f"SAETrials.{method} {self._name}")
