"""Files that are there as a whole, or not at all."""

import os
import secrets
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
    if path.exists() and not path.is_file():  # a device, say, which the file would take the place of
        raise OSError(f"{str(path)!r} is not a file.")
    # In the same folder: a file system can rename a file only within itself.
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
