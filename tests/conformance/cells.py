"""What the verbs make of the rows, where their own files do not say it: cells by the title of the row."""

from conformance.rows import SIXTEEN, floats, no

DOUBLED = (
    "in int16x8, the converter doubles the bias of a layer that reads the sigmoid: `export_tflite` refuses such a file"
)
CELLS = {
    "LSTM, LSTMCell": {
        "int16x8": floats(
            "ADD*3 CONCATENATION FULLY_CONNECTED*2 GATHER LOGISTIC*3 MUL*3 SLICE*2 SPLIT TANH*2", SIXTEEN
        ),
    },
    "GRU, GRUCell": {
        "int16x8": floats(
            "ADD*4 CONCATENATION FULLY_CONNECTED*2 GATHER LOGISTIC*2 MUL*3 SLICE*2 SPLIT STRIDED_SLICE*3 SUB TANH",
            SIXTEEN,
        ),
    },
    "SimpleRNN, SimpleRNNCell": {
        "int16x8": floats("ADD FULLY_CONNECTED*2 GATHER STRIDED_SLICE TANH", SIXTEEN),
    },
    "Bidirectional": {
        "int16x8": floats(
            "ADD*6 CONCATENATION*3 FULLY_CONNECTED*4 GATHER*2 LOGISTIC*6 MUL*6 REVERSE_V2*2 SLICE*4 SPLIT*2 TANH*4",
            SIXTEEN,
        ),
    },
    "RNN": {
        "int16x8": floats("ADD FULLY_CONNECTED*2 GATHER STRIDED_SLICE TANH", SIXTEEN),
    },
    "StackedRNNCells": {
        "int8": floats(
            "ADD*2 FULLY_CONNECTED*4 GATHER STRIDED_SLICE TANH*2",
            "several cells in one layer; use one LSTM, GRU or SimpleRNN layer for each",
        ),
        "int16x8": floats(
            "ADD*2 FULLY_CONNECTED*4 GATHER STRIDED_SLICE TANH*2",
            "several cells in one layer; use one LSTM, GRU or SimpleRNN layer for each",
        ),
    },
    "ConvLSTM1D": {
        "channels": no("tfopt does not know ConvLSTM1D"),
        "int8": floats(
            "ADD*9 CONV_2D*8 GATHER LOGISTIC*3 MUL*3 STRIDED_SLICE TANH*2",
            "its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers",
        ),
        "int16x8": floats(
            "ADD*9 CONV_2D*8 GATHER LOGISTIC*3 MUL*3 STRIDED_SLICE TANH*2",
            "its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers",
        ),
    },
    "ConvLSTM2D": {
        "channels": no("tfopt does not know ConvLSTM2D"),
        "int8": floats(
            "ADD*5 CONV_2D*8 GATHER LOGISTIC*3 MUL*3 STRIDED_SLICE TANH*2",
            "its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers",
        ),
        "int16x8": floats(
            "ADD*5 CONV_2D*8 GATHER LOGISTIC*3 MUL*3 STRIDED_SLICE TANH*2",
            "its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers",
        ),
    },
    "ConvLSTM3D": {
        "channels": no("tfopt does not know ConvLSTM3D"),
        "int8": floats(
            "ADD*9 CONV_3D*8 GATHER LOGISTIC*3 MUL*3 STRIDED_SLICE TANH*2",
            "its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers",
        ),
        "int16x8": floats(
            "ADD*9 CONV_3D*8 GATHER LOGISTIC*3 MUL*3 STRIDED_SLICE TANH*2",
            "its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers",
        ),
    },
    "LayerScale": {
        "int16x8": floats("MUL", SIXTEEN),
    },
    "AdaptiveMaxPooling1D, AdaptiveMaxPooling2D": {
        "int16x8": floats("CONCATENATION*3 GATHER*3 MAX_POOL_2D*6", SIXTEEN),
    },
    "tfopt.AdaptiveAveragePooling1D, tfopt.AdaptiveAveragePooling2D": {
        "int8": floats("CONCATENATION*3 FULLY_CONNECTED*2 MEAN*6 STRIDED_SLICE*2"),
        "int16x8": floats("CONCATENATION*3 MEAN*6 STRIDED_SLICE*6", SIXTEEN),
    },
    "tfopt.AdaptiveMaxPooling1D, tfopt.AdaptiveMaxPooling2D": {
        "int16x8": floats("CONCATENATION*3 REDUCE_MAX*6 STRIDED_SLICE*6", SIXTEEN),
    },
    "tfopt's adaptive pooling in 3-D": {
        "int8": floats("CONCATENATION*3 FULLY_CONNECTED MEAN*6 STRIDED_SLICE*4"),
        "int16x8": floats("CONCATENATION*6 MEAN*6 REDUCE_MAX*6 STRIDED_SLICE*12", SIXTEEN),
    },
    "UpSampling1D, UpSampling2D, UpSampling3D": {
        "int16x8": floats("TILE*6", SIXTEEN),
    },
    "UpSampling2D, Resizing, bilinear": {
        "int16x8": floats("RESIZE_BILINEAR*2", SIXTEEN),
    },
    "Resizing, bicubic": {
        "int8": no("'tf.ResizeBicubic' op is neither a custom op nor a flex op"),
        "int16x8": no("'tf.ResizeBicubic' op is neither a custom op nor a flex op"),
    },
    "CenterCrop": {
        "channels": no("tfopt does not know CenterCrop"),
        "int16x8": floats("STRIDED_SLICE", SIXTEEN),
    },
    "ops.MaxPool, AveragePool": {
        "int16x8": floats("AVERAGE_POOL_2D MAX_POOL_2D", SIXTEEN),
    },
    "Masking": {
        "int8": floats("CAST DIV NOT_EQUAL SUM*2"),
        "int16x8": floats("CAST DIV NOT_EQUAL SELECT_V2 SUM*2", SIXTEEN),
    },
    "Masking of another value than zero": {
        "int8": floats(
            "CAST DIV NOT_EQUAL*2 SELECT_V2 SUM*2", "only zero is sure to be an 8-bit integer; use mask_value=0.0"
        ),
        "int16x8": floats("CAST DIV NOT_EQUAL SELECT_V2 SUM*2", SIXTEEN),
    },
    "ops.Split": {
        "int16x8": floats("ADD*2 SPLIT*2", SIXTEEN),
    },
    "ops.BroadcastTo": {
        "int16x8": floats("BROADCAST_TO", SIXTEEN),
    },
    "Activation: sigmoid": {
        "int16x8": floats("", steps=3009.0),
        "note": DOUBLED,
    },
    "Activation: elu, gelu, hard_silu, hard_sigmoid, hard_tanh, exponential": {
        "int16x8": floats("ADD ELU EXP GELU HARD_SWISH MUL RELU_N1_TO_1", SIXTEEN),
    },
    "Activation: log_softmax": {
        "int16x8": floats("LOG_SOFTMAX", SIXTEEN),
    },
    "Activation: selu, celu, softplus, softsign, squareplus, mish": {
        "int8": floats(
            "ABS ADD*6 DIV EXP*4 GREATER LOG*2 MINIMUM MUL*4 RELU SELECT SQRT SQUARE SUB*2 TANH",
            "LiteRT has no integer version of the activation 'mish'",
        ),
        "int16x8": floats(
            "ABS ADD*6 DIV EXP*4 GREATER LOG*2 MINIMUM MUL*4 RELU SELECT SQRT SQUARE SUB*2 TANH",
            "LiteRT has no integer version of the activation 'mish'",
        ),
    },
    "Activation: log_sigmoid, tanh_shrink, hard_shrink, soft_shrink": {
        "int8": floats(
            "ABS ADD*2 EXP GREATER*2 LESS LOG NEG*2 SELECT SELECT_V2*2 SUB*2 TANH",
            "LiteRT has no integer version of the activation 'soft_shrink'",
        ),
        "int16x8": floats(
            "ABS ADD*2 EXP GREATER*2 LESS LOG NEG*2 SELECT SELECT_V2*2 SUB*2 TANH",
            "LiteRT has no integer version of the activation 'soft_shrink'",
        ),
    },
    "Activation: sparse_plus, sparse_sigmoid, sparsemax": {
        "channels": no("the function 'sparsemax' mixes them"),
        "int8": floats(
            "ADD*2 CAST CUMSUM DIV GREATER GREATER_EQUAL LESS LESS_EQUAL*2 MUL*4 SELECT SELECT_V2*4 SUB*4 "
            "SUM*2 TOPK_V2",
            "LiteRT has no integer version of the activation 'sparsemax'",
        ),
        "int16x8": floats(
            "ADD*2 CAST CUMSUM DIV GREATER GREATER_EQUAL LESS LESS_EQUAL*2 MUL*4 SELECT SELECT_V2*4 SUB*4 "
            "SUM*2 TOPK_V2",
            "LiteRT has no integer version of the activation 'sparsemax'",
        ),
    },
    "ReLU with a highest value or a slope": {
        "int16x8": floats("CONV_2D LEAKY_RELU MINIMUM RELU*2", SIXTEEN),
    },
    "ReLU with a threshold": {
        "int16x8": floats("GREATER SELECT_V2", SIXTEEN),
    },
    "PReLU": {
        "int16x8": floats("PRELU", SIXTEEN),
    },
    "ELU with another alpha": {
        "int8": floats("ELU GREATER MUL SELECT", "LiteRT has no integer ELU whose `alpha` is not 1"),
        "int16x8": floats("ELU GREATER MUL SELECT", "LiteRT has no integer ELU whose `alpha` is not 1"),
    },
    "ops.Sigmoid": {
        "int16x8": floats("", steps=3009.0),
        "note": DOUBLED,
    },
    "ops.HardSilu, Gelu, Absolute, Abs, Exp": {
        "int16x8": floats("ABS*2 EXP GELU HARD_SWISH", SIXTEEN),
    },
    "ops.Sqrt, Rsqrt, Clip": {
        "channels": no("tfopt does not know Rsqrt"),
        "int16x8": floats("ADD*2 MAXIMUM MINIMUM RSQRT SQRT", SIXTEEN),
    },
    "ops.HardSigmoid, Elu, Negative, Square": {
        "int8": floats("ADD ELU MUL NEG SQUARE", "LiteRT's converter leaves it in float; write it as `x * x`"),
        "int16x8": floats("ADD ELU MUL NEG SQUARE", "LiteRT's converter leaves it in float; write it as `x * x`"),
    },
    "ops.Selu, Celu, Softplus, Softsign": {
        "int8": floats(
            "ABS ADD*3 DIV EXP*3 GREATER LOG MINIMUM MUL*2 RELU SELECT SUB*2", "LiteRT has no integer version"
        ),
        "int16x8": floats(
            "ABS ADD*3 DIV EXP*3 GREATER LOG MINIMUM MUL*2 RELU SELECT SUB*2", "LiteRT has no integer version"
        ),
    },
    "ops.Log": {
        "int16x8": floats("ADD LOG", SIXTEEN),
    },
    "ops.DotProductAttention": {
        "int8": floats(
            "BATCH_MATMUL*2 MUL SOFTMAX TRANSPOSE*3", "unknown to tfopt; `@tfopt.register_layer` makes it known"
        ),
        "int16x8": floats(
            "BATCH_MATMUL*2 MUL SOFTMAX TRANSPOSE*3", "unknown to tfopt; `@tfopt.register_layer` makes it known"
        ),
    },
    "AutoContrast, ContrastLimitedAdaptiveHistogramEqualization, Solarization": {
        "int8": floats(
            "ADD*5 CAST*2 CONCATENATION*2 CUMSUM DIV*2 EQUAL GATHER*4 MINIMUM*4 MIRROR_PAD MUL*10 NEG "
            "NOT_EQUAL ONE_HOT REDUCE_MAX REDUCE_MIN*2 RELU*4 SELECT SELECT_V2 STRIDED_SLICE*5 SUB*4 SUM*2 "
            "TRANSPOSE*2",
            "preprocessing of images that LiteRT has no integers for",
        ),
        "int16x8": floats(
            "ADD*5 CAST*2 CONCATENATION*2 CUMSUM DIV*2 EQUAL GATHER*4 MINIMUM*4 MIRROR_PAD MUL*10 NEG "
            "NOT_EQUAL ONE_HOT REDUCE_MAX REDUCE_MIN*2 RELU*4 SELECT SELECT_V2 STRIDED_SLICE*5 SUB*4 SUM*2 "
            "TRANSPOSE*2",
            "preprocessing of images that LiteRT has no integers for",
        ),
    },
    "Discretization": {
        "int8": no("'tf.DenseBincount' op is neither a custom op nor a flex op"),
        "int16x8": no("'tf.DenseBincount' op is neither a custom op nor a flex op"),
    },
    "HashedCrossing": {
        "int8": no("'tf.SparseCross' op is neither a custom op nor a flex op"),
        "int16x8": no("'tf.SparseCross' op is neither a custom op nor a flex op"),
    },
    "Hashing": {
        "int8": no("'tf.AsString' op is neither a custom op nor a flex op"),
        "int16x8": no("'tf.AsString' op is neither a custom op nor a flex op"),
    },
    "IntegerLookup": {
        "int8": no("'tf.Placeholder' op is neither a custom op nor a flex op"),
        "int16x8": no("'tf.Placeholder' op is neither a custom op nor a flex op"),
    },
    "StringLookup": {
        "int8": no("The data has to be real numbers"),
        "int16x8": no("The data has to be real numbers"),
    },
    "TextVectorization": {
        "int8": no("The data has to be real numbers"),
        "int16x8": no("The data has to be real numbers"),
    },
    "ParallelFusion": {
        "int16x8": no("The LiteRT converter has to accept the model"),
    },
    "VotingFusion": {
        "channels": no("softmax mixes them"),
        "int16x8": no("The LiteRT converter has to accept the model"),
    },
    "GatedFusion": {
        "kernels": ("gate/kernel",),
        "channels": no("the softmax of 'gated_fusion/gate' mixes them"),
        "int16x8": no("The LiteRT converter has to accept the model"),
    },
    "CascadeSelection": {
        "channels": no("tfopt does not know CascadeSelection"),
        "int8": floats("SELECT_V2 SOFTMAX", "a cascade compares probabilities with its thresholds"),
        "int16x8": no("The LiteRT converter has to accept the model"),
    },
}
