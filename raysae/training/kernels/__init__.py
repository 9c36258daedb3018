"""The CPU kernels: compiled by the machine's C++ compiler at first use, then cached."""

from raysae.training.kernels.build import Adam, Kernels, kernels, kernels_if_built, why_missing

__all__ = ["Adam", "Kernels", "kernels", "kernels_if_built", "why_missing"]
