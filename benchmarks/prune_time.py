"""Time of channel pruning: `prune(pattern="channel")` and `shrink` on ResNet50, ResNet101 and ResNet152.

It should grow no faster than the layers: the seconds a layer of the deepest model over those of the shallowest, at most
1.25. `applications`, 64x64, random weights, one process, in turn.
"""

import os
import statistics
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from common import Target, arguments, finish, spread, table, times_in_turn

import tfopt

FULL = ("ResNet50", "ResNet101", "ResNet152")
TURNS = 5
GROWTH_LIMIT = 1.25


def main() -> int:
    options = arguments(__doc__)
    names = FULL[:2] if options.quick else FULL
    models = {name: getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3)) for name in names}
    pruned_and_shrunk(models[names[0]])  # first-time set-up counts for none
    runs = {name: (lambda model=model: pruned_and_shrunk(model), TURNS) for name, model in models.items()}
    seconds = times_in_turn(runs)
    layers = {name: len(model.layers) for name, model in models.items()}
    a_layer = {name: statistics.median(seconds[name]) / layers[name] for name in names}
    rows = [[name, layers[name], spread(seconds[name]), f"{1000 * a_layer[name]:.1f}"] for name in names]
    growth = a_layer[names[-1]] / a_layer[names[0]]
    claim = f"seconds a layer, {names[-1]} / {names[0]}"
    header = ["model", "layers", "s, median (range)", "ms a layer"]
    measured = {"seconds": seconds, "layers": layers, "growth": growth}
    return finish("prune_time", __doc__, table(header, rows), measured, [Target(claim, growth, GROWTH_LIMIT)], options)


def pruned_and_shrunk(model: keras.Model) -> keras.Model:
    return tfopt.shrink(tfopt.prune(model, pattern="channel", sparsity=0.5))


if __name__ == "__main__":
    sys.exit(main())
