"""Writes the files of this folder with the tfopt at hand: small models in which every registered class occurs.

`python tests/saved/make.py` writes all of them, `python tests/saved/make.py fusion cascade` some. For each entry of
`MODELS` there are a `.keras` file and an `.npz` file with what `tests/test_saved_files.py` compares with: inputs,
outputs and, for outputs in integers, the width of a step; for compiled models also what comes of one more training
step, for Distillers what `evaluate` says. `objects.json` holds layers, losses and optimizers with options that no model
has, as Keras serializes them. `registered.json` lists all classes of tfopt that Keras knows.

The files stand for those that users have. To write one anew is to give up the old one: write new entries only.
"""

import importlib
import json
import pkgutil
import sys
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers as kl

import tfopt
from tfopt import distillation, fusion

HERE = Path(__file__).resolve().parent
SAMPLES = 4
UNIT_STEP = 1 / 128  # of unit normalization, which has no range of its own


def randomized(model):
    """The model with weights, biases and moving statistics away from their start values."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("gamma", "variance", "/scale")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif "seed" not in weight.path:
            weight.assign(generator.normal(0, 0.5, weight.shape))
    return model


def inputs_of(model, samples=SAMPLES):
    """Random arrays, one an input; the token 0, which is padding, stands at the end of sequences."""
    generator = np.random.default_rng(1)
    arrays = []
    for tensor in getattr(model, "student", model).inputs:
        shape = (samples, *tensor.shape[1:])
        if tensor.dtype == "int32":
            tokens = generator.integers(1, 8, shape, dtype="int32")
            arrays.append(np.where(np.arange(shape[1]) < np.arange(samples)[:, None] + 2, tokens, np.int32(0)))
        else:
            arrays.append(generator.normal(0, 1, shape).astype("float32"))
    return arrays


def quantized(model, scheme="int8", calibrated=True, **options):
    """The model quantized, with ranges that data has set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays float
        model = tfopt.quantize(randomized(model), scheme, **options)
    if not calibrated:
        return model
    return tfopt.calibrate(model, inputs_of(model, 16), method="minmax", bias_correction=False)


def trained(model, optimizer, loss="mse", steps=3, **options):
    """The model compiled and trained for some batches. Eager, as a file keeps: faster than graphs in so few steps."""
    model.compile(optimizer, loss, run_eagerly=True, **options)
    for _ in range(steps):
        model.train_on_batch(given(inputs_of(model)), labels_of(model))
    return model


def given(inputs):
    return inputs if len(inputs) > 1 else inputs[0]


def labels_of(model):
    """Class numbers for one output with a loss of such, else zeros and ones in the shape of the outputs."""
    if "Sparse" in type(model.loss).__name__ or "sparse" in str(model.loss):
        return np.arange(SAMPLES) % 3
    outputs = keras.tree.flatten(model(given(inputs_of(model)), training=False))
    ones = [np.zeros(output.shape, "float32") for output in outputs]
    for one in ones:
        one[..., 0] = 1
    return ones if len(ones) > 1 else ones[0]


# Quantized models. Each layer is an output of its own right behind an input, so that nothing hides a difference.


def image_layers():
    """Kernels with all they are fused with, normalizations, ops."""
    image = keras.Input((6, 6, 2), name="image")
    folded = kl.BatchNormalization(name="folded")(kl.Conv2D(3, 3, use_bias=False, name="conv")(image))
    tail = kl.Conv2D(2, 2, activation="gelu", name="gelu")(image)
    outputs = [
        kl.ReLU(name="relu")(folded),
        kl.Conv2D(2, 1, activation="swish", name="swish")(image),
        kl.DepthwiseConv2D(2, activation="relu", name="depthwise")(image),
        kl.SeparableConv2D(3, 2, depth_multiplier=2, activation="tanh", name="separable")(image),
        kl.Conv2DTranspose(2, 2, name="transposed")(image),
        kl.BatchNormalization(name="alone")(image),
        kl.LayerNormalization(name="layer_norm")(image),
        kl.GroupNormalization(2, name="group_norm")(image),
        kl.RMSNormalization(name="rms_norm")(image),
        kl.UnitNormalization(name="unit_norm")(image),
        image * 0.5,
        kl.Add(name="add")([image, image]),
        kl.Dense(3, "softmax", name="softmax")(kl.GlobalAveragePooling2D(name="pool")(tail)),
    ]
    return keras.Model(image, outputs, name="image_layers")


def recurrent_layers():
    """Cells, directions, states and masks; layers on each time step."""
    steps, tokens = keras.Input((5, 3), name="steps"), keras.Input((5,), dtype="int32", name="tokens")
    padded = kl.Embedding(8, 3, mask_zero=True, name="embedding")(tokens)
    outputs = [
        kl.LSTM(2, return_sequences=True, name="lstm")(steps),
        kl.GRU(2, name="gru")(steps),
        kl.GRU(2, reset_after=False, go_backwards=True, name="gru_before")(steps),
        kl.SimpleRNN(2, activation="relu", name="simple")(steps),
        kl.RNN(kl.LSTMCell(2, activation="relu"), name="rnn")(steps),
        kl.Bidirectional(kl.LSTM(2, return_sequences=True), name="concat")(steps),
        kl.Bidirectional(kl.GRU(2), merge_mode="ave", name="ave")(steps),
        kl.TimeDistributed(kl.Dense(2, "tanh"), name="dense_steps")(steps),
        kl.TimeDistributed(kl.GRU(2), name="gru_steps")(kl.Reshape((1, 5, 3), name="reshape")(steps)),
        kl.LSTM(2, name="masked")(padded),
    ]
    return keras.Model([steps, tokens], outputs, name="recurrent_layers")


def attention_layers():
    """All attention layers; einsums that are one matrix product and one that is not."""
    query, value = keras.Input((4, 4), name="query"), keras.Input((3, 4), name="value")
    outputs = [
        kl.MultiHeadAttention(2, 3, name="multi_head")(query, value),
        kl.MultiHeadAttention(1, 2, name="causal")(query, query, use_causal_mask=True),
        kl.GroupQueryAttention(2, 2, 1, name="grouped")(query, value),
        kl.Attention(use_scale=True, name="dot")([query, value]),
        kl.Attention(score_mode="concat", name="concat")([query, value]),
        kl.AdditiveAttention(name="additive")([query, value]),
        kl.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="product")(query),
        kl.EinsumDense("abc,bcd->abd", (4, 2), bias_axes="d", activation="relu", name="no_product")(query),
    ]
    return keras.Model([query, value], outputs, name="attention_layers")


def masked_softmax():
    """Scores of tokens, of which those of padding are hidden."""
    scores, tokens = keras.Input((3, 5), name="scores"), keras.Input((5,), dtype="int32", name="tokens")
    weights = kl.Softmax(name="weights")(scores, mask=keras.ops.expand_dims(tokens, 1))
    return keras.Model([scores, tokens], kl.Dense(2, name="dense")(weights), name="masked_softmax")


def half_and_half():
    """Integers, floats and weights alone in one model."""
    image = keras.Input((6, 6, 2), name="image")
    integers = kl.Conv2D(3, 2, activation="relu", name="integers")(image)
    weights = kl.Conv2D(3, 2, activation="relu", name="weights")(integers)
    left_out = kl.Conv2D(2, 2, name="left_out")(weights)
    back = kl.Conv2D(2, 2, name="back")(left_out)
    op = kl.Dense(2, name="behind_op")(keras.ops.sin(1.0 - back))
    return keras.Model(image, [op, back], name="half_and_half")


def many_kernels():
    """Kernels of layers, of cells and of sublayers."""
    image, tokens = keras.Input((6, 6, 2), name="image"), keras.Input((5,), dtype="int32", name="tokens")
    words = kl.Embedding(8, 4, name="embedding")(tokens)
    outputs = [
        kl.Conv2D(3, 3, activation="swish", name="conv")(image),
        kl.DepthwiseConv2D(2, name="depthwise")(image),
        kl.Dense(3, name="dense")(image),
        kl.LSTM(2, name="lstm")(words),
        kl.MultiHeadAttention(2, 2, name="attention")(words, words),
    ]
    return keras.Model([image, tokens], outputs, name="many_kernels")


def sixteen_bits():
    """What LiteRT has in 16 bits, what it has not, and an activation that is set apart."""
    image = keras.Input((6, 6, 2), name="image")
    hidden = kl.Conv2D(3, 2, activation="swish", name="swish")(image)
    floating = kl.LayerNormalization(name="layer_norm")(hidden)
    outputs = [
        kl.BatchNormalization(name="folded")(kl.Conv2D(2, 2, name="conv")(image)),
        kl.Dense(2, "tanh", name="tanh")(floating),
        kl.Dense(2, name="behind_op")(keras.ops.sin(image)),
        kl.Add(name="add")([image, image]),
    ]
    return keras.Model(image, outputs, name="sixteen_bits")


def trainable_net(outputs=2):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            kl.Conv2D(3, 2, use_bias=False, name="conv"),
            kl.BatchNormalization(name="folded"),
            kl.ReLU(name="relu"),
            kl.BatchNormalization(name="alone"),
            kl.Flatten(name="flat"),
            kl.Dense(outputs, name="dense"),
        ],
        name="trainable_net",
    )


def frozen_training():
    """Ranges and statistics that have just stopped to move: a loaded model that forgets the count moves them again."""
    model = quantized(trainable_net(), calibrated=False, freeze_ranges_after=3, freeze_batch_norm_after=2)
    return trained(model, keras.optimizers.SGD(0.01, momentum=0.9))


def learned_ranges():
    return trained(quantized(trainable_net(), learn_ranges=True), keras.optimizers.SGD(0.01, momentum=0.9))


# Models of models


def fusion_layers():
    """All fusion layers but the cascade, most of them with all their weights."""
    wide, narrow = keras.Input((4, 4, 3), name="wide"), keras.Input((2, 2, 2), name="narrow")
    a, b = (kl.Dense(3, "softmax", name=f"from_{x.name}")(kl.Flatten(name=f"flat_{x.name}")(x)) for x in (wide, narrow))
    head = [kl.Dense(4, "relu", name="head_hidden"), kl.Dense(2, name="head_outputs")]
    grids = keras.Sequential([keras.Input((4, 4, 2)), kl.Conv2D(2, 3, name="inner")], name="grids")
    outputs = [
        fusion.ParallelFusion("weighted", weights=[0.25, 0.75], name="weighted")([a, b]),
        fusion.ParallelFusion("weighted", weights="learned", project=True, name="learned")([wide, narrow]),
        fusion.ParallelFusion("product", name="product")([a, b]),
        fusion.ParallelFusion("concat", name="beside")([wide, narrow]),
        fusion.VotingFusion("soft", weights=[0.25, 0.75], from_logits=True, name="soft")([a, b]),
        fusion.VotingFusion("hard", name="hard")([a, b]),
        fusion.GatedFusion(project=True, name="gated")([wide, narrow]),
        fusion.StackedFusion(outputs=2, activation="softmax", name="stacked")([a, b]),
        fusion.StackedFusion(head, name="with_head")([wide, b]),
        fusion.SerialFusion([grids, kl.Dense(2, name="second")], name="chain")(wide),
        fusion.SerialFusion([kl.Dense(2, name="first"), kl.Dense(3, name="last")], how="concat", name="both")(b),
    ]
    return randomized(keras.Model([wide, narrow], outputs, name="fusion_layers"))


def classifier(width, name="net", ending="softmax"):
    net = [keras.Input((6, 3)), kl.Conv1D(width, 2, name="conv"), kl.GlobalAveragePooling1D(name="features")]
    return randomized(keras.Sequential([*net, kl.Dense(3, ending, name="head")], name=name))


def quantized_fusion():
    """Fusion layers that `quantize` opens, and a selection that stays float."""
    x = keras.Input((6, 3), name="x")
    outputs = [classifier(width, f"net_{width}")(x) for width in (2, 3)]
    fused = [
        fusion.ParallelFusion("mean", name="mean")(outputs),
        fusion.GatedFusion(name="gated")(outputs),
        fusion.CascadeSelection([0.5], name="selection")(outputs),
    ]
    return quantized(keras.Model(x, [kl.Dense(2, name=f"dense_{i}")(y) for i, y in enumerate(fused)], name="fused"))


def cascade():
    return tfopt.fuse([classifier(2), classifier(3), classifier(4)], "cascade", thresholds=[0.6, 0.5])


def two_ends(width, name):
    x = keras.Input((6, 3), name="x")
    features = kl.Dense(width, "relu", name="features")(kl.Flatten(name="flat")(x))
    ends = [kl.Dense(2, "sigmoid", name="labels")(features), kl.Dense(1, name="number")(features)]
    return randomized(keras.Model(x, ends, name=name))


def distiller():
    """Losses of features that have weights or a form of their own, and both of classes."""
    losses = [
        distillation.SoftTargets(temperature=2.0),
        distillation.DecoupledTargets(target_weight=0.5, other_weight=2.0),
        distillation.FeatureMatching(student_layer="conv", teacher_layer="conv"),
        distillation.AttentionTransfer(power=3.0, student_layer="conv", weight=0.1),
        distillation.ContrastiveRepresentation(dimensions=2, temperature=0.2, student_layer="features", weight=0.5),
    ]
    model = tfopt.Distiller(classifier(2, "student"), classifier(3, "teacher"), losses, alpha=0.75, temperature=3.0)
    options = {"metrics": ["accuracy"], "evaluate_teacher": True, "teacher_gap": True}
    return trained(model, keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", **options)


def distiller_of_two():
    """Two teachers, two outputs."""
    losses = [
        distillation.BinaryTargets(temperature=2.0, output="labels"),
        distillation.RegressionTargets("huber", output="number", weight=0.5),
        distillation.BoundedTargets(margin=0.1, output="number"),
    ]
    teachers = [two_ends(3, "teacher_a"), two_ends(4, "teacher_b")]
    model = tfopt.Distiller(two_ends(2, "student"), teachers, losses, teacher_weights=[1.0, 3.0])
    model.compile(
        keras.optimizers.SGD(0.01),
        ["binary_crossentropy", "mse"],
        loss_weights=[2.0, 1.0],
        run_eagerly=True,
        evaluate_teacher=True,
    )
    return model


def distiller_without_teacher():
    """The losses of all pairs in a batch, to be fitted to cached answers."""
    names = ("RelationalDistance", "RelationalAngle", "SimilarityPreserving")
    losses = [getattr(distillation, name)(student_layer="features", weight=0.5) for name in names]
    return tfopt.Distiller(classifier(2, "student"), None, losses, alpha=0.25)


def distiller_of_integers():
    """A quantized student, a loss that is chosen, not compiled."""
    return tfopt.Distiller(quantized(classifier(2, "student")), classifier(3, "teacher"))


# Other layers and what a model is compiled with


def adaptive_pooling():
    """All ranks and kinds; `swap_pooling` makes those of rank 3, which have no public name."""
    inputs = [keras.Input((*(5, 4, 3)[:rank], 2), name=f"rank_{rank}") for rank in (1, 2, 3)]
    plain = [
        getattr(kl, f"{kind}Pooling{rank}D")(2, name=f"{kind.lower()}_{rank}")(x)
        for rank, x in enumerate(inputs, 1)
        for kind in ("Max", "Average")
    ]
    first = tfopt.AdaptiveMaxPooling2D((3, 2), name="uneven")(inputs[1])
    return tfopt.swap_pooling(keras.Model(inputs, [*plain, first], name="adaptive_pooling"), "adaptive")


def clipped(optimizer, loss="mse", label_smoothing=0.0):
    """A model trained with the optimizer that a recipe with adaptive clipping has."""
    how = tfopt.recipe(
        epochs=4,
        samples=SAMPLES,
        batch_size=SAMPLES,
        optimizer=optimizer,
        learning_rate=0.01,
        loss=loss,
        decay="cosine",
        adaptive_clip=0.02,
        label_smoothing=label_smoothing,
    )
    return trained(classifier(2), how.optimizer, how.loss)


MODELS = {
    "int8_images": lambda: quantized(image_layers()),
    "int8_recurrent": lambda: quantized(recurrent_layers()),
    "int8_attention": lambda: quantized(attention_layers()),
    "int8_softmax": lambda: quantized(masked_softmax()),
    "int8_mixed": lambda: quantized(half_and_half(), overrides={"weights": "int4_weight_only", "left_out": None}),
    "int16x8": lambda: quantized(sixteen_bits(), "int16x8"),
    "weight_only": lambda: quantized(
        many_kernels(), "int4_weight_only", False, overrides={"dense": "int2_weight_only", "conv": None}
    ),
    "float16": lambda: quantized(many_kernels(), "float16", False),
    "frozen_training": frozen_training,
    "learned_ranges": learned_ranges,
    "fusion": fusion_layers,
    "int8_fusion": quantized_fusion,
    "cascade": cascade,
    "distiller": distiller,
    "distiller_of_two": distiller_of_two,
    "distiller_without_teacher": distiller_without_teacher,
    "distiller_of_integers": distiller_of_integers,
    "adaptive_pooling": adaptive_pooling,
    "clipped_sgd": lambda: clipped("sgd"),
    "clipped_adam": lambda: clipped("adam"),
    "clipped_adamw": lambda: clipped("adamw"),
    "clipped_rmsprop": lambda: clipped("rmsprop"),
    "smoothed_labels": lambda: clipped("sgd", "sparse_categorical_crossentropy", 0.1),
}


def option_objects():
    """Objects with options that no file has, by a name."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    how = {"epochs": 2, "samples": 8, "learning_rate": 0.01, "adaptive_clip": 0.05}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    image_ranges = quantized(image_layers(), "int16x8")
    return {
        "adam_of_a_recipe": tfopt.recipe(**how, optimizer="adam", ema=0.9, decay="step").optimizer,
        "sgd_of_a_recipe": tfopt.recipe(**how, optimizer=keras.optimizers.SGD(schedule, nesterov=True)).optimizer,
        "smoothed": tfopt.recipe(**how, loss=loss, label_smoothing=0.2).loss,
        "pooling_first": tfopt.AdaptiveAveragePooling2D((3, 1), data_format="channels_first", name="pool"),
        "product": fusion.ParallelFusion("product", from_logits=True, multi_label=True, name="product"),
        "hard_votes": fusion.VotingFusion("hard", weights=(0.5, 0.25, 0.25), multi_label=True, name="votes"),
        "selection": fusion.CascadeSelection([0.5, 2.0], from_logits=True, name="selection"),
        "soft_targets": distillation.SoftTargets(output=1, weight=2.0, name="soft"),
        "matching": distillation.FeatureMatching(student_layer="a/b", teacher_layer="c", name="matching"),
        "input_range": image_ranges.get_layer("image_range"),
    }


# Writing


def steps_of(model):
    """For each output how wide a step of its integers is; 0 for floats."""
    steps = []
    for tensor in getattr(model, "student", model).outputs:
        layer = tensor._keras_history.operation
        ranges = layer.ranges() if hasattr(layer, "ranges") else {}
        range_ = next((ranges[name] for name in ("output", "hidden", "pre_activation") if name in ranges), None)
        if range_ is not None:
            low, high = range_.bounds()
            steps.append((high - low) / 255 if range_.bits == 8 else max(-low, high) / 32767)
        else:
            steps.append(UNIT_STEP if "UnitNorm" in type(layer).__name__ else 0)
    return np.array(steps)


def outputs_of(model, inputs):
    return [np.asarray(y, "float32") for y in keras.tree.flatten(model(given(inputs), training=False))]


def recorded(model):
    """What the test compares with, by name of an array; trains the model on."""
    inputs = inputs_of(model)
    arrays = {f"input_{i}": x for i, x in enumerate(inputs)}
    arrays |= {f"output_{i}": y for i, y in enumerate(outputs_of(model, inputs))} | {"steps": steps_of(model)}
    if not model.compiled:
        return arrays
    labels = labels_of(model)
    arrays |= {f"label_{i}": y for i, y in enumerate(labels if isinstance(labels, list) else [labels])}
    if isinstance(model, tfopt.Distiller):
        logs = model.evaluate(given(inputs), labels, batch_size=SAMPLES, verbose=0, return_dict=True)
        arrays |= {f"log_{name}": value for name, value in logs.items()}
    model.train_on_batch(given(inputs), labels)
    arrays |= {f"trained_{i}": y for i, y in enumerate(outputs_of(model, inputs))}
    return arrays | {"trained_steps": steps_of(model)}


def write_model(name):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    path = HERE / f"{name}.keras"
    model.save(path)
    with zipfile.ZipFile(path) as stored:
        parts = {part.filename: stored.read(part) for part in stored.infolist()}
    # Keras does not compress; the weights of small models are mostly gaps between them.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as small:
        for part, content in parts.items():
            small.writestr(part, content)
    np.savez_compressed(path.with_suffix(".npz"), **recorded(model))


def write_objects():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    objects = {name: keras.saving.serialize_keras_object(thing) for name, thing in option_objects().items()}
    (HERE / "objects.json").write_text(json.dumps(objects, indent=1) + "\n")


def write_registered():
    """The classes of every module of tfopt."""
    for module in pkgutil.walk_packages(tfopt.__path__, "tfopt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    names = sorted(name for name in keras.saving.get_custom_objects() if name.startswith("tfopt>"))
    (HERE / "registered.json").write_text(json.dumps(names, indent=1) + "\n")


def main():
    write_registered()  # first: an optimizer that a model is made with registers its class
    for name in sys.argv[1:] or MODELS:
        write_model(name)
        print(name, (HERE / f"{name}.keras").stat().st_size)
    if not sys.argv[1:]:
        write_objects()


if __name__ == "__main__":
    main()
