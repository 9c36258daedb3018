"""Several SAEs trained in one process: members, a plan of what they share, lockstep, checkpoints."""

from raysae.training.ensemble.engine import Ensemble, train_members
from raysae.training.ensemble.members import Member
from raysae.training.ensemble.plan import batch_settings
from raysae.training.ensemble.stopping import Budget, StopRules
from raysae.training.initialisation import StatisticsCache

__all__ = [
    "Budget",
    "Ensemble",
    "Member",
    "StatisticsCache",
    "StopRules",
    "batch_settings",
    "train_members",
]
