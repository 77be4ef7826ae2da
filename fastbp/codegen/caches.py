"""The caches of a core: their sizes, where the system tells them."""

import os
from contextlib import suppress
from pathlib import Path

# Of the processors of the last ten years hardly any has less.
_DEFAULT_L1, _DEFAULT_L2 = 32 * 2**10, 512 * 2**10
_SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")


def _from_sysconf(level):
    name = {1: "SC_LEVEL1_DCACHE_SIZE", 2: "SC_LEVEL2_CACHE_SIZE"}[level]
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf, and not every system the names
        return os.sysconf(name)
    return 0


def _from_sysfs(level):
    with suppress(OSError, ValueError):
        for cache in sorted(_SYSFS.glob("index*")):
            kind = (cache / "type").read_text().strip()
            if kind != "Instruction" and int((cache / "level").read_text()) == level:
                size = (cache / "size").read_text().strip()
                return int(size.removesuffix("K")) * (2**10 if size.endswith("K") else 1)
    return 0


def cache_size(level):
    """Return the bytes of the data cache of a core.

    Parameters
    ----------
    level : {1, 2}
        1 for the cache next to the registers.

    Returns
    -------
    int
        What the C library says, else the kernel of Linux, else a size that hardly any processor falls short of.
    """
    known = max(_from_sysconf(level), 0) or _from_sysfs(level)
    return known or {1: _DEFAULT_L1, 2: _DEFAULT_L2}[level]


L2_BYTES = cache_size(2)
