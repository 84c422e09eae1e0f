"""Several models, one model."""

# Before any module in here: what tfopt does once Keras is there imports several of them, whole.
import keras  # noqa: F401

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
