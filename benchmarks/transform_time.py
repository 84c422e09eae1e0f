"""Time to make a model quantization-aware: `tfopt.quantize` on Keras 3 against TFMOT's `quantize_model` on tf_keras.

MobileNetV2 and DenseNet121 of `applications`, 224x224, random weights, in one process, in turn, after a small model has
been through both. TFMOT refuses DenseNet121 (a batch normalization that follows no convolution) at the very end; the
time until then counts, as that is what its user waits.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from common import Target, arguments, finish, ratio_of_medians, spread, table, times_in_turn

import tfopt
from tfopt.interop.tfmot import tfmot

quantize_model = tfmot().quantization.keras.quantize_model
tf_keras = sys.modules["tf_keras"]

# name -> (repetitions of tfopt, of TFMOT, highest ratio)
FULL = {"MobileNetV2": (5, 5, 0.25), "DenseNet121": (3, 1, 0.10)}
QUICK = {"MobileNetV2": (1, 1, 0.25)}


def main() -> int:
    options = arguments(__doc__)
    warm_up()
    rows, measured, targets = [], {}, []
    for name, (own_turns, peer_turns, limit) in (QUICK if options.quick else FULL).items():
        model = getattr(keras.applications, name)(weights=None)
        peer_model = getattr(tf_keras.applications, name)(weights=None)
        outcomes: list[str] = []
        seconds = times_in_turn(
            {
                "tfopt": (lambda model=model: tfopt.quantize(model), own_turns),
                "TFMOT": (lambda model=peer_model, outcomes=outcomes: outcomes.append(peer(model)), peer_turns),
            }
        )
        ratio = ratio_of_medians(seconds["tfopt"], seconds["TFMOT"])
        rows.append([name, len(model.layers), spread(seconds["tfopt"]), spread(seconds["TFMOT"]), outcomes[0]])
        measured[name] = {"seconds": seconds, "ratio": ratio, "tfmot_outcome": outcomes[0]}
        targets.append(Target(f"{name}: median of tfopt / median of TFMOT", ratio, limit))
    header = ["model", "layers", "tfopt s, median (range)", "TFMOT s, median (range)", "TFMOT"]
    return finish("transform_time", __doc__, table(header, rows), measured, targets, options)


def warm_up() -> None:
    """A small model through both, so that imports and first-time setup count for neither."""
    for library, quantize in ((keras, tfopt.quantize), (tf_keras, quantize_model)):
        inputs = library.Input((8, 8, 3))
        x = library.layers.Conv2D(4, 3)(inputs)
        x = library.layers.ReLU()(library.layers.BatchNormalization()(x))
        quantize(library.Model(inputs, library.layers.Dense(2)(library.layers.GlobalAveragePooling2D()(x))))


def peer(model) -> str:
    try:
        quantize_model(model)
    except (ValueError, RuntimeError, AttributeError) as error:
        return f"fails: {type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
    return "passes"


if __name__ == "__main__":
    sys.exit(main())
