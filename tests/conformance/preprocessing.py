"""Preprocessing layers."""

from conformance.rows import NOTHING, SIXTEEN, Row, between, both, floats, no, reading, unknown
from keras import layers as kl

from tfopt.core.layers.registry import layers_named

COLOURS = (6, 6, 3)
RANDOM = {
    "AugMix": {},
    "CutMix": {},
    "MixUp": {},
    "RandAugment": {},
    "RandomBrightness": {"factor": 0.1},
    "RandomColorDegeneration": {"factor": 0.1},
    "RandomColorJitter": {},
    "RandomContrast": {"factor": 0.1},
    "RandomCrop": {"height": 6, "width": 6},
    "RandomElasticTransform": {},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {},
    "RandomHue": {"factor": 0.1},
    "RandomInvert": {},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": 0.1},
    "RandomSaturation": {"factor": 0.1},
    "RandomSharpness": {"factor": 0.1},
    "RandomShear": {},
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1},
    "RandomZoom": {"height_factor": 0.1},
}
FLOAT = ("AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Solarization")
IMAGES = "preprocessing of images that LiteRT has no integers for"
SOUND = "preprocessing of sound that LiteRT has no integers for"
ENCODES = "it makes indices or encodings of raw data, before there is anything to quantize"
TABLES = no("no operations on strings, and no lookups")


def random(x):
    """All random layers, one behind the other."""
    for name, config in RANDOM.items():
        for cls in layers_named(name):
            x = cls(**config)(x)
    return x


def known(*names):
    return tuple(cls for name in names for cls in layers_named(name))


def raw(classes, call, shape, cell, dtype=None):
    """A row of layers that read the model's inputs."""
    return Row(classes, reading(call, shape, dtype), channels=no(NOTHING), **both(cell))


def encoded(call, cls, shape, cell, dtype=None):
    """A row of a layer that makes indices, with one behind it that encodes these."""
    return raw((cls,), lambda x: kl.CategoryEncoding(11, "multi_hot")(call(x)), shape, cell, dtype)


ROWS = [
    Row(
        known(*RANDOM),
        between(random, COLOURS, units=3),
        channels=unknown("AugMix"),
        int16x8=floats("", SIXTEEN),
        trains=no("some of these layers pass no gradients"),
        name="CutMix, MixUp, RandAugment and the other random layers for images",
    ),
    Row(
        known(*FLOAT),
        tuple(between(lambda x, cls=cls: cls()(x), COLOURS, units=3) for cls in known(*FLOAT)),
        channels=no("tfopt does not know"),
        **both(
            floats(
                "ADD*5 CAST*2 CONCATENATION*2 CUMSUM DIV*2 EQUAL GATHER*4 MINIMUM*4 MIRROR_PAD MUL*10 NEG NOT_EQUAL "
                "ONE_HOT REDUCE_MAX REDUCE_MIN*2 RELU*4 SELECT SELECT_V2 STRIDED_SLICE*5 SUB*4 SUM*2 TRANSPOSE*2",
                IMAGES,
            )
        ),
        trains=no("ContrastLimitedAdaptiveHistogramEqualization passes no gradients"),
    ),
    raw(
        known("MelSpectrogram"),
        lambda x: kl.MelSpectrogram(fft_length=16, sequence_stride=8, num_mel_bins=4)(x),
        (64,),
        floats(
            "ADD FULLY_CONNECTED GATHER IMAG LOG MAXIMUM*2 MIRROR_PAD MUL*4 REAL REDUCE_MAX RFFT2D SQRT SQUARE*2 SUB "
            "TRANSPOSE",
            SOUND,
        ),
    ),
    raw(
        known("STFTSpectrogram"),
        lambda x: kl.STFTSpectrogram(frame_length=8, frame_step=4, fft_length=8)(x),
        (64, 1),
        floats("ADD CONV_2D*2 LOG MAXIMUM*2 SQRT SQUARE*2 TRANSPOSE*3", SOUND),
    ),
    raw(
        (kl.CategoryEncoding,),
        lambda x: kl.CategoryEncoding(10, "one_hot")(x),
        (1,),
        floats("CAST*2 ONE_HOT", ENCODES),
        "int32",
    ),
    encoded(
        lambda x: kl.Discretization([-0.5, 0.0, 0.5])(x),
        kl.Discretization,
        (5,),
        floats("BUCKETIZE ONE_HOT REDUCE_MAX", ENCODES),
    ),
    encoded(lambda x: kl.HashedCrossing(8)((x, x)), kl.HashedCrossing, (1,), TABLES, "int32"),
    encoded(lambda x: kl.Hashing(8)(x), kl.Hashing, (5,), TABLES, "int32"),
    encoded(lambda x: kl.IntegerLookup(vocabulary=[1, 2, 3])(x), kl.IntegerLookup, (5,), TABLES, "int64"),
    encoded(lambda x: kl.StringLookup(vocabulary=["a", "b", "c"])(x), kl.StringLookup, (5,), TABLES, "string"),
    encoded(
        lambda x: kl.TextVectorization(vocabulary=["a", "b", "c"], output_sequence_length=4)(x),
        kl.TextVectorization,
        (1,),
        TABLES,
        "string",
    ),
]
