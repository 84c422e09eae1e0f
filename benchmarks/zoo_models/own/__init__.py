"""Models in the styles of the examples in Keras' documentation; the code is tfopt's own.

They are written as users write them: layers with layers inside, some without `get_config`, `training` passed on or not,
functions of TensorFlow here and there. What would make a model easier for tfopt is not done.
"""

from zoo_models.own.images import IMAGES
from zoo_models.own.sequences import SEQUENCES
from zoo_models.own.tables import TABLES
from zoo_models.own.texts import TEXTS

OWN = {**IMAGES, **SEQUENCES, **TABLES, **TEXTS}
