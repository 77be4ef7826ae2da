"""Lists of cache lines to prefetch: of the samples (`gather`), and of the blocks of the weights (`gradient`)."""

from fastbp.codegen.jit import inlined
from fastbp.codegen.memory import lane_count
from fastbp.codegen.target import CACHE_LINE
from fastbp.codegen.vectors import progression, store


@inlined
def append_lines(begin, n_bytes, lines, count, capacity):
    """Append the cache lines of n_bytes bytes to a prefetch list, up to its capacity; return its length."""
    n_lines = min((begin % CACHE_LINE + n_bytes + CACHE_LINE - 1) // CACHE_LINE, capacity - count)
    for j in range(0, n_lines, lane_count(lines)):
        store(lines, count + j, progression(lines, begin + CACHE_LINE * j, CACHE_LINE))
    return count + n_lines
