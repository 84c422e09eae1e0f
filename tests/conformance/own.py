"""Layers of tfopt."""

from conformance.rows import VECTOR, Row, between, floats, merging, no, unknown
from keras import layers as kl

from tfopt.core.layers.training_only import TrainingOnly
from tfopt.fusion.cascade import CascadeSelection
from tfopt.fusion.layers import GatedFusion, ParallelFusion, VotingFusion

NO_FILE = no("The LiteRT converter has to accept the model")


def fused(cls, *args, **config):
    return merging(lambda a, b: cls(*args, **config)([a, b]), VECTOR)


ROWS = [
    Row((TrainingOnly,), between(lambda x: TrainingOnly(kl.GaussianNoise(0.1))(x), VECTOR)),
    Row((ParallelFusion,), (fused(ParallelFusion, "mean"), fused(ParallelFusion, "max")), int16x8=NO_FILE, opened=True),
    Row(
        (VotingFusion,),
        fused(VotingFusion, "soft", from_logits=True),
        channels=no("softmax mixes them"),
        int16x8=NO_FILE,
        opened=True,
    ),
    Row(
        (GatedFusion,),
        fused(GatedFusion),
        ("gate/kernel",),
        channels=no("the softmax of 'gated_fusion/gate' mixes them"),
        int16x8=NO_FILE,
        opened=True,
    ),
    Row(
        (CascadeSelection,),
        fused(CascadeSelection, [0.8], from_logits=True),
        channels=unknown("CascadeSelection"),
        int8=floats("SELECT_V2 SOFTMAX", "a cascade compares probabilities with its thresholds"),
        int16x8=NO_FILE,
    ),
]
