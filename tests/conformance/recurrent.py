"""Recurrent layers, their cells, and the wrappers around layers."""

from conformance.rows import SIXTEEN, Row, between, both, floats, layer, unknown
from keras import layers as kl

STEPS = (3, 4)
CELL = ("kernel", "recurrent_kernel")
SIMPLE = floats("ADD FULLY_CONNECTED*2 GATHER STRIDED_SLICE TANH", SIXTEEN)
SEVERAL = "several cells in one layer; use one LSTM, GRU or SimpleRNN layer for each"
LOOP = "its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers"


def cell(name):
    return tuple(f"{name}/{kernel}" for kernel in CELL)


def stacked(x):
    return kl.RNN(
        kl.StackedRNNCells([kl.SimpleRNNCell(4, name="lower"), kl.SimpleRNNCell(4, name="upper")], name="stack")
    )(x)


def convolutional(cls, part, ops):
    """A row of a layer with convolutions in a loop, of which `ops` depend on the class."""
    floating = floats(f"{ops} GATHER LOGISTIC*3 MUL*3 STRIDED_SLICE TANH*2", LOOP)
    return Row((cls,), part, channels=unknown(cls.__name__), **both(floating))


ROWS = [
    Row(
        (kl.LSTM, kl.LSTMCell),
        layer(kl.LSTM, 4, return_sequences=True, shape=STEPS),
        cell("lstm_cell"),
        int16x8=floats("ADD*3 CONCATENATION FULLY_CONNECTED*2 GATHER LOGISTIC*3 MUL*3 SLICE*2 SPLIT TANH*2", SIXTEEN),
    ),
    Row(
        (kl.GRU, kl.GRUCell),
        layer(kl.GRU, 4, return_sequences=True, shape=STEPS),
        cell("gru_cell"),
        int16x8=floats(
            "ADD*4 CONCATENATION FULLY_CONNECTED*2 GATHER LOGISTIC*2 MUL*3 SLICE*2 SPLIT STRIDED_SLICE*3 SUB TANH",
            SIXTEEN,
        ),
    ),
    Row((kl.SimpleRNN, kl.SimpleRNNCell), layer(kl.SimpleRNN, 4, shape=STEPS), cell("simple_rnn_cell"), int16x8=SIMPLE),
    Row(
        (kl.Bidirectional,),
        between(lambda x: kl.Bidirectional(kl.LSTM(3, return_sequences=True, name="lstm"))(x), STEPS),
        (*cell("forward_lstm/lstm_cell"), *cell("backward_lstm/lstm_cell")),
        int16x8=floats(
            "ADD*6 CONCATENATION*3 FULLY_CONNECTED*4 GATHER*2 LOGISTIC*6 MUL*6 REVERSE_V2*2 SLICE*4 SPLIT*2 TANH*4",
            SIXTEEN,
        ),
    ),
    Row(
        (kl.RNN,),
        between(lambda x: kl.RNN(kl.SimpleRNNCell(4, name="simple_rnn_cell"))(x), STEPS),
        cell("simple_rnn_cell"),
        channels=unknown("RNN"),
        int16x8=SIMPLE,
    ),
    Row(
        (kl.StackedRNNCells,),
        between(stacked, STEPS),
        (*cell("stack/lower"), *cell("stack/upper")),
        channels=unknown("RNN"),
        **both(floats("ADD*2 FULLY_CONNECTED*4 GATHER STRIDED_SLICE TANH*2", SEVERAL)),
    ),
    Row(
        (kl.TimeDistributed,),
        between(lambda x: kl.TimeDistributed(kl.Dense(4, name="dense"))(x), STEPS),
        ("dense/kernel",),
        int16x8=floats("FULLY_CONNECTED*3 PACK STRIDED_SLICE*3", SIXTEEN),
    ),
    Row(
        (kl.SpectralNormalization,),
        between(lambda x: kl.SpectralNormalization(kl.Conv2D(4, 3, name="conv2d"))(x)),
        ("conv2d/kernel",),
        channels=unknown("SpectralNormalization"),
        **both(floats("CONV_2D", "layers inside a layer are not quantized")),
    ),
    convolutional(kl.ConvLSTM1D, layer(kl.ConvLSTM1D, 2, 2, shape=(2, 4, 4)), "ADD*9 CONV_2D*8"),
    convolutional(kl.ConvLSTM2D, layer(kl.ConvLSTM2D, 2, 2, shape=(2, 3, 3, 4)), "ADD*5 CONV_2D*8"),
    convolutional(
        kl.ConvLSTM3D,
        between(lambda x: kl.ConvLSTM3D(2, 2)(kl.Reshape((2, 2, 2, 2, 4))(x)), (2, 8, 4)),
        "ADD*9 CONV_3D*8",
    ),
]
