"""Activations, and functions of single values."""

import keras
from conformance.rows import NO_INTEGERS, SIXTEEN, Row, all_between, both, floats, layer, no, unknown
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import op_class


def functions(names, **cells):
    parts = tuple(layer(kl.Activation, name) for name in names.split())
    return Row((kl.Activation,), parts, name=f"Activation: {', '.join(names.split())}", **cells)


def op(names, *calls, **cells):
    return Row(tuple(map(op_class, names)), all_between(*calls), name="ops." + ", ".join(names), **cells)


def in_float(names, last):
    """The cells of activations that stay float, by the names of the operations; `quantize` says so of the last one."""
    return both(floats(names, f"{NO_INTEGERS} of the activation '{last}'"))


MIXES = no("softmax mixes them")
DOUBLED = (
    "in int16x8, the converter doubles the bias of a layer that reads the sigmoid: `export_tflite` refuses such a file"
)
SIGMOID = {"int16x8": floats("", steps=3009.0), "note": DOUBLED}
ROWS = [
    *(functions(name) for name in ["linear", "relu", "relu6", "leaky_relu", "silu"]),
    functions("sigmoid", **SIGMOID),
    functions("tanh"),
    functions("softmax", channels=MIXES),
    functions(
        "elu gelu hard_silu hard_sigmoid hard_tanh exponential",
        int16x8=floats("ADD ELU EXP GELU HARD_SWISH MUL RELU_N1_TO_1", SIXTEEN),
    ),
    functions("log_softmax", channels=MIXES, int16x8=floats("LOG_SOFTMAX", SIXTEEN)),
    functions(
        "selu celu softplus softsign squareplus mish",
        **in_float("ABS ADD*6 DIV EXP*4 GREATER LOG*2 MINIMUM MUL*4 RELU SELECT SQRT SQUARE SUB*2 TANH", "mish"),
    ),
    functions(
        "log_sigmoid tanh_shrink hard_shrink soft_shrink",
        **in_float("ABS ADD*2 EXP GREATER*2 LESS LOG NEG*2 SELECT SELECT_V2*2 SUB*2 TANH", "soft_shrink"),
    ),
    functions(
        "sparse_plus sparse_sigmoid sparsemax",
        channels=no("the function 'sparsemax' mixes them"),
        **in_float(
            "ADD*2 CAST CUMSUM DIV GREATER GREATER_EQUAL LESS LESS_EQUAL*2 MUL*4 SELECT SELECT_V2*4 SUB*4 SUM*2 "
            "TOPK_V2",
            "sparsemax",
        ),
    ),
    Row((kl.ReLU, kl.LeakyReLU), (layer(kl.ReLU), layer(kl.LeakyReLU, 0.2))),
    Row(
        (kl.ReLU,),
        (layer(kl.ReLU, 1.0), layer(kl.ReLU, negative_slope=0.1)),
        int16x8=floats("CONV_2D LEAKY_RELU MINIMUM RELU*2", SIXTEEN),
        name="ReLU with a highest value or a slope",
    ),
    Row(
        (kl.ReLU,),
        layer(kl.ReLU, threshold=0.5),
        int16x8=floats("GREATER SELECT_V2", SIXTEEN),
        name="ReLU with a threshold",
    ),
    Row((kl.PReLU,), layer(kl.PReLU, "uniform", shared_axes=[1, 2]), int16x8=floats("PRELU", SIXTEEN)),
    Row((kl.ELU,), layer(kl.ELU), int16x8=floats("ELU", SIXTEEN)),
    Row(
        (kl.ELU,),
        layer(kl.ELU, 2.0),
        **both(floats("ELU GREATER MUL SELECT", "LiteRT has no integer ELU whose `alpha` is not 1")),
        name="ELU with another alpha",
    ),
    Row((kl.Softmax,), layer(kl.Softmax), channels=MIXES),
    op(("Relu",), ops.relu),
    op(("Relu6",), ops.relu6),
    op(("LeakyRelu",), ops.leaky_relu),
    op(("Silu",), ops.silu),
    op(("Sigmoid",), ops.sigmoid, **SIGMOID),
    op(("Tanh",), ops.tanh),
    Row(
        (op_class("ReLU"),),
        all_between(keras.activations.relu, lambda x: keras.activations.relu(x, negative_slope=0.1)),
        int16x8=floats("LEAKY_RELU RELU", SIXTEEN),
        name="keras.activations.relu",
    ),
    op(("Softmax",), ops.softmax, channels=MIXES),
    op(
        ("HardSilu", "Gelu", "Absolute", "Abs", "Exp"),
        ops.hard_silu,
        ops.gelu,
        ops.absolute,
        op_class("Abs")(),
        ops.exp,
        int16x8=floats("ABS*2 EXP GELU HARD_SWISH", SIXTEEN),
    ),
    op(
        ("Sqrt", "Rsqrt", "Clip"),
        lambda x: ops.sqrt(ops.relu(x) + 1.0),
        lambda x: ops.rsqrt(ops.relu(x) + 1.0),
        lambda x: ops.clip(x, -0.5, 0.5),
        channels=unknown("Rsqrt"),
        int16x8=floats("ADD*2 MAXIMUM MINIMUM RSQRT SQRT", SIXTEEN),
    ),
    op(
        ("HardSigmoid", "Elu", "Negative", "Square"),
        ops.hard_sigmoid,
        ops.elu,
        ops.negative,
        ops.square,
        **both(floats("ADD ELU MUL NEG SQUARE", "LiteRT's converter leaves it in float; write it as `x * x`")),
    ),
    op(
        ("Selu", "Celu", "Softplus", "Softsign"),
        ops.selu,
        ops.celu,
        ops.softplus,
        ops.softsign,
        **both(floats("ABS ADD*3 DIV EXP*3 GREATER LOG MINIMUM MUL*2 RELU SELECT SUB*2", NO_INTEGERS)),
    ),
    op(
        ("Log",),
        lambda x: ops.log(ops.relu(x) + 1.0),
        int8=floats("LOG", "the logarithm of an 8-bit value"),
        int16x8=floats("ADD LOG", SIXTEEN),
    ),
]
