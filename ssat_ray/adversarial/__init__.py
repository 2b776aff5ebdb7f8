"""Adversarial attacks, training objectives, robust evaluation and intervals; imports no Ray."""

from ssat_ray.adversarial.attacks import frozen, gaussian_start, pgd, random_start
from ssat_ray.adversarial.autoattack import apgd_ce_flags, autoattack_flags
from ssat_ray.adversarial.evaluation import clean_flags, masking_warnings, pgd_flags
from ssat_ray.adversarial.intervals import bootstrap_interval, paired_difference
from ssat_ray.adversarial.losses import pgd_at_loss, trades_loss
from ssat_ray.adversarial.objectives import AdversarialObjective, CleanObjective

__all__ = [
    "AdversarialObjective",
    "CleanObjective",
    "apgd_ce_flags",
    "autoattack_flags",
    "bootstrap_interval",
    "clean_flags",
    "frozen",
    "gaussian_start",
    "masking_warnings",
    "paired_difference",
    "pgd",
    "pgd_at_loss",
    "pgd_flags",
    "random_start",
    "trades_loss",
]
