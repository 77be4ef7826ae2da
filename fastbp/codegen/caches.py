"""The L2 cache of a core: its size, where the system tells it."""

import os
from contextlib import suppress
from pathlib import Path

# Of the processors of the last ten years hardly any has less.
_DEFAULT = 512 * 2**10
_SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")


def _from_sysconf():
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf, and not every system the name
        return os.sysconf("SC_LEVEL2_CACHE_SIZE")
    return 0


def _from_sysfs():
    with suppress(OSError, ValueError):
        for cache in sorted(_SYSFS.glob("index*")):
            kind = (cache / "type").read_text().strip()
            if kind != "Instruction" and int((cache / "level").read_text()) == 2:
                size = (cache / "size").read_text().strip()
                return int(size.removesuffix("K")) * (2**10 if size.endswith("K") else 1)
    return 0


def l2_size():
    """Return the bytes of the L2 cache of a core.

    What the C library says, else the kernel of Linux, else a size that hardly any processor falls short of.
    """
    return max(_from_sysconf(), 0) or _from_sysfs() or _DEFAULT


L2_BYTES = l2_size()
