"""Files that are there as a whole, or not at all."""

import glob
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path


def write_atomically(path, data, *, durable=True):
    """Write a file so that at any moment, also after a crash, there is either the old one or the new one.

    Parameters
    ----------
    path : path-like
        The file; a link is followed.
    data : bytes-like
        Its content.
    durable : bool, default=True
        Whether to wait for the disk; else a crash of the system may leave another content.

    Raises
    ------
    OSError
        If it cannot be written. The old file, if there is one, is as it was.
    """
    path = Path(os.path.realpath(path))
    part = _part(path)
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":  # elsewhere a folder cannot be opened
        with suppress(OSError):  # some file systems cannot: the file is there all the same
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


# Seconds after which nobody writes a part any more.
_ABANDONED = 3600.0


def prepare(path):
    """Check that a file can be written, and remove what processes have left that were killed while they wrote it.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path = Path(os.path.realpath(path))
    part = _part(path)
    part.touch(exist_ok=False)
    part.unlink()
    for left in path.parent.glob(_part_name(glob.escape(_beginning(path)), "?" * 2 * _KEY_BYTES)):
        with suppress(OSError):  # another process may have been faster
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()


_KEY_BYTES = 4


def _part(path):
    """Return where a file is written, before it takes its place; check that it can have one."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{str(path)!r} is a path whose folder does not exist.")
    if path.exists() and not path.is_file():  # a device, say, which the file would take the place of
        raise OSError(f"{str(path)!r} is not a file.")
    # In the same folder: a file system can rename a file only within itself.
    return path.with_name(_part_name(_beginning(path), secrets.token_hex(_KEY_BYTES)))


def _beginning(path):
    return path.name[:200]  # file systems limit the length of names


def _part_name(beginning, key):
    return f".{beginning}.{key}.part"
