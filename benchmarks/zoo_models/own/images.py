"""Images and point clouds."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from zoo_models.entry import SAMPLES, Animal, Builder, entered_in, images, tokens

IMAGES: dict[str, Builder] = {}
_enter = entered_in(IMAGES)


# A residual network: a subclassed model of own blocks, which hold own layers.


class ConvNormRelu(layers.Layer):
    def __init__(self, filters, strides=1):
        super().__init__()
        self.conv = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        return ops.relu(self.norm(self.conv(x), training=training))


class ResidualBlock(layers.Layer):
    def __init__(self, filters, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.first = ConvNormRelu(filters, strides)
        self.conv = layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()
        self.shortcut = layers.Conv2D(filters, 1, strides=strides) if strides > 1 else None

    def call(self, x, training=None):
        y = self.norm(self.conv(self.first(x, training=training)), training=training)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return tf.nn.relu(x + y)


class ResidualNetwork(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.stem = ConvNormRelu(16)
        self.blocks = [ResidualBlock(16), ResidualBlock(32, 2), ResidualBlock(32), ResidualBlock(48, 2)]
        self.pool = layers.GlobalAveragePooling2D()
        self.dropout = layers.Dropout(0.2)
        self.classifier = layers.Dense(classes, activation="softmax")

    def call(self, x, training=None):
        x = self.stem(x, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        x = self.dropout(self.pool(x), training=training)
        return self.classifier(x)


@_enter
def nested_blocks() -> Animal:
    return Animal(ResidualNetwork(10), images())


# Squeeze and excitation: subclassed models inside a subclassed model.


class SqueezeExcite(keras.Model):
    def __init__(self, filters, ratio=4):
        super().__init__()
        self.squeeze = layers.Dense(filters // ratio, activation="relu")
        self.excite = layers.Dense(filters, activation="sigmoid")

    def call(self, x):
        weights = self.excite(self.squeeze(tf.reduce_mean(x, axis=[1, 2])))
        return x * weights[:, None, None, :]


class InvertedResidual(keras.Model):
    def __init__(self, filters, expansion=4):
        super().__init__()
        self.filters, self.expansion = filters, expansion

    def build(self, shape):
        wide = shape[-1] * self.expansion
        self.expand = keras.Sequential([layers.Conv2D(wide, 1), layers.BatchNormalization(), layers.ReLU(6.0)])
        self.depthwise = layers.DepthwiseConv2D(3, padding="same")
        self.norm = layers.BatchNormalization()
        self.gate = SqueezeExcite(wide)
        self.project = layers.Conv2D(self.filters, 1)
        self.built = True

    def call(self, x, training=False):
        y = self.expand(x, training=training)
        y = tf.nn.relu6(self.norm(self.depthwise(y), training=training))
        y = self.project(self.gate(y))
        return x + y if x.shape[-1] == self.filters else y


class MobileClassifier(keras.Model):
    def __init__(self):
        super().__init__()
        self.stem = layers.Conv2D(16, 3, strides=2, padding="same", activation="swish")
        self.body = [InvertedResidual(16), InvertedResidual(24), InvertedResidual(24)]
        self.head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(10)])

    def call(self, x, training=False):
        x = self.stem(x)
        for block in self.body:
            x = block(x, training=training)
        return self.head(x)


@_enter
def models_in_models() -> Animal:
    return Animal(MobileClassifier(), images())


# U-Net.


class Down(layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.convs = [layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(2)]
        self.pool = layers.MaxPooling2D()

    def call(self, x):
        for conv in self.convs:
            x = conv(x)
        return x, self.pool(x)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class Up(layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.up = layers.Conv2DTranspose(filters, 2, strides=2)
        self.conv = layers.Conv2D(filters, 3, padding="same", activation="relu")

    def call(self, inputs):
        x, skip = inputs
        return self.conv(ops.concatenate([self.up(x), skip], axis=-1))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@_enter
def unet() -> Animal:
    inputs = keras.Input((32, 32, 3))
    x, skips = inputs, []
    for filters in (16, 24):
        skip, x = Down(filters)(x)
        skips.append(skip)
    x = layers.SeparableConv2D(32, 3, padding="same")(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    for filters, skip in zip((24, 16), reversed(skips), strict=True):
        x = Up(filters)([x, skip])
    return Animal(keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax")(x)), images())


# Vision transformer.


class Patches(layers.Layer):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        patches = ops.image.extract_patches(x, size=self.size)
        count = (height // self.size) * (width // self.size)
        return ops.reshape(patches, (batch, count, self.size * self.size * channels))

    def get_config(self):
        return {**super().get_config(), "size": self.size}


class PatchEncoder(layers.Layer):
    def __init__(self, count, width):
        super().__init__()
        self.count = count
        self.projection = layers.Dense(width)
        self.position = layers.Embedding(count, width)

    def call(self, patches):
        positions = ops.expand_dims(ops.arange(0, self.count, 1), axis=0)
        return self.projection(patches) + self.position(positions)


def mlp(x, units, dropout):
    for size in units:
        x = layers.Dropout(dropout)(layers.Dense(size, activation=keras.activations.gelu)(x))
    return x


@_enter
def vit_patches() -> Animal:
    inputs = keras.Input((32, 32, 3))
    x = layers.RandomFlip("horizontal")(layers.Rescaling(2.0, -1.0)(inputs))
    x = PatchEncoder(16, 24)(Patches(8)(x))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([layers.MultiHeadAttention(2, 12, dropout=0.1)(y, y), x])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([mlp(y, (48, 24), 0.1), x])
    x = layers.Flatten()(layers.LayerNormalization(epsilon=1e-6)(x))
    return Animal(keras.Model(inputs, layers.Dense(10)(mlp(x, (64, 32), 0.5))), images())


# Compact convolutional transformer.


class Tokenizer(layers.Layer):
    def __init__(self, filters=(16, 24), **kwargs):
        super().__init__(**kwargs)
        self.steps = keras.Sequential()
        for count in filters:
            self.steps.add(layers.Conv2D(count, 3, padding="valid", use_bias=False, activation="relu"))
            self.steps.add(layers.ZeroPadding2D(1))
            self.steps.add(layers.MaxPooling2D(3, 2, padding="same"))

    def call(self, x):
        x = self.steps(x)
        return ops.reshape(x, (-1, ops.shape(x)[1] * ops.shape(x)[2], ops.shape(x)[-1]))


class LearnedPosition(layers.Layer):
    def __init__(self, length, **kwargs):
        super().__init__(**kwargs)
        self.length = length

    def build(self, shape):
        self.table = self.add_weight(name="table", shape=(self.length, shape[-1]), initializer="glorot_uniform")

    def call(self, x):
        table = ops.convert_to_tensor(self.table)
        return x + ops.broadcast_to(table[: ops.shape(x)[1]], ops.shape(x))


class StochasticDepth(layers.Layer):
    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seeds = keras.random.SeedGenerator(1337)

    def call(self, x, training=None):
        if training:
            keep = 1 - self.rate
            shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
            kept = ops.floor(keep + keras.random.uniform(shape, 0, 1, seed=self.seeds))
            return (x / keep) * kept
        return x


class SequencePooling(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = layers.Dense(1)

    def call(self, x):
        weights = ops.softmax(self.attention(x), axis=1)
        return ops.squeeze(ops.matmul(ops.transpose(weights, (0, 2, 1)), x), axis=-2)


@_enter
def cct() -> Animal:
    inputs = keras.Input((32, 32, 3))
    x = LearnedPosition(64)(Tokenizer()(inputs))
    for rate in (0.0, 0.1):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = layers.Add()([StochasticDepth(rate)(layers.MultiHeadAttention(2, 12)(y, y)), x])
        y = mlp(layers.LayerNormalization(epsilon=1e-5)(x), (48, 24), 0.1)
        x = layers.Add()([StochasticDepth(rate)(y), x])
    x = SequencePooling()(layers.LayerNormalization(epsilon=1e-5)(x))
    return Animal(keras.Model(inputs, layers.Dense(10)(x)), images())


# Attention in shifted windows.


def partitioned(x, size):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, size * size, channels))


def joined(windows, size, height, width, channels):
    x = ops.reshape(windows, (-1, height // size, width // size, size, size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))


class WindowAttention(layers.Layer):
    def __init__(self, width, size, heads, **kwargs):
        super().__init__(**kwargs)
        self.width, self.size, self.heads = width, size, heads
        self.scale = (width // heads) ** -0.5
        self.qkv = layers.Dense(3 * width)
        self.project = layers.Dense(width)
        self.dropout = layers.Dropout(0.1)

    def build(self, shape):
        self.bias = self.add_weight(shape=((2 * self.size - 1) ** 2, self.heads), initializer="normal", name="bias")
        places = np.stack(np.meshgrid(range(self.size), range(self.size), indexing="ij")).reshape(2, -1)
        offsets = (places[:, :, None] - places[:, None, :]) + self.size - 1
        self.places = self.add_weight(
            shape=(self.size**2, self.size**2),
            initializer=lambda shape, dtype: ops.convert_to_tensor(
                offsets[0] * (2 * self.size - 1) + offsets[1], dtype
            ),
            trainable=False,
            dtype="int32",
            name="places",
        )

    def call(self, x, mask=None):
        _, length, width = x.shape
        qkv = ops.reshape(self.qkv(x), (-1, length, 3, self.heads, width // self.heads))
        q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3, axis=0)
        scores = (q * self.scale) @ ops.transpose(k, (0, 1, 3, 2))
        bias = ops.reshape(ops.take(self.bias, ops.reshape(self.places, (-1,)), axis=0), (length, length, -1))
        scores = scores + ops.expand_dims(ops.transpose(bias, (2, 0, 1)), 0)
        if mask is not None:
            windows = mask.shape[0]
            scores = ops.reshape(scores, (-1, windows, self.heads, length, length)) + ops.cast(
                mask[None, :, None], scores.dtype
            )
            scores = ops.reshape(scores, (-1, self.heads, length, length))
        x = ops.transpose(self.dropout(ops.softmax(scores)) @ v, (0, 2, 1, 3))
        return self.project(ops.reshape(x, (-1, length, width)))


class SwinBlock(layers.Layer):
    def __init__(self, width, grid, heads, size=4, shift=0, **kwargs):
        super().__init__(**kwargs)
        self.grid, self.size, self.shift = grid, size, shift
        self.norms = [layers.LayerNormalization(epsilon=1e-5) for _ in range(2)]
        self.attention = WindowAttention(width, size, heads)
        self.mlp = keras.Sequential([layers.Dense(2 * width, "gelu"), layers.Dropout(0.1), layers.Dense(width)])
        self.mask = self._mask() if shift else None

    def _mask(self):
        zones = np.zeros((self.grid, self.grid))
        cuts = (slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None))
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                zones[rows, columns] = 3 * i + j
        windows = zones.reshape(self.grid // self.size, self.size, -1, self.size).transpose(0, 2, 1, 3)
        windows = windows.reshape(-1, self.size**2)
        return np.where(windows[:, None] != windows[:, :, None], -100.0, 0.0).astype("float32")

    def call(self, x):
        length, width = x.shape[1:]
        skip = x
        x = ops.reshape(self.norms[0](x), (-1, self.grid, self.grid, width))
        if self.shift:
            x = ops.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        x = self.attention(partitioned(x, self.size), mask=self.mask)
        x = joined(x, self.size, self.grid, self.grid, width)
        if self.shift:
            x = ops.roll(x, (self.shift, self.shift), axis=(1, 2))
        x = skip + ops.reshape(x, (-1, length, width))
        return x + self.mlp(self.norms[1](x))


class PatchMerging(layers.Layer):
    def __init__(self, grid, width):
        super().__init__()
        self.grid, self.width = grid, width
        self.reduce = layers.Dense(2 * width, use_bias=False)

    def call(self, x):
        x = ops.reshape(x, (-1, self.grid, self.grid, self.width))
        x = ops.concatenate([x[:, i::2, j::2, :] for i in range(2) for j in range(2)], axis=-1)
        return self.reduce(ops.reshape(x, (-1, (self.grid // 2) ** 2, 4 * self.width)))


@_enter
def swin_windows() -> Animal:
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 4, strides=4)(inputs)
    x = layers.Reshape((64, 16))(x)
    x = SwinBlock(16, 8, 2)(x)
    x = SwinBlock(16, 8, 2, shift=2)(x)
    x = PatchMerging(8, 16)(x)
    x = layers.GlobalAveragePooling1D()(SwinBlock(32, 4, 2)(x))
    return Animal(keras.Model(inputs, layers.Dense(10, activation="softmax")(x)), images())


# Networks of dense layers over patches.


class MixerBlock(layers.Layer):
    def __init__(self, patches, width, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens = keras.Sequential([layers.Dense(2 * patches, activation="gelu"), layers.Dense(patches)])
        self.channels = keras.Sequential([layers.Dense(2 * width, activation="gelu"), layers.Dense(width)])
        self.norm = layers.LayerNormalization(epsilon=1e-6)

    def call(self, inputs):
        x = self.norm(inputs)
        x = ops.transpose(self.tokens(ops.transpose(x, axes=(0, 2, 1))), axes=(0, 2, 1)) + inputs
        return x + self.channels(self.norm(x))


class SpatialGate(layers.Layer):
    def __init__(self, patches, width):
        super().__init__()
        self.expand = keras.Sequential([layers.Dense(2 * width, activation="gelu"), layers.Dropout(0.1)])
        self.reduce = layers.Dense(width)
        self.spatial = layers.Dense(patches, bias_initializer="ones")
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]

    def call(self, inputs):
        u, v = ops.split(self.expand(self.norms[0](inputs)), 2, axis=2)
        v = ops.transpose(self.spatial(ops.transpose(self.norms[1](v), (0, 2, 1))), (0, 2, 1))
        return inputs + self.reduce(u * v)


def _patch_classifier(blocks: keras.Sequential) -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    x = layers.Dense(24)(Patches(8)(inputs))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling1D()(blocks(x)))
    return keras.Model(inputs, layers.Dense(10)(x))


@_enter
def mlp_mixer() -> Animal:
    return Animal(_patch_classifier(keras.Sequential([MixerBlock(16, 24) for _ in range(2)])), images())


@_enter
def gmlp() -> Animal:
    return Animal(_patch_classifier(keras.Sequential([SpatialGate(16, 24) for _ in range(2)])), images())


# Two images and their distance.


def euclidean(vectors):
    x, y = vectors
    return ops.sqrt(ops.maximum(ops.sum(ops.square(x - y), axis=1, keepdims=True), 1e-7))


@_enter
def siamese_lambda() -> Animal:
    inputs = keras.Input((28, 28, 1))
    x = layers.BatchNormalization()(inputs)
    for filters in (8, 16):
        x = layers.AveragePooling2D(2)(layers.Conv2D(filters, 5, activation="tanh")(x))
    x = layers.BatchNormalization()(layers.Flatten()(x))
    embedding = keras.Model(inputs, layers.Dense(10, activation="tanh")(x), name="embedding")
    one, two = keras.Input((28, 28, 1), name="one"), keras.Input((28, 28, 1), name="two")
    distance = layers.Lambda(euclidean, output_shape=(1,))([embedding(one), embedding(two)])
    outputs = layers.Dense(1, activation="sigmoid")(layers.BatchNormalization()(distance))
    pictures = images(28, 1)
    return Animal(keras.Model([one, two], outputs), [pictures, pictures[::-1].copy()])


# A detector: pyramid of features, heads that are shared by its levels.


class FeaturePyramid(layers.Layer):
    def __init__(self, backbone, **kwargs):
        super().__init__(name="FeaturePyramid", **kwargs)
        self.backbone = backbone
        self.lateral = [layers.Conv2D(24, 1) for _ in range(2)]
        self.smooth = [layers.Conv2D(24, 3, padding="same") for _ in range(2)]
        self.coarse = layers.Conv2D(24, 3, 2, "same")
        self.upsample = layers.UpSampling2D(2)

    def call(self, x, training=False):
        fine, deep = self.backbone(x, training=training)
        deep = self.lateral[1](deep)
        fine = self.lateral[0](fine) + self.upsample(deep)
        return self.smooth[0](fine), self.smooth[1](deep), self.coarse(tf.nn.relu(deep))


def head(filters, bias):
    layer = keras.Sequential([keras.Input((None, None, 24))])
    for _ in range(2):
        layer.add(layers.Conv2D(24, 3, padding="same"))
        layer.add(layers.ReLU())
    layer.add(layers.Conv2D(filters, 3, padding="same", bias_initializer=bias))
    return layer


class Detector(keras.Model):
    def __init__(self, classes, backbone, anchors=3, **kwargs):
        super().__init__(name="Detector", **kwargs)
        self.fpn = FeaturePyramid(backbone)
        self.classes = classes
        self.class_head = head(anchors * classes, keras.initializers.Constant(-4.6))
        self.box_head = head(anchors * 4, "zeros")

    def call(self, image, training=False):
        features = self.fpn(image, training=training)
        count = tf.shape(image)[0]
        boxes = [tf.reshape(self.box_head(level), [count, -1, 4]) for level in features]
        classes = [tf.reshape(self.class_head(level), [count, -1, self.classes]) for level in features]
        return tf.concat([tf.concat(boxes, axis=1), tf.concat(classes, axis=1)], axis=-1)


@_enter
def retinanet_head() -> Animal:
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    fine = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu")(x)
    deep = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(fine)
    return Animal(Detector(5, keras.Model(inputs, [fine, deep])), images())


# A base that is tuned while its batch normalization stays in inference mode.


class FineTuned(keras.Model):
    def __init__(self, base, classes):
        super().__init__()
        self.base = base
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(classes)

    def call(self, x):
        return self.head(self.pool(self.base(x, training=False)))


@_enter
def fine_tuned_base() -> Animal:
    inputs = keras.Input((32, 32, 3))
    x = inputs
    for filters in (16, 24, 32):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return Animal(FineTuned(keras.Model(inputs, x), 5), images())


# Generators and encoders.


@_enter
def gan_generator() -> Animal:
    model = keras.Sequential(
        [
            keras.Input((32,)),
            layers.Dense(4 * 4 * 32, use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Reshape((4, 4, 32)),
            layers.Conv2DTranspose(24, 4, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(negative_slope=0.2),
            layers.UpSampling2D(),
            layers.Conv2D(16, 3, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Conv2DTranspose(3, 5, strides=2, padding="same", activation="tanh"),
        ],
        name="generator",
    )
    return Animal(model, np.random.default_rng(0).normal(size=(SAMPLES, 32)).astype("float32"))


class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, inputs):
        mean, log_variance = inputs
        epsilon = keras.random.normal(shape=ops.shape(mean), seed=self.seeds)
        return mean + ops.exp(0.5 * log_variance) * epsilon


@_enter
def vae_encoder() -> Animal:
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 3, activation="relu", strides=2, padding="same")(inputs)
    x = layers.Conv2D(32, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    mean, log_variance = layers.Dense(4, name="mean")(x), layers.Dense(4, name="log_variance")(x)
    encoder = keras.Model(inputs, [mean, log_variance, Sampling()([mean, log_variance])], name="encoder")
    return Animal(encoder, images(28, 1), inference=lambda model: keras.Model(model.inputs, model.outputs[:2]))


@_enter
def super_resolution() -> Animal:
    inputs = keras.Input((24, 24, 1))
    options = {"activation": "relu", "kernel_initializer": "orthogonal", "padding": "same"}
    x = layers.Conv2D(32, 5, **options)(inputs)
    x = layers.Conv2D(32, 3, **options)(x)
    x = layers.Conv2D(16, 3, **options)(x)
    x = layers.Conv2D(9, 3, **options)(x)
    outputs = layers.Lambda(lambda x: tf.nn.depth_to_space(x, 3), output_shape=(72, 72, 1))(x)
    return Animal(keras.Model(inputs, outputs), images(24, 1))


# A captcha and its letters.


class CTCLoss(layers.Layer):
    def __init__(self, name=None):
        super().__init__(name=name)
        self.loss_fn = lambda *args: tf.reduce_mean(keras.ops.ctc_loss(*args))

    def call(self, labels, predicted):
        count = tf.shape(labels)[0]
        lengths = tf.fill([count], tf.shape(labels)[1])
        steps = tf.fill([count], tf.shape(predicted)[1])
        self.add_loss(self.loss_fn(labels, tf.math.log(predicted + 1e-7), lengths, steps))
        return predicted


@_enter
def captcha_ctc() -> Animal:
    image = keras.Input((48, 16, 1), name="image", dtype="float32")
    labels = keras.Input((4,), name="label", dtype="int32")
    x = image
    for filters in (16, 24):
        x = layers.Conv2D(filters, 3, activation="relu", kernel_initializer="he_normal", padding="same")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Reshape((12, 4 * 24))(x)
    x = layers.Dropout(0.2)(layers.Dense(24, activation="relu")(x))
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True, dropout=0.25))(x)
    x = layers.Dense(12, activation="softmax", name="letters")(x)
    model = keras.Model([image, labels], CTCLoss(name="ctc")(labels, x))
    pictures = keras.ops.convert_to_numpy(keras.ops.image.resize(images(32, 1), (48, 16)))
    return Animal(
        model,
        {"image": pictures, "label": tokens(4, 11)},
        inference=lambda model: keras.Model(model.inputs[0], model.get_layer("letters").output),
    )


# Points in space.


class Orthogonal(keras.regularizers.Regularizer):
    def __init__(self, size, factor=0.001):
        self.size, self.factor = size, factor

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.size, self.size))
        product = ops.tensordot(x, x, axes=(2, 2))
        product = ops.reshape(product, (-1, self.size, self.size))
        return ops.sum(self.factor * ops.square(product - ops.eye(self.size)))


def conv_norm(x, filters):
    x = layers.Conv1D(filters, kernel_size=1, padding="valid")(x)
    return layers.Activation("relu")(layers.BatchNormalization(momentum=0.0)(x))


def transformed(inputs, size):
    x = conv_norm(conv_norm(inputs, 16), 32)
    x = layers.Dense(16, activation="relu")(layers.GlobalMaxPooling1D()(x))
    matrix = layers.Dense(
        size * size,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(np.eye(size).flatten()),
        activity_regularizer=Orthogonal(size),
    )(x)
    return layers.Dot(axes=(2, 1))([inputs, layers.Reshape((size, size))(matrix)])


@_enter
def pointnet() -> Animal:
    inputs = keras.Input((64, 3))
    x = conv_norm(transformed(inputs, 3), 16)
    x = conv_norm(transformed(x, 16), 32)
    x = layers.Dense(16, activation="relu")(layers.GlobalMaxPooling1D()(x))
    outputs = layers.Dense(5, activation="softmax")(layers.Dropout(0.3)(x))
    points = np.random.default_rng(6).normal(size=(SAMPLES, 64, 3)).astype("float32")
    return Animal(keras.Model(inputs, outputs, name="pointnet"), points)
