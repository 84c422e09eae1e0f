"""Losses for `tfopt.Distiller`: `tfopt.distillation.SoftTargets(temperature=4.0)`."""

from tfopt.distillation.cache import TeacherCache as TeacherCache
from tfopt.distillation.loss_layers.base import DistillationLoss as DistillationLoss
from tfopt.distillation.loss_layers.features import AttentionTransfer as AttentionTransfer
from tfopt.distillation.loss_layers.features import ContrastiveRepresentation as ContrastiveRepresentation
from tfopt.distillation.loss_layers.features import FeatureMatching as FeatureMatching
from tfopt.distillation.loss_layers.features import RelationalAngle as RelationalAngle
from tfopt.distillation.loss_layers.features import RelationalDistance as RelationalDistance
from tfopt.distillation.loss_layers.features import SimilarityPreserving as SimilarityPreserving
from tfopt.distillation.loss_layers.outputs import BinaryTargets as BinaryTargets
from tfopt.distillation.loss_layers.outputs import BoundedTargets as BoundedTargets
from tfopt.distillation.loss_layers.outputs import DecoupledTargets as DecoupledTargets
from tfopt.distillation.loss_layers.outputs import RegressionTargets as RegressionTargets
from tfopt.distillation.loss_layers.outputs import SoftTargets as SoftTargets
from tfopt.distillation.taught import Taught as Taught
