"""Reports as pages, files and plots: self-contained, without global state."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt.core
import tfopt.deploy
import tfopt.report
from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.deploy.runner import Latency
from tfopt.report.compare import Comparison, Row
from tfopt.report.measure import summary
from tfopt.report.plots import MOST_LAYERS, layer_figure

HOSTILE = "<script>alert(1)<b> & $x_1$ | 'q'"


@pytest.fixture(scope="module")
def layers():
    model = keras.Sequential([keras.Input((6,)), kl.Dense(4, name="dense"), kl.Dense(2, name="head")], name=HOSTILE)
    model.layers[0].kernel.assign(np.zeros((6, 4)))
    return summary(model)


def contender(name, layers, **facts):
    known = {
        "scores": {"accuracy": 0.9731},
        "parameters": 1_234_567,
        "nonzero_parameters": 246_913,
        "sparsity": 0.8,
        "macs": None,
        "float32_bytes": 4_938_268,
        "size_bytes": 123_456,
        "gzip_bytes": 45_678,
        "latency": Latency(0.5, 0.4, 0.75, 100, 1),
        "training_seconds": None,
    }
    return Row(name, layers=layers, **{**known, **facts})


@pytest.fixture(scope="module")
def comparison(layers):
    return Comparison((contender(HOSTILE, layers), contender("plain", layers, size_bytes=None, latency=None)), 1000)


class Tags(HTMLParser):
    """Checks that each tag is closed in its turn."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_comparison_as_text(comparison):
    text = str(comparison)
    for part in ("0.9731", "1,234,567", "80.0 %", "123,456", "0.500 [0.400, 0.750]", "one thread", "1,000 samples"):
        assert part in text
    assert "MACs" not in text  # nothing is known in that column
    assert "training" not in text
    assert text.splitlines()[4].rstrip().endswith("-")


def test_page_is_whole_and_needs_nothing_else(comparison, tmp_path):
    page = comparison.save(tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    assert page.count("<svg") == 2
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert {"table", "svg", "path", "figcaption"} <= tags.seen
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page


def test_saved_formats(comparison, tmp_path):
    for suffix, content in (
        (".md", comparison.to_markdown()),
        (".json", comparison.to_json()),
        (".txt", f"{comparison}\n"),
    ):
        assert comparison.save(tmp_path / f"report{suffix}").read_text() == content
    for bad in ("report.pdf", "report", "none/report.html"):
        with pytest.raises(FileError):
            comparison.save(tmp_path / bad)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".txt"]


def test_jupyter(comparison, layers):
    assert "<table>" in comparison._repr_html_()
    assert comparison._repr_html_().count("<svg") == comparison.to_html().count("<svg") > 0
    assert comparison.plot().axes[0].get_ylabel() == "accuracy"
    (offsets,) = [collection.get_offsets() for collection in comparison.plot().axes[0].collections]
    np.testing.assert_allclose(offsets, [[123.456, 0.9731]])


def test_bars_show_the_numbers(layers):
    parameters, sparsity = layer_figure({"m": layers.layers}).axes
    widths = [bar.get_width() for bar in parameters.patches]
    assert widths == [28, 10, 0, 8]  # all of dense and head, then what is not zero: biases start as zeros
    assert [bar.get_width() for bar in sparsity.patches] == [100.0, 0.0]
    assert [label.get_text() for label in parameters.get_yticklabels()] == ["dense", "head"]


def test_large_models_show_their_largest_layers():
    stack = [kl.Dense(width, name=f"d{width}") for width in range(2, MOST_LAYERS + 12)]
    record = summary(keras.Sequential([keras.Input((2,)), *stack]))
    figure = layer_figure({"m": record.layers})
    assert len(figure.axes[0].get_yticks()) == MOST_LAYERS
    assert f"{MOST_LAYERS} largest of {len(stack)}" in figure.legends[0].get_title().get_text()


def test_without_plots(layers):
    alone = Comparison((contender("file", None, scores={}),), None)
    assert alone.figures() == {}
    assert "<svg" not in alone.to_html()
    with pytest.raises(InvalidArgumentError):
        alone.plot()


def test_plots_leave_pyplot_alone(comparison):
    comparison.to_html()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


@pytest.mark.parametrize("room", [tfopt.report, tfopt.deploy, tfopt.core])
def test_heavy_packages_are_imported_where_used(room):
    files = list(Path(room.__path__[0]).glob("*.py"))
    assert files
    for file in files:
        at_the_top = re.findall(r"^(?:import|from) (\w+)", file.read_text(), re.MULTILINE)
        assert not {"matplotlib", "sklearn", "ai_edge_litert", "rich"} & set(at_the_top), file
