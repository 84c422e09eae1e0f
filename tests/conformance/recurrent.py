"""Recurrent layers, their cells, and the wrappers around layers."""

from conformance.rows import SIXTEEN, Row, between, floats, layer, no
from keras import layers as kl

STEPS = (3, 4)
CELL = ("kernel", "recurrent_kernel")


def cell(name):
    return tuple(f"{name}/{kernel}" for kernel in CELL)


def stacked(x):
    return kl.RNN(
        kl.StackedRNNCells([kl.SimpleRNNCell(4, name="lower"), kl.SimpleRNNCell(4, name="upper")], name="stack")
    )(x)


ROWS = [
    Row((kl.LSTM, kl.LSTMCell), layer(kl.LSTM, 4, return_sequences=True, shape=STEPS), cell("lstm_cell")),
    Row((kl.GRU, kl.GRUCell), layer(kl.GRU, 4, return_sequences=True, shape=STEPS), cell("gru_cell")),
    Row((kl.SimpleRNN, kl.SimpleRNNCell), layer(kl.SimpleRNN, 4, shape=STEPS), cell("simple_rnn_cell")),
    Row(
        (kl.Bidirectional,),
        between(lambda x: kl.Bidirectional(kl.LSTM(3, return_sequences=True, name="lstm"))(x), STEPS),
        (*cell("forward_lstm/lstm_cell"), *cell("backward_lstm/lstm_cell")),
    ),
    Row(
        (kl.RNN,),
        between(lambda x: kl.RNN(kl.SimpleRNNCell(4, name="simple_rnn_cell"))(x), STEPS),
        cell("simple_rnn_cell"),
        channels=no("tfopt does not know RNN"),
    ),
    Row(
        (kl.StackedRNNCells,),
        between(stacked, STEPS),
        (*cell("stack/lower"), *cell("stack/upper")),
        channels=no("tfopt does not know RNN"),
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
        channels=no("tfopt does not know SpectralNormalization"),
        int8=floats("CONV_2D", "layers inside a layer are not quantized"),
        int16x8=floats("CONV_2D", "layers inside a layer are not quantized"),
    ),
    Row((kl.ConvLSTM1D,), layer(kl.ConvLSTM1D, 2, 2, shape=(2, 4, 4))),
    Row((kl.ConvLSTM2D,), layer(kl.ConvLSTM2D, 2, 2, shape=(2, 3, 3, 4))),
    Row((kl.ConvLSTM3D,), between(lambda x: kl.ConvLSTM3D(2, 2)(kl.Reshape((2, 2, 2, 2, 4))(x)), (2, 8, 4))),
]
