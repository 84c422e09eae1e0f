"""Several models, one model."""

from tfopt.fusion.layers import GatedFusion, ParallelFusion, SerialFusion, StackedFusion, VotingFusion

__all__ = ["GatedFusion", "ParallelFusion", "SerialFusion", "StackedFusion", "VotingFusion"]
