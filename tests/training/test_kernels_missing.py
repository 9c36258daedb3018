"""Where Triton is not there or cannot be used, packs train with plain torch, and that is said once."""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch

from raysae.training import gpu


@pytest.fixture(autouse=True)
def asked_anew():
    gpu.why_no_kernels.cache_clear()
    yield
    gpu.why_no_kernels.cache_clear()


def with_triton(monkeypatch, target):
    """A Triton whose driver answers by ``target``."""
    runtime = ModuleType("triton.runtime")
    runtime.driver = SimpleNamespace(active=SimpleNamespace(get_current_target=target))
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)


def old_driver():
    raise RuntimeError("the driver is too old")


def test_without_triton(monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="Triton is not installed: SAEs on a GPU train with plain"):
        assert not gpu.launches(torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gpu.launches(torch.device("cuda")), "said once"


def test_with_a_driver_that_is_too_old(monkeypatch):
    with_triton(monkeypatch, old_driver)
    with pytest.warns(
        UserWarning, match=r"cannot be used here \(RuntimeError: the driver is too old"
    ):
        assert not gpu.launches(torch.device("cuda"))


def test_with_triton(monkeypatch):
    with_triton(monkeypatch, lambda: "sm_90")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu.launches(torch.device("cuda")) and gpu.launches(torch.device("meta"))
        assert not gpu.launches(torch.device("cpu"))
