import flatbuffers
import keras
import numpy as np
import pytest
import zoo
from ai_edge_litert import schema_py_generated as schema
from keras import layers as kl

import tfopt
from tfopt.deploy.flatbuffer import assembly
from tfopt.deploy.flatbuffer import legalize as integers
from tfopt.deploy.flatbuffer import naming as sharing
from tfopt.deploy.flatbuffer.naming import _layer_path, compacted


class Unshared(sharing._SharingBuilder):
    def CreateNumpyVector(self, x):
        return flatbuffers.Builder.CreateNumpyVector(self, x)


def unshared(model, size=1024):
    builder = Unshared(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def as_converted(monkeypatch, folder, model, **options):
    """The file with each vector written where it stands, as the converter writes it."""
    monkeypatch.setattr(assembly, "compacted", lambda content: content)
    monkeypatch.setattr(integers, "packed", unshared)
    tfopt.export_tflite(model, folder / "converted.tflite", **options)
    return (folder / "converted.tflite").read_bytes()


def per_channel_model(channels):
    """Two convolutions of so many channels; kernels differ by channel, so that their scales are no equal vectors."""
    model = keras.Sequential([keras.Input((4, 4, 3)), kl.Conv2D(channels, 1), kl.Conv2D(channels, 1)])
    model.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in model.get_weights()])
    x = np.random.default_rng(1).normal(size=(64, 4, 4, 3)).astype("float32")
    return tfopt.calibrate(tfopt.quantize(model), x), x


def everything(content):
    """All that a file says but the names of inner tensors, as nested dicts, lists and numbers."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for graph in model.subgraphs:
        for index in set(range(len(graph.tensors))) - {*graph.inputs, *graph.outputs}:
            graph.tensors[index].name = None
    return plain(model)


def names(content):
    graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
    return [tensor.name.decode() for tensor in graph.tensors]


def plain(item):
    if isinstance(item, np.ndarray):
        return item.dtype.str, item.tolist()
    if isinstance(item, list):
        return [plain(value) for value in item]
    return {key: plain(value) for key, value in vars(item).items()} if hasattr(item, "__dict__") else item


def test_zero_points_of_all_channels_are_written_once(monkeypatch, tmp_path):
    channels = 256
    model, x = per_channel_model(channels)
    before = as_converted(monkeypatch, tmp_path, model, data=x)
    # Of the zero points of two kernels and two biases, 8 bytes a channel each, one vector is left.
    named = schema.ModelT.InitFromPackedBuf(before, 0)
    sharing.shorten_names(named)
    saved = len(unshared(named)) - len(compacted(before))
    assert 3 * 8 * channels <= saved <= 3 * 8 * channels + 512


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name != "sequence"])
def test_the_file_says_the_same(name, monkeypatch, tmp_path):
    model = zoo.build(name)
    before = as_converted(monkeypatch, tmp_path, model, quantization="int8", data=zoo.inputs_for(model, 64))
    after = compacted(before)
    assert len(after) < len(before)
    assert everything(after) == everything(before)
    assert sharing.packed(schema.ModelT.InitFromPackedBuf(after, 0), len(after)) == after


def test_tensors_are_named_after_their_layers(monkeypatch, tmp_path):
    inner = keras.Sequential([keras.Input((4, 4, 5)), kl.Conv2D(5, 3, activation="relu", name="a")], name="inner")
    model = keras.Sequential([keras.Input((4, 4, 5)), inner, kl.Conv2D(5, 1, name="b"), kl.Softmax()])
    before = as_converted(monkeypatch, tmp_path, model, quantization="int8", data=zoo.inputs_for(model, 64))
    after = names(compacted(before))
    assert sum(map(len, after)) < 0.5 * sum(map(len, names(before)))
    assert {"inner_1/a_1", "b_1"} < set(after)
    assert (after[0], after[-1]) == (names(before)[0], names(before)[-1])  # input and output, as the converter has them


@pytest.mark.parametrize("name", ["residual", "sequence"])
def test_tensors_of_a_float_file_have_names_of_their_own(name, monkeypatch, tmp_path):
    before = as_converted(monkeypatch, tmp_path, zoo.build(name))
    shared = [_layer_path(each.encode()) for each in names(before)]
    assert len(set(shared)) < len(shared)  # they would not
    after = names(compacted(before))
    assert len(set(after)) == len(after)
    assert sum(map(len, after)) < sum(map(len, names(before)))


def test_sparse_files_say_the_same_and_give_the_same(monkeypatch, tmp_path):
    model = tfopt.prune(keras.Sequential([keras.Input((8, 8, 300)), kl.Conv2D(64, 1), kl.Conv2D(64, 1)]), sparsity=0.9)
    before = as_converted(monkeypatch, tmp_path, model, sparse=True)
    after = compacted(before)
    assert everything(after) == everything(before)
    x = zoo.inputs_for(model, 4)
    np.testing.assert_array_equal(tfopt.TFLiteModel(after).predict(x), tfopt.TFLiteModel(before).predict(x))


def test_weights_lie_at_multiples_of_16_and_apart(monkeypatch, tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 5)), kl.Conv2D(5, 1, name="a"), kl.Conv2D(5, 1, name="b")])
    model.get_layer("b").set_weights(model.get_layer("a").get_weights())
    content = compacted(as_converted(monkeypatch, tmp_path, model))
    root = schema.Model.GetRootAs(content, 0)
    tables = [root.Buffers(index)._tab for index in range(root.BuffersLength())]
    places = [table.Vector(table.Offset(4)) for table in tables if table.Offset(4)]  # 4: the first field, the data
    assert len(set(places)) == len(places) > 1
    assert {place % 16 for place in places} == {0}


def test_exported_files_share(monkeypatch, tmp_path):
    model, x = per_channel_model(64)
    tfopt.export_tflite(model, tmp_path / "m.tflite", data=x)
    exported = (tmp_path / "m.tflite").read_bytes()
    assert exported == compacted(as_converted(monkeypatch, tmp_path, model, data=x))
