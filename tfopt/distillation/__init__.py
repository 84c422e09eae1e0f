"""Losses for `tfopt.Distiller`: `tfopt.distillation.SoftTargets(temperature=4.0)`."""

from tfopt.distillation.cache import TeacherCache as TeacherCache
from tfopt.distillation.feature_objectives import AttentionTransfer as AttentionTransfer
from tfopt.distillation.feature_objectives import ContrastiveRepresentation as ContrastiveRepresentation
from tfopt.distillation.feature_objectives import FeatureMatching as FeatureMatching
from tfopt.distillation.feature_objectives import RelationalAngle as RelationalAngle
from tfopt.distillation.feature_objectives import RelationalDistance as RelationalDistance
from tfopt.distillation.feature_objectives import SimilarityPreserving as SimilarityPreserving
from tfopt.distillation.loss_layer import DistillationLoss as DistillationLoss
from tfopt.distillation.objectives import BinaryTargets as BinaryTargets
from tfopt.distillation.objectives import BoundedTargets as BoundedTargets
from tfopt.distillation.objectives import DecoupledTargets as DecoupledTargets
from tfopt.distillation.objectives import RegressionTargets as RegressionTargets
from tfopt.distillation.objectives import SoftTargets as SoftTargets
from tfopt.distillation.taught import Taught as Taught
