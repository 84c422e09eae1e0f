"""Preprocessing layers."""

from conformance.rows import Row, between, floats, reading
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
FLOAT = ("AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Equalization", "Solarization")


def chain(names, title, **cells):
    """A row of image layers, one behind the other."""
    known = {name: cls for name in names for cls in layers_named(name)}

    def call(x):
        for name, cls in known.items():
            x = cls(**RANDOM.get(name, {}))(x)
        return x

    return Row(tuple(known.values()), between(call, COLOURS, units=3), name=title, **cells)


ROWS = [
    chain(RANDOM, "CutMix, MixUp and the other random layers for images"),
    chain(
        FLOAT,
        "",
        int8=floats("", "preprocessing of images that LiteRT has no integers for"),
        int16x8=floats("", "preprocessing of images that LiteRT has no integers for"),
    ),
    Row(
        tuple(layers_named("MelSpectrogram")),
        reading(lambda x: kl.MelSpectrogram(fft_length=16, sequence_stride=8, num_mel_bins=4)(x), (64,)),
    ),
    Row(
        tuple(layers_named("STFTSpectrogram")),
        reading(lambda x: kl.STFTSpectrogram(frame_length=8, frame_step=4, fft_length=8)(x), (64, 1)),
    ),
    Row((kl.CategoryEncoding,), reading(lambda x: kl.CategoryEncoding(10, "one_hot")(x), (1,), "int32")),
    Row((kl.Discretization,), reading(lambda x: kl.Embedding(4, 3)(kl.Discretization([-0.5, 0.0, 0.5])(x)), (5,))),
    Row((kl.HashedCrossing,), reading(lambda x: kl.Embedding(8, 3)(kl.HashedCrossing(8)((x, x))), (1,), "int32")),
    Row((kl.Hashing,), reading(lambda x: kl.Embedding(8, 3)(kl.Hashing(8)(x)), (5,), "int32")),
    Row(
        (kl.IntegerLookup,),
        reading(lambda x: kl.Embedding(11, 3)(kl.IntegerLookup(vocabulary=list(range(10)))(x)), (5,), "int64"),
    ),
    Row(
        (kl.StringLookup,),
        reading(lambda x: kl.Embedding(4, 3)(kl.StringLookup(vocabulary=["a", "b", "c"])(x)), (5,), "string"),
    ),
    Row(
        (kl.TextVectorization,),
        reading(
            lambda x: kl.Embedding(5, 3)(kl.TextVectorization(vocabulary=["a", "b", "c"], output_sequence_length=4)(x)),
            (1,),
            "string",
        ),
    ),
]
