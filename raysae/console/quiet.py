"""What libraries read from the environment: to be quiet, and to work in a plain container."""

import os
import tempfile
from pathlib import Path

from raysae.storage.private import private_folder, temporary_name

QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # nothing of ours reads what they write of each report
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end early and call what there is the result
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # records wait for a server that is away by themselves
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_POOL_MAXSIZE": "64",  # or urllib3 warns, as records go side by side
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Set before Ray, MLflow and tokenizers are imported; what the user has set stays."""


CACHE_VARIABLES = ("HF_HOME", "MPLCONFIGDIR", "TRITON_HOME", "XDG_CACHE_HOME")
"""Folders of libraries, of which some load code from theirs."""


def quiet_environment() -> None:
    """Set what libraries read from the environment: to be quiet, and to work in a plain container.

    To be called before Ray, MLflow, transformers or matplotlib is imported.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not home_is_writable():
        for name in CACHE_VARIABLES:
            os.environ.setdefault(name, str(_own_temporary_folder() / name.lower()))


def home_is_writable() -> bool:
    """Whether this user has a home folder and can write to it."""
    try:
        return os.access(Path.home(), os.W_OK)
    except RuntimeError:  # a user that the machine does not know
        return False


def _own_temporary_folder() -> Path:
    """A temporary folder that only this user can change, whoever made what has its usual name."""
    return private_folder(Path(tempfile.gettempdir()) / temporary_name())
