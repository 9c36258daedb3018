"""The commits and crashes of ``scripts/crash_commits.py``, for the tests."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _script(name: str) -> ModuleType:
    file = Path(__file__).parents[2] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


crash_commits = _script("crash_commits")
