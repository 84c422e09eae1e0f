"""Several models, one model."""

from tfopt.fusion.cascade import Cascade, CascadeSelection
from tfopt.fusion.layers import GatedFusion, ParallelFusion, SerialFusion, StackedFusion, VotingFusion

__all__ = [
    "Cascade",
    "CascadeSelection",
    "GatedFusion",
    "ParallelFusion",
    "SerialFusion",
    "StackedFusion",
    "VotingFusion",
]
