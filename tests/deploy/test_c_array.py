"""A .tflite file as C source: what a compiler makes of it is the file, byte by byte."""

import re
import shutil
import subprocess

import keras
import pytest
from keras import layers as kl

import tfopt

MAIN = """
#include <stdio.h>
#include <stddef.h>
#include "{header}"
int main(void) {{
  if ((size_t){name} % 16 != 0) return 2;
  fwrite({name}, 1, {name}_len, stdout);
  return 0;
}}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    target = tmp_path_factory.mktemp("c") / "small-net.v2.tflite"
    tfopt.export_tflite(keras.Sequential([keras.Input((3,)), kl.Dense(7)]), target)
    return target


def parsed(source):
    """Bytes and length that a source gives."""
    (rows,) = re.findall(r"alignas\(16\).*?\{(.*?)\};", source, re.DOTALL)
    (length,) = re.findall(r"_len = (\d+);", source)
    return bytes(int(value, 16) for value in re.findall(r"0x[0-9a-f]{2}", rows)), int(length)


@pytest.mark.parametrize("suffix", [".h", ".c", ".cc"])
def test_the_array_is_the_file(suffix, path, tmp_path):
    written = tfopt.export_c_array(path, tmp_path / f"model{suffix}")
    assert [file.name for file in written] == (["model.h"] if suffix == ".h" else [f"model{suffix}", "model.h"])
    assert parsed(written[0].read_text()) == (path.read_bytes(), path.stat().st_size)
    assert sorted(tmp_path.iterdir()) == sorted(written)


@pytest.mark.parametrize("word", ["double", "int", "static", "class", "alignas"])
def test_words_of_the_language_are_no_names(word, path, tmp_path):
    first, *_ = tfopt.export_c_array(path, tmp_path / f"{word}.c")
    assert f"const unsigned char {word}_[]" in first.read_text()
    with pytest.raises(tfopt.InvalidArgumentError, match="must be a name in C"):
        tfopt.export_c_array(path, tmp_path / "net.c", name=word)


@pytest.mark.parametrize(
    ("compiler", "suffix", "main"),
    [("gcc", ".h", "main.c"), ("gcc", ".c", "main.c"), ("g++", ".h", "main.cc"), ("g++", ".cc", "main.cc")],
)
def test_compiled(compiler, suffix, main, path, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    first, *_ = tfopt.export_c_array(path, tmp_path / f"net{suffix}", name="my_net")
    (tmp_path / main).write_text(MAIN.format(header="net.h", name="my_net"))
    sources = [main] if suffix == ".h" else [main, first.name]
    standard = "c11" if compiler == "gcc" else "c++11"
    flags = [f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([compiler, *flags, *sources, "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run(["./main"], cwd=tmp_path, check=True, capture_output=True).stdout == path.read_bytes()


def test_names(path, tmp_path):
    def name_of(out, **options):
        return re.search(
            r"unsigned char (\w+)\[", tfopt.export_c_array(path, tmp_path / out, **options)[0].read_text()
        )[1]

    assert name_of("small-net.v2.h") == "small_net_v2"
    assert name_of("8bit.cc") == "_8bit"
    assert name_of("a.cc", name="b") == "b"
    assert tfopt.export_c_array(tfopt.TFLiteModel(path), tmp_path / "opened.h")


def test_faults_leave_nothing(path, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(path.read_bytes()[:300])
    for arguments, options, says in (
        ((path, tmp_path / "m.h"), {"name": "9lives"}, "name in C"),
        ((path, tmp_path / "m.h"), {"name": "größe"}, "name in C"),
        ((path, tmp_path / "m.txt"), {}, "written as"),
        ((path, tmp_path / "none" / "m.h"), {}, "must exist"),
        ((path, tmp_path), {}, "name a file"),
        ((broken, tmp_path / "m.h"), {}, "able to read"),
        ((tmp_path / "none.tflite", tmp_path / "m.h"), {}, "readable"),
    ):
        with pytest.raises(tfopt.TfoptError, match=says):
            tfopt.export_c_array(*arguments, **options)
    assert list(tmp_path.iterdir()) == [broken]
