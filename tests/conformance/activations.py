"""Activations, and functions of single values."""

from conformance.rows import SIXTEEN, Row, all_between, floats, layer, no
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import op_class


def functions(names, **cells):
    parts = tuple(layer(kl.Activation, name) for name in names.split())
    return Row((kl.Activation,), parts, name=f"Activation: {', '.join(names.split())}", **cells)


def op(names, *calls, **cells):
    return Row(tuple(map(op_class, names)), all_between(*calls), name="ops." + ", ".join(names), **cells)


NO_INTEGERS = "LiteRT has no integer version"
MIXES = no("softmax mixes them")
PLAIN = {
    "Relu": "relu",
    "Relu6": "relu6",
    "LeakyRelu": "leaky_relu",
    "Silu": "silu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
ROWS = [
    *(functions(name) for name in ["linear", "relu", "relu6", "leaky_relu", "silu", "sigmoid", "tanh"]),
    functions("softmax", channels=MIXES),
    functions("elu gelu hard_silu hard_sigmoid hard_tanh exponential", int16x8=floats("", SIXTEEN)),
    functions("log_softmax", channels=MIXES, int16x8=floats("", SIXTEEN)),
    functions(
        "selu celu softplus softsign squareplus mish", int8=floats("", NO_INTEGERS), int16x8=floats("", NO_INTEGERS)
    ),
    functions(
        "log_sigmoid tanh_shrink hard_shrink soft_shrink",
        int8=floats("", NO_INTEGERS),
        int16x8=floats("", NO_INTEGERS),
    ),
    functions("sparse_plus sparse_sigmoid sparsemax", int8=floats("", NO_INTEGERS), int16x8=floats("", NO_INTEGERS)),
    Row((kl.ReLU, kl.LeakyReLU), (layer(kl.ReLU), layer(kl.LeakyReLU, 0.2))),
    Row(
        (kl.ReLU,),
        (layer(kl.ReLU, 1.0), layer(kl.ReLU, negative_slope=0.1)),
        int16x8=floats("", SIXTEEN),
        name="ReLU with a highest value or a slope",
    ),
    Row((kl.ReLU,), layer(kl.ReLU, threshold=0.5), int16x8=floats("", SIXTEEN), name="ReLU with a threshold"),
    Row((kl.PReLU,), layer(kl.PReLU, "uniform", shared_axes=[1, 2]), int16x8=floats("", SIXTEEN)),
    Row((kl.ELU,), layer(kl.ELU), int16x8=floats("ELU", SIXTEEN)),
    Row(
        (kl.ELU,),
        layer(kl.ELU, 2.0),
        int8=floats("ELU MUL SELECT", "LiteRT has no integer ELU whose `alpha` is not 1"),
        int16x8=floats("ELU MUL SELECT", "LiteRT has no integer ELU whose `alpha` is not 1"),
        name="ELU with another alpha",
    ),
    Row((kl.Softmax,), layer(kl.Softmax), channels=MIXES),
    *(op((cls,), getattr(ops, name)) for cls, name in PLAIN.items()),
    op(("Softmax",), ops.softmax, channels=MIXES),
    op(
        ("HardSilu", "Gelu", "Absolute", "Abs", "Exp"),
        ops.hard_silu,
        ops.gelu,
        ops.absolute,
        op_class("Abs")(),
        ops.exp,
        int16x8=floats("", SIXTEEN),
    ),
    op(
        ("Sqrt", "Rsqrt", "Clip"),
        lambda x: ops.sqrt(ops.relu(x) + 1.0),
        lambda x: ops.rsqrt(ops.relu(x) + 1.0),
        lambda x: ops.clip(x, -0.5, 0.5),
        int16x8=floats("", SIXTEEN),
    ),
    op(
        ("HardSigmoid", "Elu", "Negative", "Square"),
        ops.hard_sigmoid,
        ops.elu,
        ops.negative,
        ops.square,
        int8=floats("", "LiteRT's converter leaves it in float"),
        int16x8=floats("", "LiteRT's converter leaves it in float"),
    ),
    op(
        ("Selu", "Celu", "Softplus", "Softsign"),
        ops.selu,
        ops.celu,
        ops.softplus,
        ops.softsign,
        int8=floats("", NO_INTEGERS),
        int16x8=floats("", NO_INTEGERS),
    ),
    op(
        ("Log",),
        lambda x: ops.log(ops.relu(x) + 1.0),
        int8=floats("LOG", "the logarithm of an 8-bit value"),
        int16x8=floats("LOG", "the logarithm of an 8-bit value"),
    ),
]
