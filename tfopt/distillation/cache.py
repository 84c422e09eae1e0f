from tfopt.distillation.taught import Taught as Taught
