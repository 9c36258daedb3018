"""The phases by name, found in ``raysae/analysis/phases``, and their settings."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from raysae.analysis import phases
from raysae.analysis.phase import Phase
from raysae.config.recipe import validated
from raysae.errors import UserError


@cache
def known_phases() -> dict[str, Phase]:
    """Every phase by name, each after those that it uses."""
    found = {}
    for module in pkgutil.iter_modules(phases.__path__, f"{phases.__name__}."):
        for phase in _phases_in(importlib.import_module(module.name)):
            found[phase.name] = phase
    return _in_order(found)


def _phases_in(module: Any) -> list[Phase]:
    return [
        cls()
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Phase)
        and not inspect.isabstract(cls)
        and cls.__module__ == module.__name__
    ]


def _in_order(found: Mapping[str, Phase]) -> dict[str, Phase]:
    ordered: dict[str, Phase] = {}

    def add(name: str) -> None:
        if name in found and name not in ordered:
            for other in found[name].uses:
                add(other)
            ordered[name] = found[name]

    for name in sorted(found):
        add(name)
    return ordered


def phases_named(names: Iterable[str]) -> list[Phase]:
    """The phases of these names, in the order in which they run. Raises UserError for an unknown one."""
    known, wanted = known_phases(), set(names)
    for name in sorted(wanted - known.keys()):
        near = get_close_matches(name, known, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{name!r} is no phase of the analysis{guess} Known are {', '.join(known)}")
    return [phase for name, phase in known.items() if name in wanted]


def quick_phases() -> list[str]:
    """The phases that the main job runs unless it is told otherwise."""
    return [name for name, phase in known_phases().items() if phase.quick]


def settings_of(phase: Phase, options: Mapping[str, Any]) -> Any:
    """A phase's settings: its defaults, with ``options`` in their place.

    Raises UserError when an option is unknown or not valid.
    """
    return validated(phase.Settings, options, f"analyze.options.{phase.name}")


def check_options(options: Mapping[str, Mapping[str, Any]], running: Sequence[Phase]) -> None:
    """Raise UserError when ``options`` names a phase that is not among ``running``, or is not valid."""
    phases_named(options)
    names = {phase.name for phase in running}
    for name in options.keys() - names:
        raise UserError(
            f"analyze.options.{name}: the phase does not run; it is not among "
            f"{', '.join(sorted(names)) or 'the phases, as there are none'}"
        )
    for phase in running:
        settings_of(phase, options.get(phase.name, {}))
