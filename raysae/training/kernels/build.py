"""Compile ``topk.cpp`` for this machine, once, and call its functions.

The library is cached in ``$XDG_CACHE_HOME/raysae`` (else ``~/.cache/raysae``), under a hash of its
source, the compiler and the processor. A folder or a library that other users could have changed is not
used; see ``storage.private``. If it cannot be built, ``kernels`` returns None and ``why_missing`` the
reason.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysae.storage.private import is_own_file, private_folder, temporary_name

SOURCE = Path(__file__).with_name("topk.cpp")
COMPILERS = ("c++", "g++", "clang++")
# not -ffast-math, which would hide NaN and change the rounding mode of the whole process
COMMON = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
    "-fassociative-math", "-fno-signed-zeros",
)  # fmt: skip
TRIED = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-mcpu=native",),
    (),
)
"""Flags to try, the best first; not every compiler supports them all."""
TIME_LIMIT = 120
"""Seconds after which a compiler is stopped."""
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


class BuildError(RuntimeError):
    """There is no compiler, or it could not build the kernels."""


class Adam(ctypes.Structure):
    """Adam's settings for one step, in the memory layout that the kernels read."""

    _fields_ = tuple(
        (name, ctypes.c_float) for name in ("rate", "clip", "first", "second", "epsilon", "root")
    )


class Kernels:
    """The functions of the built library."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        self._functions: dict[tuple[str, torch.dtype], Any] = {}

    def prepared(
        self, name: str, arguments: Sequence[Any], dtype: torch.dtype
    ) -> Callable[[], int]:
        """A function that calls kernel ``name`` with ``arguments``, in its version for ``dtype`` if
        any.

        Tensors (contiguous, on the CPU) are passed as pointers, None as the null pointer. Every
        call of a kernel must have arguments of the same types.
        """
        function = self._functions.get((name, dtype))
        if function is None:
            typed = f"{name}_{SUFFIXES[dtype]}"
            function = self._library[typed if hasattr(self._library, typed) else name]
            function.restype = ctypes.c_int64
            function.argtypes = [_kind(value) for value in arguments]
            self._functions[name, dtype] = function
        return partial(function, *map(_passed, arguments))


def _kind(value: Any) -> type:
    if isinstance(value, Adam):
        return ctypes.POINTER(Adam)
    return {int: ctypes.c_int64, float: ctypes.c_float}.get(type(value), ctypes.c_void_p)


def _passed(value: Any) -> Any:
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return value.data_ptr()
    return value


def kernels() -> Kernels | None:
    """The kernels for this machine, built at the first call; None when they cannot be built."""
    built = _built()
    return built if isinstance(built, Kernels) else None


def kernels_if_built() -> Kernels | None:
    """The kernels if this process has asked for them before, and they could be built."""
    return kernels() if _built.cache_info().currsize else None


def why_missing() -> str | None:
    """Why the kernels cannot be built; None when they can."""
    built = _built()
    return built if isinstance(built, str) else None


@cache
def _built() -> Kernels | str:
    try:
        return Kernels(build(_cache_folder()))
    except (BuildError, OSError) as error:
        return str(error)


def build(folder: Path) -> Path:
    """The path of the library in ``folder``, compiled unless it is there and this user's own.

    Another folder is taken when others could change what is in ``folder``. Raises BuildError when there
    is no compiler or it fails, OSError when no folder is writable.
    """
    compiler = _compiler()
    folder = private_folder(folder, Path(tempfile.gettempdir()) / temporary_name())
    path = folder / f"topk-{_fingerprint(compiler)}.so"
    if not is_own_file(path):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = _compiled(compiler, Path(scratch) / "topk.so")
            made.chmod(0o700)  # whatever the umask: a library that others may write is never loaded
            os.replace(made, path)
    return path


def _compiled(compiler: str, out: Path) -> Path:
    """``out``, compiled with the first flags that the compiler accepts."""
    message = ""
    for flags in TRIED:
        command = [compiler, *COMMON, *flags, str(SOURCE), "-o", str(out)]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=TIME_LIMIT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler} could not be run: {error}") from None
        if done.returncode == 0:
            return out
        message = done.stderr.strip()
    raise BuildError(f"{compiler} could not build {SOURCE.name}: {message[-500:]}")


def _compiler() -> str:
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        if found := shutil.which(name):
            return found
    raise BuildError(
        f"there is no C++ compiler ({', '.join(COMPILERS)}, or CXX in the environment)"
    )


def _fingerprint(compiler: str) -> str:
    """A hash of everything that the library depends on."""
    parts = (
        SOURCE.read_bytes(), str((COMMON, TRIED)).encode(), compiler.encode(),
        str(os.stat(compiler).st_mtime_ns).encode(), *_processor(),
    )  # fmt: skip
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> Iterator[bytes]:
    """The processor's name and features: different machines may share one cache."""
    yield f"{platform.system()} {platform.machine()} {platform.processor()}".encode()
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return
    yield from sorted({line for line in lines if line.startswith((b"flags", b"model", b"Feat"))})


def _cache_folder() -> Path:
    """The usual folder of the cached libraries."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "raysae"
