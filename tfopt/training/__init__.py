"""How to train: `tfopt.training.recipe(...)`, `tfopt.training.fine_tune(model, x, y)`."""

# Before any module in here: what tfopt does once Keras is there imports several of them, whole.
import keras  # noqa: F401

from tfopt.training.recipes import Recipe as Recipe
from tfopt.training.recipes import recipe as recipe
from tfopt.training.transfer import fine_tune as fine_tune
