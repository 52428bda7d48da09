"""Matrix products of 8-bit codes on Hopper's tensor cores, scales and all that follows fused.

One warpgroup copies steps of both operands into a ring in shared memory, two multiply; blocks of
the output are dealt to the multiprocessors, which run as long as there are any. Pallas, Mosaic GPU.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from qdiffjax import _compat
from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.kernels.gpu.tiles import Tile

LINE = 128  # bytes of a swizzled line of shared memory
ROW, COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


class Taps(NamedTuple):
    """Rows of x that meet in one row of y: those of an image below it, `down` apart.

    number: of taps; down: rows of x from one to the next, a multiple of 8; inner, outer: rows of
    one image in y and in x, which is padded and so has more.
    """

    number: int
    down: int
    inner: int
    outer: int

    def first(self, row):
        """Return the row of x that the first tap meets for a row of y."""
        return row + (row // self.inner) * (self.outer - self.inner)


class Vectors(NamedTuple):
    """What finishes a sum: y = act(row * column * (sum - shift) + bias).

    row float32 [M], column float32 [N], shift int32 [N], bias float32 [N]; None where there is
    none.
    """

    row: Any
    column: Any
    shift: Any
    bias: Any


# Under jit, so that a network traces and lowers the kernel once for all layers of one shape.
@functools.partial(
    jax.jit, static_argnames=("act_fn", "out_dtype", "tile", "cores", "taps", "interpret")
)
def product(
    x: Array, w: Array, vectors: Vectors, *, act_fn, out_dtype, tile: Tile, cores: int,
    taps: Taps | None = None, interpret=None,
) -> Array:  # fmt: skip
    """Return act(row * column * (x w^T - shift) + bias) [M, N] for codes x [M, K], w [N, K].

    With taps, w is [N, taps * K] and y the sum over taps of the products with shifted rows of x:
    a convolution along one axis of padded images whose pixels are rows.

    Both operands int8 (sums int32 and exact) or 8-bit floats (sums float32, kept by the tensor
    cores to about 14 bits). 8-bit operands must both be contiguous along K: that is what the
    tensor cores read.

    Raises:
      ValueError: shapes that the tile does not divide.
    """
    (m, k), n = x.shape, w.shape[0]
    if taps is not None:
        m = m // taps.outer * taps.inner
    check_tile((m, n, k), tile)
    blocks = 2 if tile.multicast is not None else 1
    run = plgpu.kernel(
        functools.partial(
            _body, tile=tile, taps=taps, act_fn=act_fn, read=_compat.vector_loader(interpret)
        ),
        out_type=jax.ShapeDtypeStruct((m, n), out_dtype),
        grid=(cores // blocks,), grid_names=("blocks",), cluster=(blocks,),
        cluster_names=("cluster",), num_threads=3, thread_name="wg", interpret=interpret,
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
    )  # fmt: skip
    return run(x, w, vectors)


def check_tile(shape: tuple[int, int, int], tile: Tile) -> None:
    """Raise ValueError unless the tile divides [M, N, K]."""
    sizes = (*tile.cluster, tile.depth)
    require(
        all(n % t == 0 for n, t in zip(shape, sizes, strict=True)), "tile",
        got=f"{sizes} for [M, N, K] = {shape}", expected="divisors", remedy="pad",
    )  # fmt: skip


def _lines(bytes_: int, itemsize: int = 1):
    line = plgpu.find_swizzle(8 * bytes_)
    make: Any = plgpu  # whose newer classes look abstract to a type checker
    return make.TilingTransform((8, line // itemsize)), make.SwizzleTransform(line)


def _body(x, w, vectors: Vectors, out, *, tile: Tile, taps: Taps | None, act_fn, read) -> None:
    rows, columns = tile.part
    itemsize = jnp.dtype(out.dtype).itemsize
    width = math.gcd(columns, LINE // itemsize)
    pipeline = functools.partial(_pipeline, tile=tile, taps=taps, steps=x.shape[1] // tile.depth)
    nothing = lambda *_: None  # noqa: E731
    ring = pipeline(nothing, nothing, 0).get_allocations(x, w)
    ring_out = plgpu.SMEM(
        (2, 2, 64, width), out.dtype, transforms=_lines(width * itemsize, itemsize)
    )

    @functools.partial(pl.run_scoped, ring=ring, ring_out=ring_out, collective_axes="wg")
    def _(ring, ring_out):
        me = jax.lax.axis_index("wg")

        @plgpu.nd_loop(_num_blocks(out.shape, tile), collective_axes="blocks")
        def _(loop):
            row, column = _place(loop.index, out.shape, tile)
            mine = (row + me * rows, column) if tile.split == 0 else (row, column + me * columns)

            def context(multiply):
                def scope(sums):
                    multiply(sums)
                    _finish(sums[...], out, ring_out.at[me], vectors, mine, act_fn, read)

                kind = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
                pl.run_scoped(scope, plgpu.ACC((rows, columns), kind))

            def step(_, x_step, w_step, sums):
                a, b = x_step, w_step
                if tile.split == 0:
                    a = x_step.at[pl.ds(me * rows, rows)]
                else:
                    b = w_step.at[pl.ds(me * columns, columns)]
                plgpu.wgmma(sums, a, b.T)
                plgpu.wgmma_wait(tile.overlap)
                return sums

            whole = w.at[pl.ds(column, tile.columns)]
            images = x.at[pl.ds(row, tile.rows)] if taps is None else x
            pipeline(step, context, row)(images, whole, allocations=ring)

    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _pipeline(step, context, row, *, tile: Tile, taps: Taps | None, steps: int):
    """Return the steps along K of this block's rows; with taps x is whole, and so are steps along
    them.
    """

    def spec(height, shared, place):
        shape: Any = (height, tile.depth)
        if place:
            shape = tuple(map(pl.Element, shape))
        return plgpu.BlockSpec(
            shape, place or (lambda k: (0, k)), transforms=_lines(tile.depth),
            memory_space=plgpu.SMEM, delay_release=tile.overlap,
            collective_axes=("cluster",) if shared else (),
        )  # fmt: skip

    def below(k):
        assert taps is not None
        start = taps.first(row) + (k // steps) * taps.down
        return pl.multiple_of(start, 8), (k % steps) * tile.depth

    return plgpu.emit_pipeline_warp_specialized(
        step,
        grid=(steps * (taps.number if taps else 1),),
        memory_registers=40,
        in_specs=[
            spec(tile.rows, tile.multicast == 1, below if taps else None),
            spec(tile.columns, tile.multicast == 0, None),
        ],
        wg_axis="wg",
        num_compute_wgs=2,
        max_concurrent_steps=tile.stages,
        compute_context=context,
    )  # fmt: skip


def _num_blocks(shape, tile: Tile) -> tuple[int]:
    rows, columns = tile.cluster
    return ((shape[0] // rows) * (shape[1] // columns),)


def _place(index, shape, tile: Tile):
    """Return the first row and column of this block."""
    rows, columns = tile.cluster
    i, j = plgpu.planar_snake(
        index[0], (shape[0] // rows, shape[1] // columns), 0, tile.band
    )  # fmt: skip
    other = jax.lax.axis_index("cluster")
    row = i * rows + (other * tile.rows if tile.multicast == 0 else 0)
    column = j * columns + (other * tile.columns if tile.multicast == 1 else 0)
    return row, column


def _finish(sums, out, ring, vectors: Vectors, place, act_fn, read) -> None:
    """Scale, add, apply, round and write a block of sums, 64 rows by one line at a time."""
    width = ring.shape[-1]
    for i in range(sums.shape[0] // 64):
        for j in range(sums.shape[1] // width):
            at = (pl.ds(place[0] + 64 * i, 64), pl.ds(place[1] + width * j, width))
            part = sums[64 * i : 64 * (i + 1), width * j : width * (j + 1)]
            y = act_fn(_scaled(part, vectors, at, read)).astype(out.dtype)
            slot = ring.at[(i * (sums.shape[1] // width) + j) % 2]
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            slot[...] = y
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(slot, out.at[at])


def _scaled(part, vectors: Vectors, at, read):
    def along(v, axis):
        index, layout = at[axis], (ROW, COLUMN)[axis]
        values = read(v.at[index], layout)
        return jax.lax.broadcast_in_dim(values, part.shape, [axis])

    if vectors.shift is not None:
        part = part - along(vectors.shift, 1)
    y = part.astype(jnp.float32) * along(vectors.column, 1)
    if vectors.row is not None:
        y = y * along(vectors.row, 0)
    return y if vectors.bias is None else y + along(vectors.bias, 1)
