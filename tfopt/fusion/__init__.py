"""Several models, one model."""

from tfopt.fusion.cascade import Cascade, CascadeSelection
from tfopt.fusion.chains import SerialFusion, StackedFusion
from tfopt.fusion.layers import GatedFusion, ParallelFusion, VotingFusion

__all__ = [
    "Cascade",
    "CascadeSelection",
    "GatedFusion",
    "ParallelFusion",
    "SerialFusion",
    "StackedFusion",
    "VotingFusion",
]
