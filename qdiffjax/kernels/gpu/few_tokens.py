"""Real tokens times codes, for few tokens: what counts is how fast the codes arrive from memory.

Codes become bfloat16 in registers, two to an instruction, and multiply on the tensor cores. Every
block takes some channels and all of K, in sections whose sums do not wait for one another, so that
one kernel does it all. Pallas, Triton.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from qdiffjax._checks import require
from qdiffjax._typing import Array

MOST_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Stripe:
    """How the codes [N, K] are cut.

    Attributes:
      channels: of one block.
      depth: bytes of codes of one step of one section.
      sections: of K, summed side by side.
      parts: of K, summed by blocks of their own, whose sums a second kernel adds.
      warps: of one block.
      stages: steps that are on their way at once.
    """

    channels: int = 32
    depth: int = 128
    sections: int = 2
    parts: int = 1
    warps: int = 4
    stages: int = 4

    def divides(self, n: int, num_bytes: int) -> bool:
        """Whether channels and bytes of a row are multiples of a block's."""
        return n % self.channels == 0 and num_bytes % (self.depth * self.sections * self.parts) == 0


def choose(m: int, n: int, k: int, dtype) -> Stripe | None:
    """Return the stripe for m tokens, or None where none divides N and K."""
    num_bytes = k // 2 if dtype == jnp.int4 else k
    depths = (128, 64, 32) if m <= 32 else (64, 32)
    most = 4 if m <= 16 and dtype != jnp.int4 else 2
    for sections, depth in itertools.product((most, 2, 1), depths):
        stripe = Stripe(depth=depth, sections=sections)
        if k % 2 == 0 and stripe.divides(n, num_bytes):
            return stripe
    return None


# Under jit, so that a network traces and lowers the kernel once for all layers of one shape.
@functools.partial(jax.jit, static_argnames=("act_fn", "out_dtype", "stripe"))
def product(
    x: Array, w: Array, scale: Array, bias: Array | None, *, act_fn, out_dtype, stripe: Stripe
) -> Array:
    """Return act(scale * (x w^T) + bias) [M, N], sums float32.

    Args:
      x: bfloat16 [M, K], M at most 64.
      w: codes int8 or int4 [N, K].
      scale, bias: float32 [N]; None for no bias.
      act_fn: elementwise.
      out_dtype: of the result.
      stripe: how w is cut.

    Raises:
      ValueError: shapes that the stripe does not divide.
    """
    (m, k), n = x.shape, w.shape[0]
    is_paired = w.dtype == jnp.int4
    if is_paired:
        w, x = _paired(w, jnp.int8), _paired(x, jnp.int32)
    require(
        m <= MOST_TOKENS and stripe.divides(n, w.shape[1]), "stripe",
        got=f"{stripe} for [M, N, K] = {m, n, k}", expected="divisors",
        remedy="leave the stripe out for one that divides",
    )  # fmt: skip
    finish = functools.partial(_finished, act_fn=act_fn, dtype=out_dtype)
    y = pl.pallas_call(
        functools.partial(_body, is_paired=is_paired, stripe=stripe, finish=finish),
        out_shape=jax.ShapeDtypeStruct(
            (stripe.parts, m, n), out_dtype if stripe.parts == 1 else jnp.float32
        ),
        grid=(n // stripe.channels, stripe.parts),
        compiler_params=plt.CompilerParams(num_warps=stripe.warps, num_stages=stripe.stages),
    )(x, w, scale, *(() if bias is None else (bias,)))
    return y[0] if stripe.parts == 1 else finish(y.sum(0), scale, bias)


def _paired(a: Array, dtype) -> Array:
    """Return the neighbours along the last axis as one number: the same bytes."""
    return jax.lax.bitcast_convert_type(a.reshape(*a.shape[:-1], -1, 2), dtype)


def _finished(sums, scale, bias, *, act_fn, dtype):
    y = sums * scale[None]
    return act_fn(y if bias is None else y + bias[None]).astype(dtype)


def _body(x, w, scale, *rest, is_paired: bool, stripe: Stripe, finish) -> None:
    out, bias = rest[-1], rest[0] if len(rest) > 1 else None
    channels = pl.ds(pl.program_id(0) * stripe.channels, stripe.channels)
    m, span = x.shape[0], w.shape[1] // stripe.parts
    tokens = max(16, pl.next_power_of_2(m))
    is_token = (jnp.arange(tokens) < m)[:, None]
    first, length = pl.program_id(1) * span, span // stripe.sections

    def step(k, sums):
        new: list = []
        for section in range(stripe.sections):
            at = pl.ds(first + section * length + k * stripe.depth, stripe.depth)
            mask = jnp.broadcast_to(is_token, (tokens, stripe.depth))
            x_step = plt.load(x.at[pl.ds(0, tokens), at], mask=mask, other=0)
            w_step = plt.load(w.at[channels, at])
            for a, b in _halves(x_step, w_step) if is_paired else [(x_step, w_step)]:
                new.append(sums[len(new)] + _dot(a, b.astype(a.dtype)))
        return tuple(new)

    zeros = (jnp.zeros((tokens, stripe.channels), jnp.float32),)
    count = stripe.sections * (2 if is_paired else 1)
    sums = sum(jax.lax.fori_loop(0, length // stripe.depth, step, zeros * count))
    if stripe.parts == 1:
        sums = finish(sums, scale[channels], None if bias is None else bias[channels])
    mask = jnp.broadcast_to(is_token, sums.shape)
    plt.store(out.at[pl.program_id(1), pl.ds(0, tokens), channels], sums, mask=mask)


def _dot(a, b):
    dims = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _halves(x, w):
    """Return the even and odd places of K: x from pairs of bfloat16, w from pairs of codes in a
    byte.
    """
    for odd in (0, 1):
        pick = f"prmt.b32 $0, $1, $2, {('0x5410', '0x7632')[odd]};"
        yield (
            _asm(pick, x, "=r,r,r", 2),
            _asm(_WIDEN.replace("SHIFT", str(4 * odd)), w, "=r,=r,r", 4),
        )


def _asm(code: str, a, constraints: str, pack: int):
    shape = jax.ShapeDtypeStruct(a.shape, jnp.bfloat16)
    (y,) = plt.elementwise_inline_asm(
        code, args=[a], constraints=constraints, pack=pack, result_shape_dtypes=[shape]
    )
    return y


# Four bytes to four bfloat16: a code of 4 bits, its sign bit flipped, is the end of the mantissa
# of 136 + code; then 136 goes.
_WIDEN = """{
.reg .b32 s, one, away, low, high;
shr.u32 s, $2, SHIFT;
prmt.b32 low, s, 0, 0x4140;
prmt.b32 high, s, 0, 0x4342;
lop3.b32 low, low, 0x000F000F, 0x43084308, 0x6a;
lop3.b32 high, high, 0x000F000F, 0x43084308, 0x6a;
mov.b32 one, 0x3F803F80;
mov.b32 away, 0xC308C308;
fma.rn.bf16x2 $0, low, one, away;
fma.rn.bf16x2 $1, high, one, away;
}"""
