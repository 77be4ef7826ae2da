"""Download data sets, or verify the files of those that are on disk.

The script needs only the standard library. A file gets its name after its checksum has been compared with SHA256SUMS.
What is longer than any of these data sets, compressed or not, is not read to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import http.client
import io
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

HERE = Path(__file__).resolve().parent
SUMS = HERE / "SHA256SUMS"
TIMEOUT = 60  # seconds without a byte
MAX_SECONDS = 3600  # of one download
# The most bytes of a file, before and after decompression; the largest has 47 MB. `fastbp.datasets` has the same limit.
MAX_BYTES = 2**26

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/"
IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

# For each data set: the paths of its files below the destination, each with its URLs in the order in which to try them.
SETS: dict[str, dict[str, list[str]]] = {
    "mnist": {f"mnist/{name}.gz": [f"{mirror}{name}.gz" for mirror in MNIST] for name in IDX},
    "fashion_mnist": {f"fashion_mnist/{name}.gz": [f"{mirror}{name}.gz" for mirror in FASHION] for name in IDX},
    "banknote": {"banknote/banknote_authentication.csv": [UCI + "00267/data_banknote_authentication.txt"]},
    "optdigits": {f"optdigits/optdigits.{part}": [UCI + f"optdigits/optdigits.{part}"] for part in ("tra", "tes")},
    "pendigits": {f"pendigits/pendigits.{part}": [UCI + f"pendigits/pendigits.{part}"] for part in ("tra", "tes")},
    "robot_wall": {"robot_wall/sensor_readings_24.data": [UCI + "00194/sensor_readings_24.data"]},
    "satimage": {f"satimage/sat.{part}": [UCI + f"statlog/satimage/sat.{part}"] for part in ("trn", "tst")},
    "sonar": {"sonar/sonar.csv": [UCI + "undocumented/connectionist-bench/sonar/sonar.all-data"]},
    "wine_quality": {
        f"wine_quality/winequality-{colour}.csv": [UCI + f"wine-quality/winequality-{colour}.csv"]
        for colour in ("white", "red")
    },
}
# Data sets that cannot be downloaded: README.md lists their sources and formats. Without their files nothing is wrong.
NOT_FETCHED = ("isolet", "phoneme", "pima", "proben1", "sonar_angle", "steering_rc", "two_spirals")


class BadFile(Exception):
    """A file was downloaded or exists, but its content is not the published one."""


def read_sums() -> dict[str, set[str]]:
    """Return the accepted checksums of each path."""
    sums: dict[str, set[str]] = {}
    for line in SUMS.read_text(encoding="ascii").splitlines():
        if line.strip() and not line.startswith("#"):
            digest, path = line.split()
            sums.setdefault(path, set()).add(digest)
    return sums


def read_rest(file: BinaryIO) -> bytes:
    """Return the rest of a file; raise `BadFile` if it is longer than any of the data sets."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadFile(f"more than {MAX_BYTES} bytes")
    return data


def read_file(path: Path) -> bytes:
    """Return the content of a file, as `read_rest`."""
    with path.open("rb") as file:
        return read_rest(file)


def verify(data: bytes, path: str, sums: dict[str, set[str]]) -> None:
    """Raise `BadFile` unless the content of a file, decompressed if it is gzip, has an accepted checksum."""
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = read_rest(file)
        except (OSError, EOFError, zlib.error) as error:
            raise BadFile(f"broken gzip stream ({error})") from error
    digest, accepted = hashlib.sha256(data).hexdigest(), sums[path.removesuffix(".gz")]
    if digest not in accepted:
        raise BadFile(f"{len(data)} bytes with sha256 {digest}, expected {' or '.join(sorted(accepted))}")


def present(dest: Path, path: str) -> list[Path]:
    """Return the existing files that `fastbp.datasets` reads for `path`, with or without .gz, in either spelling."""
    stem = path.removesuffix(".gz")
    stems = dict.fromkeys([stem, stem.replace("-idx", ".idx")])
    ends = ("", ".gz") if path.endswith(".gz") else ("",)
    return [file for s in stems for end in ends if (file := dest / f"{s}{end}").is_file()]


def download(url: str) -> bytes:
    """Return the content of `url`; on a terminal, print the progress.

    Raises
    ------
    BadFile
        If it ends too early, is longer than any of the data sets, or takes longer than `MAX_SECONDS`.
    """
    end = time.monotonic() + MAX_SECONDS
    request = urllib.request.Request(url, headers={"User-Agent": "fastbp-datasets"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        size = int(response.headers.get("Content-Length") or 0)
        chunks: list[bytes] = []
        done = 0
        while chunk := response.read1(1 << 18):  # what is there, so that a slow server does not keep us here
            chunks.append(chunk)
            done += len(chunk)
            if max(size, done) > MAX_BYTES:
                raise BadFile(f"more than {MAX_BYTES} bytes")
            if time.monotonic() > end:
                raise BadFile(f"only {done} bytes in {MAX_SECONDS} seconds")
            if sys.stdout.isatty():
                total = f" of {size / 1e6:.1f}" if size else ""
                print(f"\r  {done / 1e6:.1f}{total} MB ", end="", flush=True)
    if sys.stdout.isatty():
        print("\r" + " " * 40 + "\r", end="")
    if size and done != size:
        raise BadFile(f"the connection ended after {done} of {size} bytes")
    return b"".join(chunks)


@contextlib.contextmanager
def part_file(target: Path) -> Iterator[Path]:
    """Create a temporary file in the folder of `target`, and remove it at the end if it still exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def fetch(path: str, urls: Sequence[str], dest: Path, sums: dict[str, set[str]]) -> bool:
    """Download one file to `dest` unless it exists; return whether it exists with an accepted checksum."""
    target = dest / path
    if files := present(dest, path):
        try:
            verify(read_file(files[0]), path, sums)
            print(f"{files[0]}: exists, checksum ok")
            return True
        except BadFile as error:
            print(f"{files[0]}: {error}")
        if files[0] == dest / path.removesuffix(".gz") != target:
            print("  remove it: it would be read instead of the compressed file")
            return False
    for url in urls:
        print(f"{path}: {url}")
        try:
            data = download(url)
            verify(data, path, sums)
        except (BadFile, urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            print(f"  failed: {error}")
            continue
        with part_file(target) as part:
            part.write_bytes(data)
            part.chmod(0o644)
            os.replace(part, target)
        print(f"  {len(data)} bytes, checksum ok")
        return True
    return False


def check(names: Sequence[str], dest: Path, sums: dict[str, set[str]]) -> tuple[list[Path], list[Path], list[Path]]:
    """Verify the files in `dest`, and print the result for each that exists.

    Returns
    -------
    right, wrong, missing
        The paths of the files with and without an accepted checksum, and of those that do not exist.
    """
    right: list[Path] = []
    wrong: list[Path] = []
    missing: list[Path] = []
    for path in (path for name in names for path in SETS[name]):
        files = present(dest, path)
        if not files:
            missing.append(dest / path)
        for file in files:
            try:
                verify(read_file(file), path, sums)
                right.append(file)
                print(f"{file}: ok")
            except BadFile as error:
                wrong.append(file)
                print(f"{file}: {error}")
    return right, wrong, missing


def report(right: Sequence[Path], wrong: Sequence[Path], missing: Sequence[Path], *, need_all: bool) -> int:
    """Print the result of `check` in words; return the exit code."""
    print(f"files: {len(right)} right, {len(wrong)} wrong, {len(missing)} not there")
    if wrong:
        print(f"error: wrong: {', '.join(map(str, wrong))}; remove them and run fetch.py again", file=sys.stderr)
    if missing and need_all:
        print(f"error: not there: {', '.join(map(str, missing))}", file=sys.stderr)
    return 1 if wrong or (missing and need_all) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The exit code is 0 if all is right, 1 if a file could not be downloaded, is wrong, or was asked for by "
        f"the name of its data set and is not there. There is no download for {', '.join(NOT_FETCHED)}: see README.md.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"data sets: {', '.join(SETS)}; default: all of them (about 46 MB)"
    )
    parser.add_argument(
        "--dest", metavar="DIR", type=Path, help="target; default: $FASTBP_DATA, else the folder of this script"
    )
    parser.add_argument("--check", action="store_true", help="download nothing, only verify the files that exist")
    parser.add_argument(
        "--mirror",
        metavar="URL",
        help="download only from this URL, which has the structure of DIR: URL/sonar/sonar.csv and so on",
    )
    options = parser.parse_args(argv)
    if lacking := [name for name in options.names if name in NOT_FETCHED]:
        parser.error(f"there is no download for {', '.join(lacking)}; {HERE / 'README.md'} lists sources and formats")
    if unknown := [name for name in options.names if name not in SETS]:
        parser.error(f"no set named {', '.join(unknown)}; there are {', '.join(SETS)}")
    dest = (options.dest or Path(os.environ.get("FASTBP_DATA") or HERE)).expanduser()
    names = options.names or list(SETS)
    failed = []
    try:
        sums = read_sums()
        if options.check:
            return report(*check(names, dest, sums), need_all=bool(options.names))
        for path, urls in ((path, urls) for name in names for path, urls in SETS[name].items()):
            if options.mirror:
                urls = [f"{options.mirror.rstrip('/')}/{path}"]
            if not fetch(path, urls, dest, sums):
                failed.append(path)
    except KeyboardInterrupt:
        print("\ninterrupted; no incomplete file is left behind", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if failed:
        print(f"error: could not get {', '.join(failed)}; see {HERE / 'README.md'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
