"""Tests of fastbp.datasets and datasets/fetch.py.

Most of them write small files. Those named ``test_real_...`` read the folder named by FASTBP_DATA and are
skipped where it or the set is missing.
"""

import gzip
import hashlib
import http.server
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import types
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from numpy.testing import assert_array_equal

from fastbp import datasets
from fastbp.datasets import TABULAR_NAMES, fetch_mnist, load_idx, load_mnist, load_tabular

ROOT = Path(__file__).resolve().parent.parent
REAL = os.environ.get("FASTBP_DATA")
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch):
    monkeypatch.delenv("FASTBP_DATA", raising=False)


def real(folder: str) -> Path:
    if not REAL:
        pytest.skip("FASTBP_DATA is unset: no real data to read")
    if not (Path(REAL) / folder).is_dir():
        pytest.skip(f"FASTBP_DATA has no folder {folder}")
    return Path(REAL)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_huge(path: Path, begin: bytes = b"") -> Path:
    """Write a file of 64 GiB, whose end takes no place on the disk."""
    write(path, begin)
    os.truncate(path, 2**36)
    return path


def gzip_bomb(begin: bytes = b"") -> bytes:
    """Compress a gigabyte to one megabyte."""
    return gzip.compress(begin, mtime=0) + 64 * gzip.compress(bytes(2**24), mtime=0)


@contextmanager
def memory_below(n_bytes: int):
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n_bytes


def test_import_needs_only_numpy():
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('d', sys.argv[1]); "
        "spec.loader.exec_module(importlib.util.module_from_spec(spec)); "
        "print('numpy' in sys.modules, {'sklearn', 'scipy', 'pandas', 'numba'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "fastbp" / "datasets.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True set()\n", done.stderr


# ---------------------------------------------------------------------------------------------- IDX

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("code", CODES)
def test_load_idx_reads_every_type(tmp_path, code, pack):
    array = (np.arange(-12, 12).reshape(2, 3, 4) * 5).astype(code)
    # The name says the contrary of the content.
    path = write(tmp_path / ("a.gz" if pack is bytes else "a"), pack(idx(array)))
    read = load_idx(path)
    assert_array_equal(read, array)
    assert read.dtype == np.dtype(code)
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    read[0, 0, 0] = 1  # writeable
    assert load_idx(str(path)).shape == (2, 3, 4)


def test_load_idx_reads_empty_array(tmp_path):
    assert load_idx(write(tmp_path / "a", idx(np.empty((0, 28, 28), "u1")))).shape == (0, 28, 28)


GOOD = idx(np.arange(24, dtype="u1").reshape(4, 6))
PACKED = gzip.compress(GOOD, mtime=0)  # so that the names of the tests do not have the time


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"found the first bytes '', expected IDX"),
        (b"\0\0", r"found the first bytes '00 00', expected IDX"),
        (b"PK\3\4" + GOOD, r"found the first bytes '50 4b 03 04', expected IDX"),
        (b"\0\1" + GOOD[2:], r"found the first bytes '00 01 08 02', expected IDX"),
        (b"\0\0\x0a\2" + GOOD[4:], r"found the first bytes '00 00 0a 02', expected IDX"),
        (b"\0\0\x08\0\1", r"found the first bytes '00 00 08 00', expected IDX"),
        (GOOD[:11], r"found the first bytes '00 00 08 02', expected IDX"),
        (GOOD[:-1], r"found a truncated file: 35 bytes, expected 36 for uint8 of shape \(4, 6\)"),
        (GOOD + b"\0", r"found trailing bytes: 37 bytes, expected 36 for uint8 of shape \(4, 6\)"),
        (gzip.compress(GOOD[:-1], mtime=0), r"found a truncated file: 35 bytes"),
        (PACKED[:-9], r"found a broken gzip stream"),
        (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], r"found a broken gzip stream \(CRC"),
        (PACKED[:12] + b"\xff" + PACKED[13:], r"found a broken gzip stream"),
        (PACKED + b"junk", r"found a broken gzip stream"),
    ],
)
def test_load_idx_refuses(tmp_path, content, message):
    path = write(tmp_path / "broken-file", content)
    with pytest.raises(ValueError, match=message) as caught:
        load_idx(path)
    assert str(caught.value).startswith(str(path))
    assert "datasets/README.md" in str(caught.value)


def idx_head(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()


TERABYTES = idx_head(*[2**32 - 1] * 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TERABYTES, r"a truncated file: 20 bytes, expected \d{39} for uint8 of shape"),
        (gzip.compress(TERABYTES, mtime=0), r"a compressed file that declares \d{39} for uint8"),
        (
            gzip.compress(idx_head(2**26), mtime=0),
            r"declares 67108872 .* at most 67108864 bytes, or a larger max_bytes",
        ),
        (gzip_bomb(idx_head(2**30)), r"declares 1073741832 .* at most 67108864 bytes, or a larger max_bytes"),
        (gzip_bomb(GOOD), r"found trailing bytes: 37 bytes, expected 36"),
        (idx_head(0, *[2**32 - 1] * 3), r"found the shape \(0, 4294967295, .*, expected one that NumPy can hold \("),
        (idx_head(0, *[1] * 254), r"found the shape \(0, 1, 1, .*, expected one that NumPy can hold \("),
    ],
    ids=["terabytes", "packed terabytes", "one too many", "bomb", "long bomb", "no memory", "dimensions"],
)
def test_load_idx_trusts_no_header(tmp_path, content, message):
    path = write(tmp_path / "liar", content)
    with memory_below(2**22), pytest.raises(ValueError, match=message) as caught:
        load_idx(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 1500


def test_load_idx_reads_no_more_than_declared(tmp_path):
    path = write_huge(tmp_path / "huge", GOOD)
    with memory_below(2**20), pytest.raises(ValueError, match="found trailing bytes: 37 bytes, expected 36"):
        load_idx(path)


def test_load_idx_max_bytes(tmp_path):
    packed, plain = write(tmp_path / "packed", PACKED), write(tmp_path / "plain", GOOD)
    assert load_idx(packed, max_bytes=36).shape == load_idx(plain, max_bytes=1).shape == (4, 6)
    with pytest.raises(ValueError, match=r"declares 36 for uint8 .* at most 35 bytes"):
        load_idx(packed, max_bytes=35)


def test_load_idx_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_idx(tmp_path / "none")


# -------------------------------------------------------------------------------------------- MNIST


def write_mnist(folder: Path, shift: int = 0, dot: bool = False, packed: bool = False) -> None:
    """Write a set of 7 training and 3 test images; `shift` makes the sets differ."""
    for name, n in (("train", 7), ("t10k", 3)):
        images = (np.arange(n * 784).reshape(n, 28, 28) + shift) % 251
        labels = (np.arange(n) + shift) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            file = f"{name}-{kind}-ubyte".replace("-idx", ".idx" if dot else "-idx")
            content = idx(array.astype("u1"))
            write(folder / (file + ".gz" * packed), gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("variant", ["mnist", "fashion_mnist"])
def test_load_mnist(tmp_path, variant, dot, packed):
    write_mnist(tmp_path / variant, 5, dot, packed)
    for home in (tmp_path, str(tmp_path / variant)):
        X_train, y_train, X_test, y_test = load_mnist(home, variant=variant)
        assert X_train.dtype == X_test.dtype == np.uint8
        assert y_train.dtype == y_test.dtype == np.int64
        assert_array_equal(X_train, ((np.arange(7 * 784) + 5) % 251).reshape(7, 784))
        assert_array_equal(X_test, ((np.arange(3 * 784) + 5) % 251).reshape(3, 784))
        assert_array_equal(y_train, [5, 6, 7, 8, 9, 0, 1])
        assert_array_equal(y_test, [5, 6, 7])


def test_load_mnist_takes_files_of_one_folder(tmp_path):
    write_mnist(tmp_path, 1)
    write_mnist(tmp_path / "mnist", 2)
    assert load_mnist(tmp_path)[1][0] == 2
    (tmp_path / "mnist" / MNIST_FILES[0]).unlink()
    assert load_mnist(tmp_path)[1][0] == 1  # not three files from here and one from there


def test_load_mnist_never_takes_the_other_set(tmp_path):
    write_mnist(tmp_path / "mnist")
    with pytest.raises(FileNotFoundError, match="fashion_mnist"):
        load_mnist(tmp_path, variant="fashion_mnist")
    with pytest.raises(FileNotFoundError, match="fashion_mnist"):
        load_mnist(tmp_path / "mnist", variant="fashion_mnist")


def test_load_mnist_unknown_variant(tmp_path):
    with pytest.raises(ValueError, match=r"variant must be one of .*got 'kmnist'"):
        load_mnist(tmp_path, variant="kmnist")


def test_load_mnist_says_what_is_missing(tmp_path):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / MNIST_FILES[3]).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / 'mnist'} lacks {MNIST_FILES[3]};" in message
    assert f"{tmp_path} lacks {', '.join(MNIST_FILES)} (" in message
    for way_out in ("data_home", "FASTBP_DATA", "`python datasets/fetch.py mnist`", "fetch_mnist()"):
        assert way_out in message


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (MNIST_FILES[0], np.zeros((7, 28, 27), "u1"), r"uint8 of shape \(7, 28, 27\), expected uint8 images"),
        (MNIST_FILES[0], np.zeros((7, 784), "u1"), r"uint8 of shape \(7, 784\), expected uint8 images"),
        (MNIST_FILES[0], np.zeros((7, 28, 28), "i2"), r"int16 of shape \(7, 28, 28\), expected uint8 images"),
        (MNIST_FILES[1], np.zeros(6, "u1"), r"uint8 \(6,\) up to 0, expected 7 labels 0 to 9"),
        (MNIST_FILES[1], np.zeros((7, 1), "u1"), r"uint8 \(7, 1\) up to 0, expected 7 labels"),
        (MNIST_FILES[1], np.zeros(7, "i1"), r"int8 \(7,\) up to 0, expected 7 labels"),
        (MNIST_FILES[3], np.array([0, 10, 9], "u1"), r"uint8 \(3,\) up to 10, expected 3 labels 0 to 9"),
    ],
)
def test_load_mnist_refuses(tmp_path, name, array, message):
    write_mnist(tmp_path / "mnist")
    path = write(tmp_path / "mnist" / name, idx(array))
    with pytest.raises(ValueError, match=message) as caught:
        load_mnist(tmp_path)
    assert str(caught.value).startswith(str(path))


def test_data_folder_precedence(tmp_path, monkeypatch):
    for shift, folder in enumerate(("argument", "variable")):
        write_mnist(tmp_path / folder, shift)
    monkeypatch.setenv("FASTBP_DATA", str(tmp_path / "variable"))
    assert load_mnist()[1][0] == 1
    assert load_mnist(tmp_path / "argument")[1][0] == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FASTBP_DATA", "~/argument")
    assert load_mnist()[1][0] == 0


@pytest.mark.parametrize("value", [None, ""])
def test_data_folder_default_is_the_checkout(tmp_path, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("FASTBP_DATA", value)
    module = write(tmp_path / "checkout" / "fastbp" / "datasets.py", "")
    write(tmp_path / "checkout" / "pyproject.toml", "")
    monkeypatch.setattr(datasets, "__file__", str(module))
    write_mnist(tmp_path / "checkout" / "datasets" / "mnist", 4)
    assert load_mnist()[1][0] == 4


def test_data_folder_of_an_installed_package(tmp_path, monkeypatch):
    module = write(tmp_path / "site-packages" / "fastbp" / "datasets.py", "")
    monkeypatch.setattr(datasets, "__file__", str(module))
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "datasets" / "mnist", 5)
    assert load_mnist()[1][0] == 5


@pytest.mark.parametrize(("has_pandas", "parser"), [(True, "pandas"), (False, "liac-arff")])
def test_fetch_mnist(monkeypatch, has_pandas, parser):
    asked: dict[str, object] = {}

    def fetch_openml(name, **options):
        asked.update(options, name=name)
        data = np.repeat(np.arange(70000)[:, None] % 256, 784, axis=1)
        target = np.array([str(i % 10) for i in range(70000)], dtype=object)
        return types.SimpleNamespace(data=data.astype(np.float64), target=target)

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch_openml)
    monkeypatch.setattr(datasets, "find_spec", lambda name: object() if has_pandas else None)
    X_train, y_train, X_test, y_test = fetch_mnist("cache")
    assert asked == {
        "name": "mnist_784",
        "version": 1,
        "data_home": "cache",
        "as_frame": False,
        "parser": parser,
    }
    assert X_train.dtype == X_test.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    assert X_train.shape == (60000, 784)
    assert_array_equal(X_train[:, 0], np.arange(60000) % 256)
    assert_array_equal(X_test[:, 783], np.arange(60000, 70000) % 256)
    assert_array_equal(y_train, np.arange(60000) % 10)
    assert_array_equal(y_test, np.arange(10000) % 10)


# ------------------------------------------------------------------------------------------- tables


def small(monkeypatch, name: str, rows: tuple[int, ...]) -> None:
    """Let the set `name` have parts of so many rows."""
    files, _, *reader = datasets._SOURCES[name]
    monkeypatch.setitem(datasets._SOURCES, name, (files, rows, *reader))


def numbers(n: int, n_features: int) -> np.ndarray:
    return np.arange(n * n_features).reshape(n, n_features) / 8 - 3


def table(X, labels, separator=",", header="", end="\n") -> str:
    rows = [separator.join([*(f"{x:g}" for x in row), str(label)]) for row, label in zip(X, labels, strict=True)]
    return "".join(line + end for line in ([header] if header else []) + rows)


TURNS = ["Move-Forward", "Slight-Left-Turn", "Sharp-Right-Turn", "Slight-Right-Turn"]
WINE_HEADER = '"fixed acidity";"citric acid";"quality"'
TABLES = [  # name, file, features, labels in the file, labels read, separator, header, end of line
    ("banknote", "banknote_authentication.csv", 4, "011", [0, 1, 1], ",", "", "\r\n"),
    ("phoneme", "phoneme.csv", 5, "100", [1, 0, 0], ",", "", "\n"),
    ("pima", "pima-indians-diabetes.csv", 8, "010", [0, 1, 0], ",", "", "\n"),
    ("sonar", "sonar.csv", 60, "RMR", ["R", "M", "R"], ",", "", "\n"),
    ("robot_wall", "sensor_readings_24.data", 24, TURNS[:3], TURNS[:3], ",", "S1,S2,S3,OUTPUT", "\n"),
    ("robot_wall", "sensor_readings_24.data", 24, TURNS[1:], TURNS[1:], ",", "", "\r\n"),
    ("wine_quality", "winequality-white.csv", 11, [6, 10, 0], [6, 10, 0], ",", "", "\n"),
    ("wine_quality", "winequality-white.csv", 11, [3, 4, 9], [3, 4, 9], ";", WINE_HEADER, "\n"),
    ("wine_quality_red", "winequality-red.csv", 11, [5, 5, 8], [5, 5, 8], ";", WINE_HEADER, "\n"),
]


@pytest.mark.parametrize("case", TABLES, ids=lambda case: f"{case[0]}-{'header' if case[6] else 'plain'}")
def test_load_tabular_tables(tmp_path, monkeypatch, case):
    name, file, n_features, labels, read, separator, header, end = case
    X = numbers(3, n_features)
    content = table(X, labels, separator, header, end).removesuffix(end)
    write(tmp_path / name.removesuffix("_red") / file, content)
    small(monkeypatch, name, (3,))
    data = load_tabular(name, tmp_path)
    assert (data.name, data.task) == (name, "classification")
    assert_array_equal(data.X, X)
    assert data.X.dtype == np.float64
    assert data.X.flags.c_contiguous
    assert_array_equal(data.y, read)
    assert data.y.dtype.kind == ("U" if isinstance(read[0], str) else "i")
    assert not any(part in data for part in ("X_train", "y_train", "X_val", "y_val", "X_test", "y_test"))


PEN_ROW = ",".join(f"{x:3d}" for x in range(84, 100))
SPLIT_TABLES = [  # name, features, training file, test file
    ("optdigits", 64, table(numbers(2, 64), [9, 0], header="Block 1,Block 2"), table(numbers(1, 64), [4])),
    (
        "pendigits",
        16,
        table(numbers(2, 16), ["0000000001", "1000000000"]),
        table(numbers(1, 16), ["0000100000"]),
    ),
    (
        "satimage",
        36,
        table(numbers(2, 36), [7, 1], "\t", "1\t2\t3\t4", "\r\n"),
        table(numbers(1, 36), [3], "\t", "1\t2\t3\t4", "\r\n"),
    ),
    ("satimage", 36, table(numbers(2, 36), [7, 1], " "), table(numbers(1, 36), [3], " ")),
]


@pytest.mark.parametrize(("name", "n_features", "train", "test"), SPLIT_TABLES)
def test_load_tabular_split_tables(tmp_path, monkeypatch, name, n_features, train, test):
    labels = {"optdigits": [9, 0, 4], "pendigits": [9, 0, 4], "satimage": [7, 1, 3]}[name]
    files = {"satimage": ("sat.trn", "sat.tst")}.get(name, (f"{name}.tra", f"{name}.tes"))
    for file, content in zip(files, (train, test), strict=True):
        write(tmp_path / name / file, content)
    small(monkeypatch, name, (2, 1))
    data = load_tabular(name, tmp_path)
    assert_array_equal(data.X_train, numbers(2, n_features))
    assert_array_equal(data.X_test, numbers(1, n_features))
    assert_array_equal(data.y_train, labels[:2])
    assert_array_equal(data.y_test, labels[2:])
    assert_array_equal(data.X, np.concatenate([data.X_train, data.X_test]))
    assert_array_equal(data.y, labels)
    assert data.y.dtype == np.int64
    assert np.shares_memory(data.X, data.X_test)
    assert "X_val" not in data


def test_load_tabular_pendigits_as_at_uci(tmp_path, monkeypatch):
    for part in ("tra", "tes"):
        write(tmp_path / f"pendigits/pendigits.{part}", f" {PEN_ROW}, 8\n")
    small(monkeypatch, "pendigits", (1, 1))
    data = load_tabular("pendigits", tmp_path)
    assert_array_equal(data.X, [range(84, 100)] * 2)
    assert_array_equal(data.y, [8, 8])


def sonar_block(name: str, values: np.ndarray) -> str:
    rows = "\n ".join(" ".join(f"{x:.4f}" for x in row) for row in values.reshape(10, 6))
    return f"{name}:\n{{{rows}}}\n \n"


def write_sonar_angle(home: Path) -> np.ndarray:
    X = np.arange(5 * 60).reshape(5, 60) / 1000
    head = 'Sonar benchmark, contributed by Terry Sejnowski.\n\nThose marked with a "*" are for training.\n\n'
    mines = zip(("*CM078", "CM080", "*CM081"), X[:3], strict=True)
    rocks = zip(("CR036", "*CR120"), X[3:], strict=True)
    write(home / "sonar/sonar.mines", head + "".join(sonar_block(*block) for block in mines))
    write(home / "sonar/sonar.rocks", head + "".join(sonar_block(*block) for block in rocks))
    return X


def test_load_tabular_sonar_angle(tmp_path, monkeypatch):
    X = write_sonar_angle(tmp_path)
    small(monkeypatch, "sonar_angle", (3, 2))
    data = load_tabular("sonar_angle", tmp_path)
    assert_array_equal(data.X_train, X[[0, 2, 4]])
    assert_array_equal(data.y_train, ["M", "M", "R"])
    assert_array_equal(data.X_test, X[[1, 3]])
    assert_array_equal(data.y_test, ["M", "R"])


def test_load_tabular_two_spirals(tmp_path, monkeypatch):
    write(tmp_path / "two_spirals/two-spiral.train", "3 2 1\n0.5 0.25 \n1 \n-1 2 \n0 \n3 4\n1\n")
    write(tmp_path / "two_spirals/two-spiral.test", "1 2 1\n7 8\n0\n")
    small(monkeypatch, "two_spirals", (3, 1))
    data = load_tabular("two_spirals", tmp_path)
    assert_array_equal(data.X_train, [[0.5, 0.25], [-1, 2], [3, 4]])
    assert_array_equal(data.y_train, [1, 0, 1])
    assert_array_equal(data.X_test, [[7, 8]])
    assert_array_equal(data.y_test, [0])
    assert data.y.dtype == np.int64


def proben1(bool_in, real_in, bool_out, real_out, counts, rows) -> str:
    train, validation, test = counts
    return (
        f"bool_in={bool_in}\nreal_in={real_in}\nbool_out={bool_out}\nreal_out={real_out}\n"
        f"training_examples={train}\nvalidation_examples={validation}\ntest_examples={test}\n"
    ) + "".join(" ".join(map(str, row)) + "\n" for row in rows)


def test_load_tabular_proben1_classes(tmp_path):
    rows = [[0.5, 1, 0, 1, 0], [2, 3, 0, 0, 1], [4, 5, 1, 0, 0], [6, 7, 0, 0, 1], [8, 9, 0, 1, 0]]
    for k in (1, 2, 3):
        order = rows[k - 1 :] + rows[: k - 1]
        write(tmp_path / f"proben1/thyroid/thyroid{k}.dt", proben1(1, 1, 3, 0, (2, 1, 2), order))
    data = load_tabular("thyroid1", tmp_path)
    assert data.task == "classification"
    assert_array_equal(data.X_train, [[0.5, 1], [2, 3]])
    assert_array_equal(data.X_val, [[4, 5]])
    assert_array_equal(data.X_test, [[6, 7], [8, 9]])
    assert_array_equal(data.y_train, [1, 2])
    assert_array_equal(data.y_val, [0])
    assert_array_equal(data.y_test, [2, 1])
    assert data.y.dtype == np.int64
    assert_array_equal(load_tabular("thyroid3", tmp_path).X_train, [[4, 5], [6, 7]])


@pytest.mark.parametrize(("name", "n_outputs"), [("building2", 3), ("hearta2", 1), ("heartac2", 1)])
def test_load_tabular_proben1_regression(tmp_path, name, n_outputs):
    rows = numbers(4, 2 + n_outputs)
    folder = "building" if name == "building2" else "heart"
    # hearta declares its one real output as boolean.
    bool_out, real_out = (1, 0) if n_outputs == 1 else (0, n_outputs)
    write(tmp_path / f"proben1/{folder}/{name}.dt", proben1(0, 2, bool_out, real_out, (2, 1, 1), rows))
    data = load_tabular(name, tmp_path)
    assert data.task == "regression"
    assert data.X.flags.c_contiguous
    assert_array_equal(data.X, rows[:, :2])
    targets = rows[:, 2] if n_outputs == 1 else rows[:, 2:]
    assert_array_equal(data.y, targets)
    assert data.y.dtype == np.float64
    assert_array_equal(data.y_val, targets[2:3])


def write_isolet(home: Path, **arrays) -> Path:
    path = home / "isolet/isolet.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def test_load_tabular_isolet(tmp_path, monkeypatch):
    X = np.arange(2 * 617, dtype=np.float32).reshape(2, 617)
    write_isolet(tmp_path, X=np.asfortranarray(X), y=np.array([26, 1], np.uint8))
    small(monkeypatch, "isolet", (2,))
    data = load_tabular("isolet", tmp_path)
    assert data.task == "classification"
    assert_array_equal(data.X, X)
    assert data.X.dtype == np.float64
    assert data.X.flags.c_contiguous
    assert_array_equal(data.y, [26, 1])
    assert data.y.dtype == np.int64


def test_load_tabular_steering(tmp_path, monkeypatch):
    path = tmp_path / "steering_rc/steering_30x32.npz"
    path.parent.mkdir()
    X = np.arange(3 * 960).reshape(3, 30, 32).astype(np.uint8)
    np.savez(path, X=X, angle=np.array([0.5, -1, 0.25], np.float32), tub=np.array([0, 1, 0], np.int8))
    small(monkeypatch, "steering_rc", (2, 1))
    data = load_tabular("steering_rc", tmp_path)
    assert data.task == "regression"
    assert data.X.dtype == data.y.dtype == np.float64
    assert_array_equal(data.X_train, X[[0, 2]].reshape(2, 960))
    assert_array_equal(data.y_train, [0.5, 0.25])
    assert_array_equal(data.X_test, X[[1]].reshape(1, 960))
    assert_array_equal(data.y_test, [-1])


def test_load_tabular_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of .*sonar_angle.*cancer3.*; got 'cancer4'"):
        load_tabular("cancer4", tmp_path)


def test_tabular_names():
    assert len(TABULAR_NAMES) == len(set(TABULAR_NAMES)) == 14 + 27


@pytest.mark.parametrize("name", TABULAR_NAMES)
def test_load_tabular_missing(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        load_tabular(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name}: there is no {tmp_path}")
    assert "FASTBP_DATA" in message
    # Each is either downloaded by the command in the message, or the message says where to get it.
    (folder,) = {Path(path).relative_to(tmp_path).parts[0] for path in re.findall(r"there is no (\S+?)[ .]", message)}
    command = f"`python datasets/fetch.py {folder}` downloads it"
    assert (command in message) != ("cannot download it, but datasets/README.md" in message)
    assert (command in message) == (name in datasets._FETCHED)


def test_load_tabular_missing_half(tmp_path):
    write(tmp_path / "satimage/sat.trn", "")
    with pytest.raises(FileNotFoundError) as caught:
        load_tabular("satimage", tmp_path)
    assert str(tmp_path / "satimage/sat.tst") in str(caught.value)
    assert "sat.trn" not in str(caught.value)


PROBEN1_ROWS = [[1, 2, 0, 1], [3, 4, 1, 0], [5, 6, 0, 1]]
PROBEN1 = proben1(0, 2, 2, 0, (1, 1, 1), PROBEN1_ROWS)
SPOILT = {  # the file that is malformed
    "pima": "pima/pima-indians-diabetes.csv",
    "sonar": "sonar/sonar.csv",
    "robot_wall": "robot_wall/sensor_readings_24.data",
    "sonar_angle": "sonar/sonar.rocks",
    "two_spirals": "two_spirals/two-spiral.train",
    "cancer1": "proben1/cancer/cancer1.dt",
    "hearta1": "proben1/heart/hearta1.dt",
}
MALFORMED = [  # name, content, line, message
    ("pima", "1,2,3,4,5,6,7,8,1\n1,2,3,4,5,6,7,8\n", 2, "8 fields, expected 9"),
    ("pima", "\n1,2,3,4,5,6,7,8,1,\n", 2, "10 fields, expected 9"),
    ("pima", "1,2,,4,5,6,7,8,1\n", 1, "could not convert string to float: ''"),
    ("pima", "1,2,x,4,5,6,7,8,1\n", 1, "could not convert .*'x', expected a num"),
    ("pima", "1,2,nan,4,5,6,7,8,1\n", 1, "nan or infinity"),
    ("pima", "1,2,1e999,4,5,6,7,8,1\n", 1, "nan or infinity"),
    ("pima", "1,2,3,4,5,6,7,8,2\n", 1, "the label '2', expected one of 0, 1"),
    ("pima", "1,2,3,4,5,6,7,8,1\n" * 767, None, r"parts of \(767,\) rows"),
    ("pima", "", None, r"parts of \(0,\) rows, expected \(768,\)"),
    ("pima", b"\x89PNG\r\n\x1a\n\0\0\0\0", 1, "1 fields"),
    ("sonar", "a," * 60 + "M\n", 1, "could not convert"),
    ("robot_wall", "S1,S2\nS1,S2\n", 2, "2 fields"),
    ("sonar_angle", sonar_block("CR001", numbers(60, 1)).replace("6", "6 6"), 1, "fields"),
    ("sonar_angle", "\n\n*CR001:\n{0.1 0.2\n0.3}\n", 3, "4 fields, expected 61"),
    ("sonar_angle", "sonar\n", None, r"sonar.mines, sonar.rocks: found parts of \(2, 1\) rows"),
    ("two_spirals", "", 1, "'' and 0 lines"),
    ("two_spirals", "2 2 1\n1 2\n0\n", 1, "'2 2 1' and 2 lines"),
    ("two_spirals", "1 2 1\n1 2\n0\n3 4\n", 1, "'1 2 1' and 3 lines"),
    ("two_spirals", "1 2 2\n1 2\n0\n", 1, "'1 2 2' and 2 lines"),
    ("two_spirals", "1 2 1\n\n1 2\n0.5\n", 3, "the label '0.5', expected one of 0, 1"),
    ("two_spirals", "1 2 1\n1\n0\n", 2, "2 fields, expected 3"),
    ("cancer1", "", None, r"the keys '' and -7 rows, expected seven lines"),
    ("cancer1", PROBEN1.replace("real_in=2", "real_in=two"), None, "the keys 'bool_in b"),
    ("cancer1", PROBEN1.replace("bool_in=0", "in=0"), None, "the keys 'in real_in"),
    ("cancer1", PROBEN1.replace("5 6 0 1\n", ""), None, "test_examples' and 2 rows"),
    ("cancer1", PROBEN1 + "7 8 0 1\n", None, "test_examples' and 4 rows"),
    ("cancer1", PROBEN1.replace("3 4 1 0", "3 4 1"), 9, "3 fields, expected 4"),
    ("cancer1", PROBEN1.replace("3 4 1 0", "3 4 1 1"), 9, "the label '11', expected"),
    ("cancer1", PROBEN1.replace("5 6 0 1", "5 6 0 0"), 10, "the label '00', expected"),
    ("cancer1", PROBEN1.replace("5 6 0 1", "5 ? 0 1"), 10, "could not convert"),
    ("hearta1", proben1(0, 2, 1, 0, (1, 1, 1), numbers(3, 2)), 8, "2 fields, expected 3"),
]


@pytest.mark.parametrize(("name", "content", "line", "message"), MALFORMED)
def test_load_tabular_refuses(tmp_path, name, content, line, message):
    write_sonar_angle(tmp_path)
    write(tmp_path / "two_spirals/two-spiral.test", "1 2 1\n7 8\n0\n")
    path = write(tmp_path / SPOILT[name], content)
    with pytest.raises(ValueError, match=message) as caught:
        load_tabular(name, tmp_path)
    text = str(caught.value)
    if name == "sonar_angle" and line is None:
        assert text.startswith(f"{tmp_path / 'sonar'}")
    else:
        assert text.startswith(f"{path}, line {line}: found" if line else f"{path}: found")
    assert "datasets/README.md" in text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((2, 617))}, "no item named 'y.npy'"),
        ({"X": np.zeros((2, 616)), "y": np.ones(2)}, r"X of shape \(2, 616\) and y of shape \(2,\)"),
        ({"X": np.zeros((3, 617)), "y": np.ones(2)}, r"X of shape \(3, 617\) and y of shape \(2,\)"),
        ({"X": np.zeros((2, 617)), "y": np.ones((2, 1))}, r"y of shape \(2, 1\)"),
        ({"X": np.full((2, 617), np.nan), "y": np.ones(2)}, "expected npz with finite X"),
        ({"X": np.full((2, 617), "a"), "y": np.ones(2)}, "expected npz"),
        ({"X": np.full((2, 617), None), "y": np.ones(2)}, "allow_pickle=False"),
        ({"X": np.full((2, 617), 1j), "y": np.ones(2)}, "X of complex128 and y of float64"),
        ({"X": np.ones((2, 617)), "y": np.array(["a", "b"])}, "X of float64 and y of <U1"),
        ({"X": np.ones((2, 617)), "y": np.array([1, np.inf])}, "numbers that are not finite"),
    ],
)
def test_load_tabular_refuses_arrays(tmp_path, arrays, message):
    path = write_isolet(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_tabular("isolet", tmp_path)
    assert str(caught.value).startswith(f"{path}: found")


def npy_head(shape: tuple[int, ...], descr: str) -> bytes:
    """Return the header of an array, without its numbers."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (npy_head((2**28, 617), "<f8"), "expected npz with finite X"),
        (npy_head((2**50, 617), "<f8"), "expected npz with finite X"),
        (npy_head((1,), "<U400000000"), "expected npz with finite X"),
        (npy_head((2, 617), "|O"), "allow_pickle=False"),
        (npy_head((2, 617), "<f8") + bytes(2**26), r"67\d{6} bytes after decompression, more than 67108864"),
    ],
    ids=["terabyte", "exabyte", "string", "pickle", "bomb"],
)
def test_load_tabular_trusts_no_archive(tmp_path, X, message):
    path = tmp_path / "isolet/isolet.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", X)
        archive.writestr("y.npy", npy_head((2,), "<i8") + bytes(16))
    with pytest.raises(ValueError, match=message) as caught:
        load_tabular("isolet", tmp_path)
    assert str(caught.value).startswith(f"{path}: found")


def test_load_tabular_extracts_nothing(tmp_path):
    path = write_isolet(tmp_path, X=np.ones((2, 617)), y=np.array([1, 2]))
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../../outside", f"{tmp_path}/absolute", "inside"):
            archive.writestr(name, "evil")
    with pytest.raises(ValueError, match=r"parts of \(2,\) rows, expected \(1560,\)"):
        load_tabular("isolet", tmp_path)
    assert files_in(tmp_path) == ["isolet/isolet.npz"]


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_load_tabular_refuses_unusual_archive(tmp_path, place, value):
    path = write_isolet(tmp_path, X=np.ones((2, 617)), y=np.array([1, 2]))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + place] = value  # of the first member, in the archive's directory
    write(path, bytes(content))
    with pytest.raises(ValueError, match="expected npz with finite X") as caught:
        load_tabular("isolet", tmp_path)
    assert str(caught.value).startswith(f"{path}: found")


@pytest.mark.parametrize("name", SPOILT)
def test_load_tabular_refuses_huge_tables(tmp_path, name):
    write_sonar_angle(tmp_path)
    write(tmp_path / "two_spirals/two-spiral.test", "1 2 1\n7 8\n0\n")
    path = write_huge(tmp_path / SPOILT[name])
    with memory_below(2**26), pytest.raises(ValueError, match="more than 4194304 bytes") as caught:
        load_tabular(name, tmp_path)
    assert str(caught.value).startswith(f"{path}: found")


def long_line(n: int) -> list[str]:
    row = [str(x) for x in range(9)]
    return ["x" * n, "1," * n, "1" * n + "=1", ",".join([*row[:8], "9" * n]), ",".join([*row[:2], "x" * n, *row[3:]])]


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("line", long_line(10**5), ids=["word", "fields", "key", "label", "number"])
def test_load_tabular_refuses_long_lines(tmp_path, name, line):
    write_sonar_angle(tmp_path)
    write(tmp_path / "two_spirals/two-spiral.test", "1 2 1\n7 8\n0\n")
    write(tmp_path / SPOILT[name], line)
    with pytest.raises(ValueError, match=r"datasets/README\.md") as caught:
        load_tabular(name, tmp_path)
    assert len(str(caught.value)) < len(str(tmp_path)) + 1500


@pytest.mark.timeout(60)  # were the lines of each block counted from the first one, minutes would pass
def test_load_tabular_counts_lines_once(tmp_path):
    write_sonar_angle(tmp_path)
    write(tmp_path / SPOILT["sonar_angle"], "CM1:\n" * 4 * 10**5)
    with pytest.raises(ValueError, match="line 1: found 2 fields"):
        load_tabular("sonar_angle", tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bool_out", "100000", "2 inputs and 100000 outputs, expected 1 to 100 of each"),
        ("real_in", "100000", "100000 inputs and 2 outputs, expected 1 to 100 of each"),
        ("real_in", "0", "0 inputs and 2 outputs, expected 1 to 100 of each"),
        ("bool_out", "0", "2 inputs and 0 outputs, expected 1 to 100 of each"),
        ("bool_out", "9" * 5000, "found the keys 'bool_in real_in real_out"),
        ("test_examples", "9" * 19, "found the keys 'bool_in real_in bool_out real_out training_examples valid"),
    ],
)
def test_load_tabular_trusts_no_counts(tmp_path, key, value, message):
    path = write(tmp_path / SPOILT["cancer1"], re.sub(rf"{key}=\d+", f"{key}={value}", PROBEN1))
    with pytest.raises(ValueError, match=message) as caught:
        load_tabular("cancer1", tmp_path)
    assert str(caught.value).startswith(f"{path}: found")


@pytest.mark.parametrize("damage", ["empty", "text", "short", "npy", "bits"])
def test_load_tabular_refuses_archive(tmp_path, damage):
    path = write_isolet(tmp_path, X=np.ones((2, 617)), y=np.array([1, 2]))
    content = path.read_bytes()
    if damage == "npy":
        np.save(path.with_suffix(".npy"), np.ones(3))
        content = path.with_suffix(".npy").read_bytes()
    spoilt = {
        "empty": b"",
        "text": b"1,2,3\n",
        "short": content[:-100],
        "npy": content,
        "bits": content[:400] + b"\xff" + content[401:],
    }
    write(path, spoilt[damage])
    with pytest.raises(ValueError, match="expected npz with finite X") as caught:
        load_tabular("isolet", tmp_path)
    assert str(caught.value).startswith(f"{path}: found")


# ----------------------------------------------------------------------------------------- fetch.py


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Give the script as a module, with two small sets and their sums in place of the real ones."""
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "datasets" / "fetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "SHA256SUMS").write_text(
        "# a comment\n"
        f"{hashlib.sha256(GOOD).hexdigest()}  mnist/a-idx3-ubyte\n"
        f"{hashlib.sha256(b'1,2').hexdigest()}  sonar/sonar.csv\n"
        f"{hashlib.sha256(b'1;2').hexdigest()}  sonar/sonar.csv\n",
    )
    monkeypatch.setattr(module, "SUMS", tmp_path / "SHA256SUMS")
    sets: dict[str, dict[str, list[str]]] = {
        "mnist": {"mnist/a-idx3-ubyte.gz": []},
        "sonar": {"sonar/sonar.csv": []},
    }
    monkeypatch.setattr(module, "SETS", sets)
    return module


@pytest.fixture
def server(tmp_path):
    """Serve the folder tmp_path/web on 127.0.0.1; `asked` collects the paths."""
    asked: list[str] = []
    stop = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "web"))

        def do_GET(self):
            asked.append(self.path)
            kind = self.path.split("/")[1]
            if kind in ("short", "long", "endless", "stalled"):
                self.send_response(200)
                if kind != "endless":
                    self.send_header("Content-Length", "1000" if kind != "long" else str(2**40))
                self.end_headers()
                self.close_connection = True
                with suppress(OSError):  # of the connection that the client has closed
                    self.wfile.write(b"1,2")
                    while kind == "endless":
                        self.wfile.write(bytes(2**20))
                if kind == "stalled":
                    stop.wait(60)
            else:
                super().do_GET()

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield types.SimpleNamespace(url=f"http://127.0.0.1:{httpd.server_port}", asked=asked)
        stop.set()
        httpd.shutdown()
        thread.join()


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def run(fetch, tmp_path: Path, *names: str) -> int:
    """Fetch from tmp_path/web to tmp_path/dest."""
    return fetch.main([*names, "--dest", str(tmp_path / "dest"), "--mirror", (tmp_path / "web").as_uri()])


def test_fetch_over_http(tmp_path, fetch, server, capsys):
    packed = gzip.compress(GOOD, compresslevel=1)
    write(tmp_path / "web/mnist/a-idx3-ubyte.gz", packed)
    write(tmp_path / "web/sonar/sonar.csv", "1;2")
    dest = tmp_path / "dest"
    assert fetch.main(["--dest", str(dest), "--mirror", server.url + "/"]) == 0
    assert files_in(dest) == ["mnist/a-idx3-ubyte.gz", "sonar/sonar.csv"]
    assert (dest / "mnist/a-idx3-ubyte.gz").read_bytes() == packed
    assert (dest / "sonar/sonar.csv").read_bytes() == b"1;2"
    assert "sonar/sonar.csv" in capsys.readouterr().out
    # A second run finds everything and downloads nothing.
    assert server.asked == ["/mnist/a-idx3-ubyte.gz", "/sonar/sonar.csv"]
    assert fetch.main(["--dest", str(dest), "--mirror", server.url]) == 0
    assert len(server.asked) == 2


def test_fetch_only_what_is_named(tmp_path, fetch, server):
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    assert fetch.main(["sonar", "--dest", str(tmp_path / "dest"), "--mirror", server.url]) == 0
    assert files_in(tmp_path / "dest") == ["sonar/sonar.csv"]
    assert server.asked == ["/sonar/sonar.csv"]


def test_fetch_goes_on_to_the_next_mirror(tmp_path, fetch, server, monkeypatch):
    write(tmp_path / "web/wrong/sonar.csv", "<html>")
    write(tmp_path / "web/good/sonar.csv", "1,2")
    urls = [f"{server.url}/{folder}/sonar.csv" for folder in ("none", "wrong", "short", "good", "unused")]
    monkeypatch.setitem(fetch.SETS, "sonar", {"sonar/sonar.csv": ["http://127.0.0.1:1/refused", *urls]})
    assert fetch.main(["sonar", "--dest", str(tmp_path / "dest")]) == 0
    assert files_in(tmp_path / "dest") == ["sonar/sonar.csv"]
    assert server.asked == ["/none/sonar.csv", "/wrong/sonar.csv", "/short/sonar.csv", "/good/sonar.csv"]


@pytest.mark.parametrize("kind", ["long", "endless"])
def test_fetch_does_not_read_without_end(tmp_path, fetch, server, capsys, kind):
    dest = tmp_path / "dest"
    with memory_below(2**27):
        assert fetch.main(["sonar", "--dest", str(dest), "--mirror", f"{server.url}/{kind}"]) == 1
    assert "failed: more than 67108864 bytes" in capsys.readouterr().out
    assert not dest.exists()


def test_fetch_does_not_wait_without_end(tmp_path, fetch, server, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_SECONDS", -1)
    dest = tmp_path / "dest"
    assert fetch.main(["sonar", "--dest", str(dest), "--mirror", f"{server.url}/stalled"]) == 1
    assert "failed: only 3 bytes in -1 seconds" in capsys.readouterr().out
    assert not dest.exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_fetch_killed_leaves_nothing(tmp_path, server, name):
    # Where pytest runs in the background of a shell, processes that it starts ignore SIGINT.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.path.insert(0, sys.argv.pop(1)); import fetch; sys.exit(fetch.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-I", "-S", "-B", "-c", code, str(ROOT / "datasets"), "sonar"]
    with subprocess.Popen(
        [*command, "--dest", str(tmp_path / "dest"), "--mirror", f"{server.url}/stalled"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not server.asked and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (
        (-9, "") if name == "SIGKILL" else (130, "\ninterrupted; no incomplete file is left behind\n")
    )
    assert not (tmp_path / "dest").exists()


def test_fetch_unpacks_no_bomb(tmp_path, fetch, capsys):
    write(tmp_path / "web/mnist/a-idx3-ubyte.gz", gzip_bomb(GOOD))
    with memory_below(2**28):
        assert run(fetch, tmp_path, "mnist") == 1
    assert "failed: more than 67108864 bytes" in capsys.readouterr().out
    assert not (tmp_path / "dest").exists()


def test_fetch_reads_no_huge_file(tmp_path, fetch, capsys):
    huge = write_huge(tmp_path / "dest/sonar/sonar.csv")
    with memory_below(2**28):
        assert fetch.main(["--check", "--dest", str(tmp_path / "dest")]) == 1
    assert f"{huge}: more than 67108864 bytes" in capsys.readouterr().out
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    assert run(fetch, tmp_path, "sonar") == 0
    assert huge.read_bytes() == b"1,2"


def test_fetch_writes_through_no_link(tmp_path, fetch):
    outside = write(tmp_path / "outside", "mine")
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    (tmp_path / "dest/sonar").mkdir(parents=True)
    (tmp_path / "dest/sonar/sonar.csv").symlink_to(outside)
    assert run(fetch, tmp_path, "sonar") == 0
    assert outside.read_bytes() == b"mine"
    assert (tmp_path / "dest/sonar/sonar.csv").read_bytes() == b"1,2"
    assert not (tmp_path / "dest/sonar/sonar.csv").is_symlink()


@pytest.mark.parametrize("content", [b"1,3", b"", gzip.compress(b"1,2", mtime=0)[:-3]])
def test_fetch_keeps_no_wrong_file(tmp_path, fetch, capsys, content):
    write(tmp_path / "web/sonar/sonar.csv", content)
    dest = tmp_path / "dest"
    assert run(fetch, tmp_path, "sonar") == 1
    assert not dest.exists() or files_in(dest) == []
    assert "error: could not get sonar/sonar.csv" in capsys.readouterr().err


def test_fetch_reports_the_wrong_sum(tmp_path, fetch, capsys):
    write(tmp_path / "web/sonar/sonar.csv", "1,3")
    run(fetch, tmp_path, "sonar")
    out = capsys.readouterr().out
    for content in (b"1,2", b"1;2", b"1,3"):
        assert hashlib.sha256(content).hexdigest() in out


def test_fetch_of_some_fails(tmp_path, fetch, capsys):
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    assert run(fetch, tmp_path) == 1
    assert files_in(tmp_path / "dest") == ["sonar/sonar.csv"]
    assert "could not get mnist/a-idx3-ubyte.gz;" in capsys.readouterr().err


def test_fetch_from_what_is_no_address(tmp_path, fetch, capsys):
    assert fetch.main(["sonar", "--dest", str(tmp_path / "dest"), "--mirror", "nonsense"]) == 1
    assert "unknown url type" in capsys.readouterr().out


def test_fetch_replaces_a_damaged_file(tmp_path, fetch):
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    old = write(tmp_path / "dest/sonar/sonar.csv", "1,")
    assert run(fetch, tmp_path, "sonar") == 0
    assert old.read_bytes() == b"1,2"
    assert files_in(tmp_path / "dest") == ["sonar/sonar.csv"]


def test_fetch_keeps_a_damaged_file_if_there_is_no_better(tmp_path, fetch):
    old = write(tmp_path / "dest/sonar/sonar.csv", "1,")
    assert run(fetch, tmp_path, "sonar") == 1
    assert old.read_bytes() == b"1,"


def test_fetch_takes_an_unpacked_file(tmp_path, fetch):
    write(tmp_path / "dest/mnist/a.idx3-ubyte", GOOD)
    assert run(fetch, tmp_path, "mnist") == 0
    assert files_in(tmp_path / "dest") == ["mnist/a.idx3-ubyte"]


def test_fetch_hides_nothing_behind_a_damaged_file(tmp_path, fetch, capsys):
    write(tmp_path / "web/mnist/a-idx3-ubyte.gz", PACKED)
    write(tmp_path / "dest/mnist/a-idx3-ubyte", GOOD[:-1])
    assert run(fetch, tmp_path, "mnist") == 1
    assert "remove it" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError("disk full"), 1)])
def test_fetch_interrupted_leaves_nothing(tmp_path, fetch, monkeypatch, capsys, error, code):
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    seen = []

    def replace(source, target):
        seen.append((Path(source).parent, Path(source).read_bytes(), Path(target).name))
        raise error

    monkeypatch.setattr(fetch.os, "replace", replace)
    dest = tmp_path / "dest"
    assert run(fetch, tmp_path, "sonar") == code
    assert seen == [(dest / "sonar", b"1,2", "sonar.csv")]
    assert files_in(dest) == []
    assert ("interrupted" if code == 130 else "error: disk full") in capsys.readouterr().err


def test_fetch_into_a_place_that_is_no_folder(tmp_path, fetch, capsys):
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    dest = write(tmp_path / "dest", "a file")
    assert run(fetch, tmp_path, "sonar") == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert dest.read_bytes() == b"a file"


def test_fetch_goes_where_the_readers_look(tmp_path, fetch, monkeypatch):
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    monkeypatch.setenv("FASTBP_DATA", str(tmp_path / "data"))
    assert fetch.main(["sonar", "--mirror", (tmp_path / "web").as_uri()]) == 0
    assert files_in(tmp_path / "data") == ["sonar/sonar.csv"]
    monkeypatch.delenv("FASTBP_DATA")
    monkeypatch.setattr(fetch, "HERE", tmp_path / "here")
    assert fetch.main(["sonar", "--mirror", (tmp_path / "web").as_uri()]) == 0
    assert files_in(tmp_path / "here") == ["sonar/sonar.csv"]


def test_fetch_unknown_name(fetch, capsys):
    with pytest.raises(SystemExit) as caught:
        fetch.main(["mnist", "kmnist"])
    assert caught.value.code == 2
    assert "no set named kmnist; there are mnist, sonar" in capsys.readouterr().err


def test_fetch_what_has_no_download(fetch, capsys):
    for arguments in (["steering_rc"], ["sonar_angle", "mnist", "--check"]):
        with pytest.raises(SystemExit) as caught:
            fetch.main(arguments)
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert f"there is no download for {arguments[0]};" in message
        assert "README.md" in message


def test_check(tmp_path, fetch, capsys):
    check = ["--check", "--dest", str(tmp_path / "dest")]
    assert fetch.main(check) == 0  # nothing there, and nothing wrong
    assert capsys.readouterr().out == "files: 0 right, 0 wrong, 2 not there\n"
    write(tmp_path / "dest/sonar/sonar.csv", "1;2")
    assert fetch.main(check) == 0
    assert fetch.main(["sonar", *check]) == 0
    capsys.readouterr()
    assert fetch.main(["sonar", "mnist", *check]) == 1  # named, but missing
    captured = capsys.readouterr()
    assert captured.out.endswith("files: 1 right, 0 wrong, 1 not there\n")
    assert captured.err == f"error: not there: {tmp_path / 'dest/mnist/a-idx3-ubyte.gz'}\n"
    write(tmp_path / "dest/mnist/a-idx3-ubyte.gz", PACKED)
    assert fetch.main(["sonar", "mnist", *check]) == 0
    capsys.readouterr()
    broken = write(tmp_path / "dest/mnist/a-idx3-ubyte", GOOD[:-1])
    assert fetch.main(check) == 1
    captured = capsys.readouterr()
    assert f"{broken}: 35 bytes with sha256" in captured.out
    assert f"{broken}.gz: ok" in captured.out
    assert captured.err.startswith(f"error: wrong: {broken};")


def test_fetch_as_a_script_needs_only_the_standard_library(tmp_path):
    here = tmp_path / "datasets"
    here.mkdir()
    shutil.copy(ROOT / "datasets" / "fetch.py", here)
    write(tmp_path / "web/sonar/sonar.csv", "1,2")
    write(here / "SHA256SUMS", f"{hashlib.sha256(b'1,2').hexdigest()}  sonar/sonar.csv\n")
    # -I and -S: no installed package can be imported.
    command = [sys.executable, "-I", "-S", str(here / "fetch.py"), "sonar"]
    mirror = ["--mirror", (tmp_path / "web").as_uri()]
    done = subprocess.run([*command, *mirror], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (here / "sonar/sonar.csv").read_bytes() == b"1,2"
    (here / "sonar/sonar.csv").write_bytes(b"1,")
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "sha256" in done.stdout


def test_sums_and_sets_agree():
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "datasets" / "fetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    paths = {path: name for name, files in module.SETS.items() for path in files}
    sums = module.read_sums()
    assert {path.removesuffix(".gz") for path in paths} == set(sums)
    assert all(path.startswith(f"{name}/") for path, name in paths.items())
    digests = [digest for digests in sums.values() for digest in digests]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)
    urls = [url for files in module.SETS.values() for mirrors in files.values() for url in mirrors]
    assert len(set(urls)) == len(urls)
    # What is fetched lies where the readers look for it.
    sources = (source[0].split() for source in datasets._SOURCES.values())
    read = {f"{folder}/{file}" for folder, *files in sources for file in files}
    mnist = {f"{variant}/{name}.gz" for variant in ("mnist", "fashion_mnist") for name in MNIST_FILES}
    assert set(paths) - mnist <= read
    assert mnist <= set(paths)
    # The readers' messages say truly what can be fetched; each name belongs to one side.
    fetched = {name for name in datasets._FETCHED if name in datasets._SOURCES}
    for name, source in datasets._SOURCES.items():
        folder, *files = source[0].split()
        assert (name in fetched) == ({f"{folder}/{file}" for file in files} <= set(paths))
        assert (name in fetched) != (name in module.NOT_FETCHED or folder.split("/")[0] in module.NOT_FETCHED)
    assert datasets._FETCHED - fetched == {"mnist", "fashion_mnist"}
    assert set(module.SETS).isdisjoint(module.NOT_FETCHED)
    assert module.MAX_BYTES == datasets._MAX_BYTES


# ---------------------------------------------------------------------------------------- real data


def test_real_mnist():
    X_train, y_train, X_test, y_test = load_mnist(real("mnist"))
    assert X_train.shape == (60000, 784)
    assert X_test.shape == (10000, 784)
    md5 = [hashlib.md5(idx(X.reshape(-1, 28, 28))).hexdigest() for X in (X_train, X_test)]
    assert md5 == ["6bbc9ace898e44ae57da46a324031adb", "2646ac647ad5339dbf082846283269ea"]
    assert_array_equal(np.bincount(y_train), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    assert_array_equal(np.bincount(y_test), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])


def test_real_fashion_mnist():
    X_train, y_train, X_test, y_test = load_mnist(real("fashion_mnist"), variant="fashion_mnist")
    assert X_train.shape == (60000, 784)
    assert X_test.shape == (10000, 784)
    assert_array_equal(np.bincount(y_train), [6000] * 10)
    assert_array_equal(np.bincount(y_test), [1000] * 10)


def test_real_mnist_passes_the_check():
    command = [sys.executable, str(ROOT / "datasets/fetch.py"), "mnist", "--check"]
    command += ["--dest", str(real("mnist"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


# Rows per class in the training and the test part.
OPTDIGITS = np.array(
    [[376, 389, 380, 389, 387, 376, 377, 387, 380, 382], [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]]
)
PENDIGITS = np.array(
    [[780, 779, 780, 719, 780, 720, 720, 778, 719, 719], [363, 364, 364, 336, 364, 335, 336, 364, 336, 336]]
)
REAL_TABLES = [  # name, folder, features, classes with their counts
    ("banknote", "banknote", 4, {0: 762, 1: 610}),
    ("isolet", "isolet", 617, dict.fromkeys(range(1, 27), 60)),
    ("optdigits", "optdigits", 64, dict(enumerate(OPTDIGITS[0] + OPTDIGITS[1]))),
    ("pendigits", "pendigits", 16, dict(enumerate(PENDIGITS[0] + PENDIGITS[1]))),
    ("phoneme", "phoneme", 5, {0: 3818, 1: 1586}),
    ("pima", "pima", 8, {0: 500, 1: 268}),
    (
        "robot_wall",
        "robot_wall",
        24,
        {"Move-Forward": 2205, "Sharp-Right-Turn": 2097, "Slight-Left-Turn": 328, "Slight-Right-Turn": 826},
    ),
    ("satimage", "satimage", 36, {1: 1533, 2: 703, 3: 1358, 4: 626, 5: 707, 7: 1508}),
    ("sonar", "sonar", 60, {"M": 111, "R": 97}),
    ("sonar_angle", "sonar", 60, {"M": 111, "R": 97}),
    ("two_spirals", "two_spirals", 2, {0: 193, 1: 193}),
    ("wine_quality", "wine_quality", 11, {3: 20, 4: 163, 5: 1457, 6: 2198, 7: 880, 8: 175, 9: 5}),
    ("wine_quality_red", "wine_quality", 11, {3: 10, 4: 53, 5: 681, 6: 638, 7: 199, 8: 18}),
    ("cancer1", "proben1", 9, {0: 458, 1: 241}),
    ("card1", "proben1", 51, {0: 307, 1: 383}),
    ("diabetes1", "proben1", 8, {0: 268, 1: 500}),
    ("heart1", "proben1", 35, {0: 411, 1: 509}),
    ("heartc1", "proben1", 35, {0: 164, 1: 139}),
    ("thyroid1", "proben1", 21, {0: 166, 1: 368, 2: 6666}),
]


@pytest.mark.parametrize(("name", "folder", "n_features", "classes"), REAL_TABLES)
def test_real_classification(name, folder, n_features, classes):
    data = load_tabular(name, real(folder))
    assert data.task == "classification"
    assert data.X.shape == (sum(classes.values()), n_features)
    assert data.X.dtype == np.float64
    assert dict(zip(*(a.tolist() for a in np.unique(data.y, return_counts=True)), strict=True)) == classes


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("optdigits", *OPTDIGITS),
        ("pendigits", *PENDIGITS),
        ("satimage", [0, 1072, 479, 961, 415, 470, 0, 1038], [0, 461, 224, 397, 211, 237, 0, 470]),
        ("two_spirals", [96, 97], [97, 96]),
    ],
)
def test_real_split(name, train, test):
    data = load_tabular(name, real(name))
    assert_array_equal(np.bincount(data.y_train), train)
    assert_array_equal(np.bincount(data.y_test), test)
    assert len(data.X_train) == sum(train)
    assert len(data.X_test) == sum(test)


@pytest.mark.parametrize(
    ("name", "n_features", "n_outputs", "rows"),
    [
        ("building1", 14, 3, (2104, 1052, 1052)),
        ("hearta1", 35, 1, (460, 230, 230)),
        ("heartac1", 35, 1, (152, 76, 75)),
        ("cancer2", 9, None, (350, 175, 174)),
        ("card2", 51, None, (345, 173, 172)),
        ("diabetes2", 8, None, (384, 192, 192)),
        ("heart2", 35, None, (460, 230, 230)),
        ("heartc2", 35, None, (152, 76, 75)),
        ("thyroid2", 21, None, (3600, 1800, 1800)),
    ],
)
def test_real_proben1(name, n_features, n_outputs, rows):
    data = load_tabular(name, real("proben1"))
    assert data.task == ("regression" if n_outputs else "classification")
    assert (len(data.X_train), len(data.X_val), len(data.X_test)) == rows
    assert (len(data.y_train), len(data.y_val), len(data.y_test)) == rows
    assert data.X.shape == (sum(rows), n_features)
    assert data.y.shape == (sum(rows), 3) if n_outputs == 3 else (sum(rows),)
    # The three permutations hold the same rows in another order.
    X = [load_tabular(f"{name[:-1]}{k}", real("proben1")).X for k in (1, 2, 3)]
    assert not np.array_equal(X[0], X[1])
    assert not np.array_equal(X[1], X[2])
    ordered = [rows[np.lexsort(rows.T)] for rows in X]
    assert_array_equal(ordered[0], ordered[1])
    assert_array_equal(ordered[0], ordered[2])


def test_real_steering():
    data = load_tabular("steering_rc", real("steering_rc"))
    assert data.task == "regression"
    assert data.X_train.shape == (9815, 960)
    assert data.X_test.shape == (9587, 960)
    assert (data.X.min(), data.X.max()) == (23, 254)
    assert (data.y.min(), data.y.max()) == (-1, 1)


def test_real_optdigits_is_sklearns_digits():
    data = load_tabular("optdigits", real("optdigits"))
    digits = sklearn.datasets.load_digits()
    assert_array_equal(data.X_test, digits.data)
    assert_array_equal(data.y_test, digits.target)


def test_real_sonar_files_agree():
    plain, angle = (load_tabular(name, real("sonar")) for name in ("sonar", "sonar_angle"))
    rows = [sorted(map(tuple, np.column_stack([data.y == "M", data.X]).tolist())) for data in (plain, angle)]
    assert rows[0] == rows[1]
    assert (np.sum(angle.y_train == "M"), np.sum(angle.y_test == "M")) == (49, 62)
