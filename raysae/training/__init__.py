"""Training of SAEs: rows of data, schedules, steps and the training loop. Torch only."""

from typing import TYPE_CHECKING

from raysae.lazy import loader

if TYPE_CHECKING:
    from raysae.training.checkpoint import has_training, load_training, save_training
    from raysae.training.config import TrainingConfig
    from raysae.training.ensemble.fit_many import fit_many
    from raysae.training.fitting import Fit, fit
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

__getattr__ = loader(
    __name__,
    {
        "has_training": "raysae.training.checkpoint",
        "load_training": "raysae.training.checkpoint",
        "save_training": "raysae.training.checkpoint",
        "TrainingConfig": "raysae.training.config",
        "Fit": "raysae.training.fitting",
        "fit": "raysae.training.fitting",
        "fit_many": "raysae.training.ensemble.fit_many",
        "Splits": "raysae.training.rows",
        "NonFiniteLossError": "raysae.training.trainer",
        "Trainer": "raysae.training.trainer",
    },
)
