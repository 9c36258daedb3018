"""How an SAE is trained: data rows, schedule, loop. Torch only."""

from raysae.training.config import TrainingConfig
from raysae.training.fit import Fit, fit
from raysae.training.trainer import NonFiniteLossError, Trainer

__all__ = ["Fit", "NonFiniteLossError", "Trainer", "TrainingConfig", "fit"]
