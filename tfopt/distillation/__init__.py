"""Losses for `tfopt.Distiller`: `tfopt.distillation.SoftTargets(temperature=4.0)`."""

# Before any module in here: what tfopt does once Keras is there imports several of them, whole.
import keras  # noqa: F401

from tfopt.distillation.cache import TeacherCache as TeacherCache
from tfopt.distillation.loss_layers.base import DistillationLoss as DistillationLoss
from tfopt.distillation.loss_layers.features import *  # noqa: F403 - all that `__all__` names there
from tfopt.distillation.loss_layers.outputs import *  # noqa: F403
from tfopt.distillation.taught import Taught as Taught
