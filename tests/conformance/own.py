"""Layers of tfopt."""

from conformance.rows import VECTOR, Row, merging

from tfopt.fusion.cascade import CascadeSelection
from tfopt.fusion.layers import GatedFusion, ParallelFusion, VotingFusion


def fused(cls, *args, **config):
    return merging(lambda a, b: cls(*args, **config)([a, b]), VECTOR)


ROWS = [
    Row((ParallelFusion,), (fused(ParallelFusion, "mean"), fused(ParallelFusion, "max")), opened=True),
    Row((VotingFusion,), fused(VotingFusion, "soft", from_logits=True), opened=True),
    Row((GatedFusion,), fused(GatedFusion), opened=True),
    Row((CascadeSelection,), fused(CascadeSelection, [0.8], from_logits=True)),
]
