"""The register tile: the micro-kernel of all matrix products, as LLVM IR.

The speed of everything rests on it; `kernels.matmul` makes the products of matrices from it.

References
----------
Van Zee and van de Geijn, "BLIS: A framework for rapidly instantiating BLAS functionality", ACM TOMS 41(3), 2015.
"""

from typing import Any, NamedTuple

from numba import types
from numba.extending import intrinsic

from fastbp.codegen.emit import (
    BYTES,
    INT64,
    alignment,
    emit_fma,
    emit_loop,
    emit_offset,
    emit_prefetch,
    emit_splat,
    emit_switch,
    vector_type,
)
from fastbp.codegen.target import CACHE_LINE, VECTOR_BITS, X86

# The register tile is MR rows of at most NV vectors: 24 accumulators where there are 32 vector registers (AVX-512,
# ARM), 12 where there are 16. Few rows and many vectors, so that a remainder of rows costs little: 8 accumulators keep
# two FMA units busy, whose results take about 4 cycles. With 4 vectors these are 2 rows, with 2 vectors 4 rows.
MR = 6
NV = 4 if VECTOR_BITS == 512 or not X86 else 2


class _Operands(NamedTuple):
    """Where C = D + A B lies, as LLVM values: pointers, and strides in elements."""

    a: Any
    a_row: Any
    a_col: Any
    b: Any
    b_row: Any
    d: Any
    d_row: Any
    c: Any
    c_row: Any


class _Prefetch(NamedTuple):
    """Addresses of cache lines to prefetch during a product, as LLVM values."""

    lines: Any
    n_lines: Any
    for_write: bool


@intrinsic
def micro_kernel(typingctx, mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute one register tile, C = D + A B.

    Each element of C is one chain of `k` multiply-adds (fused where the target has FMA) in the order of the
    reduction index, started from D: the same bits for every tile height and width, and
    for a reduction that is cut in pieces and continued from C.

    Parameters
    ----------
    mr : int64
        Rows of the tile, 1 to MR.
    nv : int64
        Vectors in each row, 1 to NV.
    k : int64
        Length of the reduction, at least 1.
    a, a_row, a_col : pointer, int64, int64
        A is (mr, k), with any strides.
    b, b_row : pointer, int64
        B is (k, nv * lanes), its rows contiguous.
    d, d_row : pointer, int64
        D is (mr, nv * lanes); a `d_row` of 0 repeats one row: a bias, or zeros.
    c, c_row : pointer, int64
        C is (mr, nv * lanes); may be D. No pointer needs an alignment.
    """

    def codegen(context, builder, signature, args):
        mr, nv, k, *operands = args
        return _emit_tiles(context, builder, c.dtype, mr, nv, k, _Operands(*operands))

    return kernel_signature(mr, nv, k, a, a_row, a_col, b, b_row, d, d_row, c, c_row), codegen


@intrinsic
def micro_kernel_indexed(typingctx, mr, nv, k, indices, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
    """Compute what `micro_kernel` does, with a reduction over the `k` indices (int32) of a list only.

    Indices for which A is zero in all rows can be left out: if B is finite, the results are the same, but for the sign
    of a zero.
    """

    def codegen(context, builder, signature, args):
        mr, nv, k, indices, *operands = args
        return _emit_tiles(context, builder, c.dtype, mr, nv, k, _Operands(*operands), indices=indices)

    return kernel_signature(mr, nv, k, indices, a, a_row, a_col, b, b_row, d, d_row, c, c_row), codegen


# Rows of B that `micro_kernel_in_place` takes best at a time: they and the sums of a tile stay in the L1 cache. B is
# prefetched so many panels ahead.
STREAM_ROWS, _PANELS_AHEAD = 8, 2
# And so many rows ahead where it takes another number of them.
_ROWS_AHEAD = 4


@intrinsic
def micro_kernel_in_place(typingctx, mr, n_panels, k, a, a_row, b, b_row, d, d_row, c, c_row, copy, copy_panel):
    """Compute C = D + A B for one tile of rows and a row-major B that comes from memory, one panel after the other.

    The bits are those of `micro_kernel` for each panel. STREAM_ROWS rows of B are read along, as they lie in memory:
    the processor sees such streams coming. Of another number, as of all rows, each is prefetched a few rows before.
    Many further tiles of rows had better use the copy.

    Parameters
    ----------
    mr : int64
        Rows of the tile, 1 to MR.
    n_panels : int64
        Panels of NV vectors, at least 1.
    k : int64
        Rows of B, at least 1.
    a, a_row : pointer, int64
        A is (mr, k), its rows contiguous.
    b, b_row, d, d_row, c, c_row
        As in `micro_kernel`, for n_panels * NV vectors in each row.
    copy, copy_panel : pointer, int64
        Becomes B: row after row of a panel, and the next panel `copy_panel` numbers on; 0 for no copy.
    """

    def codegen(context, builder, signature, args):
        mr, n_panels, k, a_, a_row, b, b_row, d, d_row, c_, c_row, copy, copy_panel = args
        vector = vector_type(context, c.dtype)
        step = INT64(NV * vector.count)

        def emit(number):
            tile = _Tile(builder, number + 1, NV, vector)

            def panel(carried):
                j, b, d, c, copy = carried
                operands = _Operands(a_, a_row, INT64(1), b, b_row, d, d_row, c, c_row)
                # Past the last panel, what is prefetched are the first ones of the next rows.
                later = builder.add(j, INT64(_PANELS_AHEAD))
                past = builder.icmp_signed(">=", later, n_panels)
                turn = builder.select(builder.icmp_signed("==", n_panels, INT64(1)), later, n_panels)
                over = builder.sub(builder.mul(b_row, INT64(STREAM_ROWS)), builder.mul(turn, step))
                ahead = builder.add(INT64(_PANELS_AHEAD * NV * vector.count), builder.select(past, over, INT64(0)))
                with builder.if_else(builder.icmp_signed("==", k, INT64(STREAM_ROWS))) as (all_rows, some):
                    with all_rows:
                        _emit_streamed_product(tile, operands, ahead)
                    with some:
                        _emit_product(tile, k, operands, rows_ahead=_ROWS_AHEAD)
                with builder.if_then(builder.icmp_signed("!=", copy_panel, INT64(0))):
                    _emit_copy(tile, k, b, b_row, copy)
                following = builder.add(j, INT64(1))
                places = [emit_offset(builder, place, step) for place in (b, d, c)]
                places.append(emit_offset(builder, copy, copy_panel))
                return [following, *places], builder.icmp_signed("<", following, n_panels)

            emit_loop(builder, "panel", [INT64(0), b, d, c_, copy], panel)

        emit_switch(builder, "far", builder.sub(mr, INT64(1)), MR, emit)
        return context.get_dummy_value()

    kinds = (mr, n_panels, k, a, a_row, b, b_row, d, d_row, c, c_row, copy, copy_panel)
    return kernel_signature(*kinds), codegen


# The most rows of `micro_kernel_few`, whose few chains of additions would not keep the FMA units busy: as many panels
# more are multiplied at once.
FEW_ROWS = 2


@intrinsic
def micro_kernel_few(typingctx, mr, k, a, a_row, a_col, b, b_row, panel, d, d_row, c, c_row):
    """Compute C = D + A B for some panels of B, side by side; the bits are those of `micro_kernel`.

    Parameters
    ----------
    mr : int64
        Rows, 1 to FEW_ROWS; the panels are `few_panels(mr)`.
    k, a, a_row, a_col, d, d_row, c, c_row
        As in `micro_kernel`.
    b, b_row, panel : pointer, int64, int64
        B, the row stride within a panel, and the numbers from one panel to the next.
    """

    def codegen(context, builder, signature, args):
        mr, k, a, a_row, a_col, b, b_row, panel, d, d_row, c, c_row = args
        vector = vector_type(context, signature.args[10].dtype)

        def emit(number):
            tile = _Tile(builder, number + 1, NV, vector)
            wide = _Tile(builder, number + 1, NV * few_panels(number + 1), vector)

            def add_products(carried):
                p, a, b, *sums = carried
                row = []
                for number in range(few_panels(wide.rows)):
                    row += tile.load_row(emit_offset(builder, b, builder.mul(panel, INT64(number))))
                following = builder.add(p, INT64(1))
                added = wide.multiply_add(sums, a, a_row, row)
                a, b = emit_offset(builder, a, a_col), emit_offset(builder, b, b_row)
                return [following, a, b, *added], builder.icmp_signed("<", following, k)

            _, _, _, *sums = emit_loop(builder, "few", [INT64(0), a, b, *wide.load(d, d_row)], add_products)
            wide.store(sums, c, c_row)

        emit_switch(builder, "few", builder.sub(mr, INT64(1)), FEW_ROWS, emit)
        return context.get_dummy_value()

    return kernel_signature(mr, k, a, a_row, a_col, b, b_row, panel, d, d_row, c, c_row), codegen


def few_panels(rows):
    """Return how many panels `micro_kernel_few` multiplies at once."""
    return 2 * FEW_ROWS // rows


def _prefetching_micro_kernel(*, for_write):
    @intrinsic
    def kernel(typingctx, mr, nv, k, lines, n_lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row):
        def codegen(context, builder, signature, args):
            mr, nv, k, lines, n_lines, *operands = args
            prefetch = _Prefetch(lines, n_lines, for_write)
            return _emit_tiles(context, builder, c.dtype, mr, nv, k, _Operands(*operands), prefetch=prefetch)

        return kernel_signature(mr, nv, k, lines, n_lines, a, a_row, a_col, b, b_row, d, d_row, c, c_row), codegen

    kernel.__doc__ = f"""Compute what `micro_kernel` does, and prefetch memory to {"write to" if for_write else "read"}.

    The pointer `lines` points at `n_lines` addresses (int64), at least one, of as many cache lines. The prefetches are
    spread evenly over the `k` steps, so that they do not hold up the product: step p prefetches the line
    p * n_lines // k, or the one before. Lines repeat where n_lines < k, and some are left out where n_lines > k.
    """
    return kernel


micro_kernel_prefetch = _prefetching_micro_kernel(for_write=False)
micro_kernel_prefetch_write = _prefetching_micro_kernel(for_write=True)


def kernel_signature(*kinds):
    """Return the signature of a kernel of pointers and integers."""
    return types.void(*(kind if isinstance(kind, types.CPointer) else types.int64 for kind in kinds))


def _emit_tiles(context, builder, scalar, mr, nv, k, operands, indices=None, prefetch=None):
    """Build the code of all tile shapes, and a jump to the one that is needed."""
    vector = vector_type(context, scalar)

    def emit(number):
        tile = _Tile(builder, number // NV + 1, number % NV + 1, vector)
        if indices is None:
            _emit_product(tile, k, operands, prefetch)
        else:
            _emit_indexed_product(tile, k, operands, indices)

    number = builder.add(builder.mul(builder.sub(mr, INT64(1)), INT64(NV)), builder.sub(nv, INT64(1)))
    emit_switch(builder, "tile", number, MR * NV, emit)
    return context.get_dummy_value()


class _Tile:
    """Builds the code of one tile shape: `rows` rows of `vectors` vectors."""

    def __init__(self, builder, rows, vectors, vector):
        self.builder, self.rows, self.vectors, self.vector = builder, rows, vectors, vector
        self.align = alignment(vector.element)

    def _place(self, base, stride, i, j):
        row = self.builder.mul(stride, INT64(i))
        place = emit_offset(self.builder, base, row, INT64(j * self.vector.count))
        return self.builder.bitcast(place, self.vector.as_pointer())

    def load(self, base, stride):
        """Load all its vectors from a matrix."""
        return [
            self.builder.load(self._place(base, stride, i, j), align=self.align)
            for i in range(self.rows)
            for j in range(self.vectors)
        ]

    def store(self, values, base, stride):
        """Store all its vectors to a matrix."""
        for number, value in enumerate(values):
            place = self._place(base, stride, *divmod(number, self.vectors))
            self.builder.store(value, place, align=self.align)

    def load_row(self, b):
        """Load a row of B."""
        return [self.builder.load(self._place(b, INT64(0), 0, j), align=self.align) for j in range(self.vectors)]

    def multiply_add(self, sums, a, a_row, row):
        """Add the outer product of a column of A and a row of B: one step of the reduction."""
        added = []
        for i in range(self.rows):
            place = emit_offset(self.builder, a, self.builder.mul(a_row, INT64(i)))
            value = emit_splat(self.builder, self.builder.load(place, align=self.align), self.vector.count)
            added += [
                emit_fma(self.builder, value, row[j], sums[i * self.vectors + j]) for j in range(self.vectors)
            ]  # fmt: skip
        return added


def _emit_product(tile, k, operands, prefetch=None, rows_ahead=0):
    """Build C = D + A B for one tile shape; the pointers into A and B move from step to step.

    With `rows_ahead`, so many rows of B ahead are prefetched.
    """
    builder = tile.builder
    if prefetch is not None:
        # n_lines / k as a fixed-point number, 32 bits of it after the point: no step needs a division.
        per_step = builder.udiv(builder.shl(prefetch.n_lines, INT64(32)), k)

    def step(carried):
        p, a, b, *sums = carried
        if prefetch is not None:
            number = builder.lshr(builder.mul(p, per_step), INT64(32))
            line = builder.load(builder.gep(prefetch.lines, [number]), align=8)
            emit_prefetch(builder, builder.inttoptr(line, BYTES), for_write=prefetch.for_write)
        row = tile.load_row(b)
        if rows_ahead:
            _emit_prefetch_row(tile, b, builder.mul(operands.b_row, INT64(rows_ahead)))
        added = tile.multiply_add(sums, a, operands.a_row, row)
        following = builder.add(p, INT64(1))
        a, b = emit_offset(builder, a, operands.a_col), emit_offset(builder, b, operands.b_row)
        return [following, a, b, *added], builder.icmp_signed("<", following, k)

    start = tile.load(operands.d, operands.d_row)
    _, _, _, *sums = emit_loop(builder, "tile", [INT64(0), operands.a, operands.b, *start], step)
    tile.store(sums, operands.c, operands.c_row)


def _emit_streamed_product(tile, operands, distance):
    """Build C = D + A B for one tile shape and STREAM_ROWS rows of B; prefetch what is `distance` numbers later."""
    builder = tile.builder
    rows = [emit_offset(builder, operands.b, builder.mul(operands.b_row, INT64(p))) for p in range(STREAM_ROWS)]
    for b in rows:
        _emit_prefetch_row(tile, b, distance)
    sums = tile.load(operands.d, operands.d_row)
    for p, b in enumerate(rows):
        sums = tile.multiply_add(sums, emit_offset(builder, operands.a, INT64(p)), operands.a_row, tile.load_row(b))
    tile.store(sums, operands.c, operands.c_row)


def _emit_prefetch_row(tile, b, distance):
    """Build the prefetch of as many numbers as a row of the tile has, `distance` numbers after b."""
    builder = tile.builder
    for j in range(0, tile.vectors * tile.vector.count, CACHE_LINE // tile.align):
        ahead = emit_offset(builder, b, builder.add(distance, INT64(j)))
        emit_prefetch(builder, builder.bitcast(ahead, BYTES))


def _emit_copy(tile, k, b, b_row, copy):
    """Build the copy of a panel of k rows of B. In the loop of the product the stores would hold up the loads of A."""
    builder, n = tile.builder, tile.vectors * tile.vector.count

    def step(carried):
        p, b, copy = carried
        tile.store(tile.load_row(b), copy, INT64(0))
        following = builder.add(p, INT64(1))
        places = emit_offset(builder, b, b_row), emit_offset(builder, copy, INT64(n))
        return [following, *places], builder.icmp_signed("<", following, k)

    emit_loop(builder, "copy", [INT64(0), b, copy], step)


def _emit_indexed_product(tile, k, operands, indices):
    """Build C = D + A B for one tile shape and a list of indices."""
    builder = tile.builder

    def step(carried):
        p, *sums = carried
        index = builder.zext(builder.load(builder.gep(indices, [p]), align=4), INT64)
        a = emit_offset(builder, operands.a, builder.mul(index, operands.a_col))
        b = emit_offset(builder, operands.b, builder.mul(index, operands.b_row))
        added = tile.multiply_add(sums, a, operands.a_row, tile.load_row(b))
        following = builder.add(p, INT64(1))
        return [following, *added], builder.icmp_signed("<", following, k)

    start = tile.load(operands.d, operands.d_row)
    _, *sums = emit_loop(builder, "tile", [INT64(0), *start], step)
    tile.store(sums, operands.c, operands.c_row)
