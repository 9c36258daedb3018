"""The environment of a run: versions, hardware, commit, command."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raysae._version import __version__
from raysae.errors import UserError
from raysae.records.damage import read_object
from raysae.records.run_files import RunFiles
from raysae.redaction import redacted_command

PACKAGES = ("torch", "ray", "optuna", "mlflow", "pyarrow", "transformers", "datasets", "numpy")


def write_environment(files: RunFiles, store_digest: str, seed: int, run: str) -> None:
    """Write ``environment.json``; that of an earlier attempt is replaced. ``run`` is the run's id."""
    files.write_json(
        files.path / "environment.json",
        {
            "run": run,
            "raysae": __version__,
            "commit": _commit(),
            "command": _command(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "hardware": _hardware(),
            "seed": seed,
            "store_digest": store_digest,
        },
    )


def read_environment(file: Path) -> dict[str, Any]:
    """What ``write_environment`` wrote. Raises UserError when the file is missing or damaged."""
    found = read_object(file)
    hardware, packages = found.get("hardware"), found.get("packages")
    if not (
        isinstance(found.get("raysae"), str)
        and isinstance(packages, dict)
        and isinstance(hardware, dict)
        and isinstance(hardware.get("gpus"), list)
        and {"processor", "cpus"} <= hardware.keys()
        and {"torch", "ray"} <= packages.keys()
    ):
        raise UserError(f"{file}: lacks versions or hardware; the file was damaged or altered")
    return found


def _command() -> list[str]:
    program = Path(sys.argv[0])
    shim = program.name == "__main__.py"
    called = ["python", "-m", f"raysae.{program.parent.name}"] if shim else [program.name]
    return redacted_command([*called, *sys.argv[1:]])


def _hardware() -> dict[str, Any]:
    import torch

    gpus = range(torch.cuda.device_count())
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(number) for number in gpus],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The git commit of raysae's checkout, with ``-dirty`` if it has uncommitted changes."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
