"""Training of several SAEs in one process: members, groups that share batches, checkpoints."""

from raysae.training.ensemble.engine import Ensemble, train_members
from raysae.training.ensemble.members import Member
from raysae.training.ensemble.plan import batch_settings
from raysae.training.ensemble.stopping import Budget, StopRules
from raysae.training.statistics import StatisticsCache

__all__ = [
    "Budget",
    "Ensemble",
    "Member",
    "StatisticsCache",
    "StopRules",
    "batch_settings",
    "train_members",
]
