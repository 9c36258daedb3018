"""How an SAE is trained: data rows, schedule, loop. Torch only."""

from raysae.training.checkpoint import has_training, load_training, save_training
from raysae.training.config import TrainingConfig
from raysae.training.fit import Fit, fit
from raysae.training.many import fit_many
from raysae.training.rows import Splits
from raysae.training.trainer import NonFiniteLossError, Trainer

__all__ = [
    "Fit",
    "NonFiniteLossError",
    "Splits",
    "Trainer",
    "TrainingConfig",
    "fit",
    "fit_many",
    "has_training",
    "load_training",
    "save_training",
]
