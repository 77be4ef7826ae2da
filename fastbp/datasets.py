"""Load the real data sets that examples, tests and benchmarks use.

No data is distributed with the package. The files are read from ``data_home`` if it is passed, else from the folder
that the environment variable ``FASTBP_DATA`` names, else from ``datasets/`` of the source checkout or, if the package
is installed elsewhere, from ``datasets/`` in the current directory. ``datasets/README.md`` lists the source, licence
and format of every data set. The values are those of the files; nothing is scaled.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from sklearn.utils import Bunch

__all__ = ["TABULAR_NAMES", "fetch_mnist", "load_idx", "load_mnist", "load_tabular"]

_Path = str | os.PathLike[str]
_FourArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_IDX_DTYPES = dict(zip(b"\x08\x09\x0b\x0c\x0d\x0e", ("u1", "i1", ">i2", ">i4", ">f4", ">f8"), strict=True))
_MNIST_VARIANTS = ("mnist", "fashion_mnist")
_MNIST_FILES = [f"{p}-{k}-ubyte" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
# The most bytes that are read: of any file, decompressed, and of a table, whose parsed form takes up to a hundred times
# as much. The largest files of the data sets here have 47 MB, those of tables 1.1 MB.
_MAX_BYTES, _MAX_TABLE_BYTES = 2**26, 2**22


def _damaged(path: Path, found: str, expected: str, line: int | None = None) -> ValueError:
    where = f"{path}, line {line}" if line else f"{path}"
    found, expected = (text if len(text) <= 500 else f"{text[:500]}..." for text in (found, expected))
    return ValueError(
        f"{where}: found {found}, expected {expected}. Replace the file with a new copy; "
        "datasets/README.md in a checkout of fastbp lists the sources and formats."
    )


def _missing(name: str, what: str, folder: str) -> FileNotFoundError:
    """Return the error for a data set that is not there; `folder` is its own, within the folder of all data sets."""
    if name in _FETCHED:
        way = f"in a checkout of fastbp, `python datasets/fetch.py {folder}` downloads it"
    else:
        way = "datasets/fetch.py cannot download it, but datasets/README.md in a checkout of fastbp names the source"
    return FileNotFoundError(
        f"{name}: {what}. If you have the data, set the environment variable FASTBP_DATA, or pass data_home, to the "
        f"folder that contains the folder {folder}. Otherwise, {way}."
    )


def _folder(data_home: _Path | None) -> Path:
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "pyproject.toml").is_file():  # installed elsewhere; the current directory may be a checkout
        checkout = Path.cwd()
    return Path(data_home or os.environ.get("FASTBP_DATA") or checkout / "datasets").expanduser()


def load_idx(path: _Path, *, max_bytes: int = _MAX_BYTES) -> np.ndarray:
    """Load an array from an IDX file, the format of MNIST.

    Parameters
    ----------
    path : str or path-like
        Path of the file, which may be compressed with gzip. Compression is recognized by the content, not by the name.
    max_bytes : int, default=2**26
        The most bytes that a compressed file may have after decompression: gzip packs up to a thousand into one. The
        default is enough for MNIST. Pass more for a larger data set from a source that you trust.

    Returns
    -------
    array : ndarray
        The array, of the shape and dtype that the header declares: uint8, int8, int16, int32, float32 or float64, in
        native byte order. It is writeable.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not an IDX file, if its length differs from that in its header, if it is a broken gzip stream, or
        if it has more than `max_bytes` after decompression.
    """
    path = Path(path)
    with path.open("rb") as file:
        if not file.peek(2).startswith(b"\x1f\x8b"):
            return _read_idx(path, file, os.fstat(file.fileno()).st_size or max_bytes)  # a pipe has no size
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_idx(path, unpacked, max_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, f"a broken gzip stream ({error})", "a complete one") from error


def _read_idx(path: Path, file: BinaryIO | gzip.GzipFile, max_bytes: int) -> np.ndarray:
    """Read an array of at most so many bytes, and no more than its header declares."""
    magic = file.read(4)
    n_sizes = magic[3] if len(magic) == 4 else 0
    sizes = file.read(4 * n_sizes)
    if magic[:2] != b"\0\0" or not n_sizes or magic[2] not in _IDX_DTYPES or len(sizes) != 4 * n_sizes:
        raise _damaged(path, f"the first bytes '{magic.hex(' ')}'", "IDX: 00 00, type, dimensions, sizes")
    dtype, start = np.dtype(_IDX_DTYPES[magic[2]]), 4 + 4 * n_sizes
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    n_bytes = start + math.prod(shape) * dtype.itemsize
    declared = f"{n_bytes} for {dtype.name} of shape {shape}"
    if n_bytes > max_bytes and isinstance(file, gzip.GzipFile):
        way = f"at most {max_bytes} bytes, or a larger max_bytes passed to load_idx if you trust the source"
        raise _damaged(path, f"a compressed file that declares {declared}", way)
    # One more than declared, so that trailing bytes are seen.
    raw = file.read(min(n_bytes - start, max_bytes) + 1)
    if (found := start + len(raw)) != n_bytes:
        what = "a truncated file" if found < n_bytes else "trailing bytes"
        raise _damaged(path, f"{what}: {found} bytes", declared)
    try:
        return np.ndarray(shape, dtype, raw).astype(dtype.newbyteorder("="))
    except ValueError as error:  # no array has such a shape, although it has no elements
        raise _damaged(path, f"the shape {shape}", f"one that NumPy can hold ({error})") from error


def load_mnist(data_home: _Path | None = None, *, variant: str = "mnist") -> _FourArrays:
    """Load MNIST or Fashion-MNIST from IDX files on disk, without using the network.

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder that contains the four files, or a subfolder named like `variant` that contains them. If None, the
        environment variable ``FASTBP_DATA``, else ``datasets/`` of the source checkout. The files may be named
        ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, with or without ``.gz``.
    variant : {"mnist", "fashion_mnist"}, default="mnist"
        The data set to load.

    Returns
    -------
    X_train : ndarray of shape (60000, 784)
        Training images, uint8, from 0 (background) to 255; the pixels of an image row by row.
    y_train : ndarray of shape (60000,)
        Labels 0 to 9, int64.
    X_test : ndarray of shape (10000, 784)
        Test images.
    y_test : ndarray of shape (10000,)
        Test labels.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message lists the names and folders that were tried.
    ValueError
        If `variant` is unknown, or if a file is damaged, does not contain images of 28 x 28 pixels, or does not contain
        one label from 0 to 9 for each image.
    """
    if variant not in _MNIST_VARIANTS:
        raise ValueError(f"variant must be one of {_MNIST_VARIANTS}, got {variant!r}")
    home = _folder(data_home)
    # The two sets use the same file names: a folder named after one never serves as the other.
    folders = [home / variant] + [home] * (home.name not in set(_MNIST_VARIANTS) - {variant})
    lacking = []
    for folder in folders:
        found = {name: _spelling(folder, name) for name in _MNIST_FILES}
        paths = [path for path in found.values() if path]
        if len(paths) == len(_MNIST_FILES):
            return *_images_and_labels(*paths[:2]), *_images_and_labels(*paths[2:])
        lacking.append(f"{folder} lacks {', '.join(name for name, path in found.items() if not path)}")
    error = _missing(variant, f"{'; '.join(lacking)} (each with or without .gz, also with '.idx' for '-idx')", variant)
    if variant == "mnist":
        error = FileNotFoundError(f"{error} fastbp.datasets.fetch_mnist() downloads the same images from OpenML.")
    raise error


def _spelling(folder: Path, name: str) -> Path | None:
    stems = (name, name.replace("-idx", ".idx"))
    return next((p for s in stems for end in ("", ".gz") if (p := folder / f"{s}{end}").is_file()), None)


def _images_and_labels(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    X, y = load_idx(images), load_idx(labels)
    if X.dtype != np.uint8 or X.shape[1:] != (28, 28):
        raise _damaged(images, f"{X.dtype} of shape {X.shape}", "uint8 images of 28 x 28")
    if y.dtype != np.uint8 or y.shape != X.shape[:1] or np.any(y > 9):
        raise _damaged(labels, f"{y.dtype} {y.shape} up to {y.max(initial=0)}", f"{len(X)} labels 0 to 9")
    return X.reshape(len(X), 784), y.astype(np.int64)


def fetch_mnist(data_home: _Path | None = None) -> _FourArrays:
    """Download MNIST from OpenML (``mnist_784``, version 1) with scikit-learn, which caches it.

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder where scikit-learn caches data sets, see `sklearn.datasets.get_data_home`. It is not the folder that
        `load_mnist` reads.

    Returns
    -------
    X_train, y_train, X_test, y_test : ndarray
        The arrays that `load_mnist` returns. The first 60000 rows are the training set.

    Raises
    ------
    OSError
        If OpenML cannot be reached and the data set is not cached.
    """
    from sklearn.datasets import fetch_openml

    # scikit-learn's fast parser needs pandas; "liac-arff" does not, but takes longer and more memory.
    parser = "pandas" if find_spec("pandas") else "liac-arff"
    bunch = fetch_openml("mnist_784", version=1, data_home=data_home, as_frame=False, parser=parser)
    X, y = np.asarray(bunch.data).astype(np.uint8), np.asarray(bunch.target).astype(np.int64)
    return X[:60000], y[:60000], X[60000:], y[60000:]


# A reader takes a path and further arguments, and returns a list with the part, or parts, that the file contains.
_Part = tuple[np.ndarray, np.ndarray]  # X, y
_Labels = Mapping[str, int | str]  # from the text in the file to the label


def _classes(*names: int | str) -> dict[str, int | str]:
    return {str(name): name for name in names}


def _one_hot(n_classes: int) -> dict[str, int | str]:
    return {"0" * k + "1" + "0" * (n_classes - 1 - k): k for k in range(n_classes)}


def _text(path: Path) -> str:
    """Return the content of a table."""
    with path.open(encoding="latin-1") as file:
        text = file.read(_MAX_TABLE_BYTES + 1)
    if len(text) > _MAX_TABLE_BYTES:
        raise _damaged(path, f"more than {_MAX_TABLE_BYTES} bytes", "the table, which is smaller")
    return text


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the non-blank lines with their line numbers."""
    lines = _text(path).split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _rows(path: Path, lines: list[tuple[int, str]], n_inputs: int, labels: _Labels, width: int = 1) -> _Part:
    """Parse rows of `n_inputs` finite numbers and a label, whose text is the last `width` fields put together."""
    X, y = [], []
    for number, line in lines:
        fields = re.split(r"\s*[,;\s]\s*", line)
        label = "".join(fields[n_inputs:])
        if len(fields) != n_inputs + width:
            raise _damaged(path, f"{len(fields)} fields", f"{n_inputs + width}", number)
        if label not in labels:
            raise _damaged(path, f"the label {label!r}", f"one of {', '.join(labels)}", number)
        try:
            X.append([float(text) for text in fields[:n_inputs]])
        except ValueError as error:
            raise _damaged(path, str(error), "a number", number) from error
        if not all(map(math.isfinite, X[-1])):
            raise _damaged(path, "nan or infinity", "finite numbers", number)
        y.append(labels[label])
    return np.array(X).reshape(-1, n_inputs), np.array(y)


def _read_table(path: Path, n_inputs: int, labels: _Labels, *header: str) -> list[_Part]:
    """Read rows, without the first line if it begins with one of `header`."""
    lines = _lines(path)
    return [_rows(path, lines[bool(lines) and lines[0][1].startswith(header) :], n_inputs, labels)]


def _read_npz(path: Path, shape: tuple[int, ...], target: str, split: str | None = None) -> list[_Part]:
    """Read the arrays ``X`` and `target`; `split` names an array that is 0 for training and 1 for test rows."""
    try:
        with zipfile.ZipFile(path) as archive:
            # The sizes are those in the archive's directory, and no member gives more than its own.
            if (n_bytes := sum(member.file_size for member in archive.infolist())) > _MAX_BYTES:
                raise ValueError(f"{n_bytes} bytes after decompression, more than {_MAX_BYTES}")
            X, y, part = (_read_member(archive, f"{name}.npy") for name in ("X", target, split or target))
        if not (X.shape == (len(y), *shape) and part.shape == y.shape == (len(y),)):
            raise ValueError(f"X of shape {X.shape} and {target} of shape {y.shape}")
        if not all(array.dtype.kind in "biuf" and np.isfinite(array).all() for array in (X, y, part)):
            raise ValueError(f"X of {X.dtype} and {target} of {y.dtype}, or numbers that are not finite")
    except Exception as error:  # a damaged archive can raise anything
        raise _damaged(path, str(error), f"npz with finite X, rows of {shape}, and {target}") from error
    X, y = X.reshape(len(X), -1), y.astype(np.float64 if y.dtype.kind == "f" else np.int64)
    return [(X[part == k], y[part == k]) for k in (0, 1)] if split else [(X, y)]


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_sonar_angle(path: Path) -> list[_Part]:
    """Read blocks ``CM001:`` ``{60 numbers}`` of mines (M) and rocks (R); a star marks the training rows."""
    text = _text(path)
    parts: dict[str, list[tuple[int, str]]] = {"*": [], "": []}
    line, end = 1, 0
    for block in re.finditer(r"(\*?)C([MR])\d+:[\s{]*([^*C}]*)", text):
        line, end = line + text.count("\n", end, block.start()), block.start()
        parts[block[1]].append((line, f"{block[3].strip()} {block[2]}"))
    return [_rows(path, rows, 60, _classes("M", "R")) for rows in parts.values()]


def _read_fann(path: Path) -> list[_Part]:
    """Read the line ``<pairs> 2 1``, then for each pair a line with the inputs and a line with the label."""
    (_, header), *lines = _lines(path) or [(1, "")]
    if header.split() != [f"{len(lines) / 2:g}", "2", "1"]:
        raise _damaged(path, f"{header[:40]!r} and {len(lines)} lines", "'<pairs> 2 1', two lines each", 1)
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return [_rows(path, [(n, f"{inputs} {label}") for (n, inputs), (_, label) in pairs], 2, _BINARY)]


def _read_proben1(path: Path) -> list[_Part]:
    """Read seven lines ``<key>=<count>``, then the training, validation and test rows."""
    lines = _lines(path)
    keys = "bool_in real_in bool_out real_out training_examples validation_examples test_examples"
    header = dict(re.findall(r"^(\w+)=(\d{1,6})$", "\n".join(line for _, line in lines[:7]), re.M))
    sizes = [int(count) for count in header.values()]
    if " ".join(header) != keys or len(lines) != 7 + sum(sizes[4:]):
        expected = f"seven lines '<key>=<count>' with the keys {keys}, then as many rows as they say"
        raise _damaged(path, f"the keys '{' '.join(header)}' and {len(lines) - 7} rows", expected)
    bool_in, real_in, bool_out, real_out, *counts = sizes
    n_inputs, n_outputs = bool_in + real_in, bool_out + real_out
    if not (1 <= n_inputs <= _MAX_PROBEN1 and 1 <= n_outputs <= _MAX_PROBEN1):
        raise _damaged(path, f"{n_inputs} inputs and {n_outputs} outputs", f"1 to {_MAX_PROBEN1} of each")
    if n_outputs == bool_out > 1:
        X, y = _rows(path, lines[7:], n_inputs, _one_hot(n_outputs), n_outputs)
    else:
        rows, _ = _rows(path, lines[7:], n_inputs + n_outputs, {"": 0}, 0)
        X, y = rows[:, :n_inputs], rows[:, n_inputs] if n_outputs == 1 else rows[:, n_inputs:]
    ends = np.cumsum(counts[:2])
    return list(zip(np.split(X, ends), np.split(y, ends), strict=True))


_BINARY, _DIGITS, _GRADES = _classes(0, 1), _classes(*range(10)), _classes(*range(11))
_PEN_DIGITS, _SOILS = _DIGITS | _one_hot(10), _classes(1, 2, 3, 4, 5, 7)
_TURNS = _classes("Move-Forward", "Sharp-Right-Turn", "Slight-Left-Turn", "Slight-Right-Turn")
# More inputs and outputs than any problem of Proben1 that is read here; the most are the 51 inputs of "card".
_MAX_PROBEN1 = 100
_PROBEN1 = ("building", "cancer", "card", "diabetes", "heart", "hearta", "heartac", "heartc", "thyroid")
# Name: folder and files, number of rows in each part (empty for Proben1, whose files declare them), reader and its
# arguments. Of UCI's own files only those of wine_quality have a header line, and the labels of UCI's pendigits are
# digits; other published copies of the tables have header lines, and pendigits with one-hot labels.
_SOURCES: dict[str, tuple[Any, ...]] = {
    "banknote": ("banknote banknote_authentication.csv", (1372,), _read_table, 4, _BINARY),
    "isolet": ("isolet isolet.npz", (1560,), _read_npz, (617,), "y"),
    "optdigits": ("optdigits optdigits.tra optdigits.tes", (3823, 1797), _read_table, 64, _DIGITS, "Block"),
    "pendigits": ("pendigits pendigits.tra pendigits.tes", (7494, 3498), _read_table, 16, _PEN_DIGITS),
    "phoneme": ("phoneme phoneme.csv", (5404,), _read_table, 5, _BINARY),
    "pima": ("pima pima-indians-diabetes.csv", (768,), _read_table, 8, _BINARY),
    "robot_wall": ("robot_wall sensor_readings_24.data", (5456,), _read_table, 24, _TURNS, "S1,"),
    "satimage": ("satimage sat.trn sat.tst", (4435, 2000), _read_table, 36, _SOILS, "1\t2\t3\t"),
    "sonar": ("sonar sonar.csv", (208,), _read_table, 60, _classes("M", "R")),
    "sonar_angle": ("sonar sonar.mines sonar.rocks", (104, 104), _read_sonar_angle),
    "steering_rc": ("steering_rc steering_30x32.npz", (9815, 9587), _read_npz, (30, 32), "angle", "tub"),
    "two_spirals": ("two_spirals two-spiral.train two-spiral.test", (193, 193), _read_fann),
    "wine_quality": ("wine_quality winequality-white.csv", (4898,), _read_table, 11, _GRADES, '"fixed'),
    "wine_quality_red": ("wine_quality winequality-red.csv", (1599,), _read_table, 11, _GRADES, '"fixed'),
} | {
    f"{name}{k}": (f"proben1/{'heart' if 'heart' in name else name} {name}{k}.dt", (), _read_proben1)
    for name in _PROBEN1
    for k in (1, 2, 3)
}
TABULAR_NAMES: tuple[str, ...] = tuple(_SOURCES)
# Those that datasets/fetch.py downloads.
_FETCHED = {
    *_MNIST_VARIANTS, "banknote", "optdigits", "pendigits", "robot_wall", "satimage", "sonar", "wine_quality",
    "wine_quality_red",
}  # fmt: skip


def load_tabular(name: str, data_home: _Path | None = None) -> Bunch:
    """Load a tabular data set by name.

    Parameters
    ----------
    name : str
        One of `TABULAR_NAMES`. The names of Proben1's problems end with the number of the permutation, as in
        ``"cancer1"``, ``"cancer2"`` and ``"cancer3"``. ``"sonar"`` has 208 rows without a split, ``"sonar_angle"`` the
        same rows with a split by aspect angle. ``"wine_quality"`` has the white wines, ``"wine_quality_red"`` the red.
    data_home : str or path-like, default=None
        The folder that contains one subfolder for each data set. If None, the same folder as in `load_mnist`.

    Returns
    -------
    data : sklearn.utils.Bunch
        - ``name`` : str.
        - ``task`` : ``"classification"`` or ``"regression"``.
        - ``X`` : ndarray of shape (n_samples, n_features), float64, C-contiguous.
        - ``y`` : ndarray of shape (n_samples,). Labels, of dtype int64 or str; for regression float64 targets, of shape
          (n_samples, n_outputs) if there are several. A label of Proben1 is the index of the output that is 1.
        - ``X_train``, ``y_train``, ``X_val``, ``y_val``, ``X_test``, ``y_test`` : consecutive rows of ``X`` and ``y``,
          as views. Only if a split was published; ``X_val`` and ``y_val`` only for Proben1.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says whether ``datasets/fetch.py`` of a source checkout can download it.
    ValueError
        If `name` is unknown or a file is malformed; the message has the path of the file and, if possible, the line
        number.
    """
    from sklearn.utils import Bunch

    if name not in _SOURCES:
        raise ValueError(f"name must be one of {', '.join(TABULAR_NAMES)}; got {name!r}")
    files, rows, read, *arguments = _SOURCES[name]
    folder, *names = files.split()
    paths = [_folder(data_home) / folder / file for file in names]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise _missing(name, f"there is no {' and no '.join(missing)}", folder.split("/")[0])
    by_file = [read(path, *arguments) for path in paths]  # a file contains one part, or rows of every part
    shares = zip(*by_file, strict=True) if len(by_file[0]) > 1 else by_file
    parts = [tuple(map(np.concatenate, zip(*share, strict=True))) for share in shares]
    found = tuple(len(y) for _, y in parts)
    if found != (rows or found):
        raise _damaged(paths[0].with_name(", ".join(names)), f"parts of {found} rows", f"{rows}")
    X, y = map(np.concatenate, zip(*parts, strict=True))
    task = "regression" if y.dtype.kind == "f" else "classification"
    data = Bunch(name=name, task=task, X=X.astype(np.float64, order="C", copy=False), y=y)
    ends = np.cumsum((0, *found))
    for i, part in enumerate({1: (), 2: ("train", "test"), 3: ("train", "val", "test")}[len(found)]):
        data[f"X_{part}"], data[f"y_{part}"] = (values[ends[i] : ends[i + 1]] for values in (data.X, y))
    return data
