"""Cases of `experiments.bench.kernels`: what is multiplied, by whom, and how it is timed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.products import Product, multiply
from experiments.harness import timing
from qdiffjax import kernels
from qdiffjax.kernels import FLOAT8, XLA, narrow, quantized
from qdiffjax.quant import E4M3FN, E5M2, ActivationGrid, IntFormat, QTensor, dequantize

INT8, INT4 = IntFormat(8), IntFormat(4)
BF16, SCALE = jnp.bfloat16, np.float32(0.03)
STATIC, DYNAMIC = ActivationGrid(INT8, SCALE), ActivationGrid(INT8)


class Case(NamedTuple):
    """One way to compute a product.

    name: of its row; kind: of its operands, a ceiling's and a peer's; fn: (*operands) -> y; sets:
    operands of products that run one after another; expected: () -> float32 y of the first set;
    flops, bytes: of one product, each operand and the result moved once; is_base: the others are
    compared with the fastest of these; alone: also timed as calls of their own.
    """

    name: str
    kind: str
    fn: Callable[..., Any]
    sets: list[tuple]
    expected: Callable[[], Any] | None
    flops: float
    bytes: float
    is_base: bool = False
    alone: bool = False


@functools.partial(jax.jit, static_argnums=(1, 2))
def drawn(seed: int, shape, format):
    """Draw codes of a format, or bfloat16 numbers where it is None."""
    key = jax.random.key(seed)
    if format is None:
        return jax.random.normal(key, shape, BF16)
    if isinstance(format, IntFormat):
        codes = jax.random.randint(key, shape, format.low, format.high + 1, jnp.int8)
        return codes.astype(jnp.int4) if format.bits <= 4 else codes
    numbers = jax.random.normal(key, shape, jnp.float32).astype(FLOAT8[format])
    return jax.lax.bitcast_convert_type(numbers, jnp.uint8)


@functools.partial(jax.jit, static_argnums=1)
def scales(seed: int, n: int):
    """Draw positive scales [n]."""
    return jax.random.uniform(jax.random.key(seed), (n,), jnp.float32, 0.5, 1.5) / 100


exact = jax.jit(functools.partial(multiply, precision="highest"))


def floats(
    p: Product, num: int, name: str, *, dtype=jnp.float32, is_transposed=False, alone=False
) -> Case:
    """Return products of bfloat16 numbers, which all others are compared with."""
    shape = p.w[::-1] if is_transposed else tuple(p.w)
    sets = [(drawn(2 * i, p.x, None), drawn(2 * i + 1, shape, None)) for i in range(num)]

    def ordered(w):
        return w.T if is_transposed else w

    def expected():
        x, w = (a.astype(jnp.float32) for a in (sets[0][0], ordered(sets[0][1])))
        return exact(x, w)

    return Case(name, "bf16", lambda x, w: multiply(x, ordered(w), dtype).astype(BF16), sets,
                expected, p.flops, p.bytes(16, 16), is_base=True, alone=alone)  # fmt: skip


def codes(
    p: Product, num: int, name: str, x_format, w_format, *,
    activation: ActivationGrid | None = None, path=None, is_transposed=True, alone=False,
) -> Case:  # fmt: skip
    """Return products of `kernels`: x is codes, or numbers, rounded or left (no format)."""
    held = x_format if activation is None else None
    n = p.w[-1]
    shape = (n, int(np.prod(p.w[:-1]))) if is_transposed else p.w
    sets = [(drawn(3 * i, p.x, held), drawn(3 * i + 1, shape, w_format), scales(3 * i + 2, n))
            for i in range(num)]  # fmt: skip
    call = kernels.matmul if len(p.x) == 2 else kernels.conv

    def operands(x, w, scale):
        if held is not None:
            x = QTensor(x, jnp.full((1,) * x.ndim, SCALE), None, held)
        w = w.T.reshape(p.w) if is_transposed else w  # the compiler moves nothing
        return x, narrow(QTensor(w, scale.reshape((1,) * (w.ndim - 1) + (n,)), None, w_format))

    def fn(*args):
        return call(*operands(*args), activation=activation, out_dtype=BF16, path=path)

    def expected():
        x, q = operands(*sets[0])
        if activation is not None:
            x = quantized(x, activation, tuple(range(1, x.ndim)))
        x = dequantize(x) if isinstance(x, QTensor) else x
        return exact(x.astype(jnp.float32), dequantize(q).astype(jnp.float32))

    bits = 16 if held is None else 8
    width = w_format.bits if isinstance(w_format, IntFormat) else 8
    kind = "bf16" if x_format is None else "int8" if isinstance(x_format, IntFormat) else "fp8"
    return Case(name, kind, fn, sets, expected, p.flops, p.bytes(bits, width), alone=alone)


def many(p: Product, num: int = 2) -> list[Callable[[], Case]]:
    """List ways of products of many tokens, or of convolutions; each is made when called."""
    ways = [
        lambda: floats(p, num, "bf16, XLA"),
        lambda: floats(p, num, "bf16, XLA, w held as [N, K]", is_transposed=True),
        lambda: codes(p, num, "int8", INT8, INT8),
        lambda: codes(p, num, "int8, x rounded, static", INT8, INT8, activation=STATIC),
        lambda: codes(p, num, "int8, x rounded, dynamic", INT8, INT8, activation=DYNAMIC),
        lambda: codes(p, num, "e4m3", E4M3FN, E4M3FN),
        lambda: codes(p, num, "int8, XLA", INT8, INT8, path=XLA),
        lambda: codes(
            p, num, "e4m3, x rounded, dynamic", E4M3FN, E4M3FN, activation=ActivationGrid(E4M3FN)
        ),
        lambda: codes(p, num, "e5m2", E5M2, E5M2),
        lambda: codes(p, num, "int8, w held as [K, N]", INT8, INT8, is_transposed=False),
    ]
    if len(p.x) == 2:
        return ways
    sums = lambda: floats(p, num, "bf16, XLA, sums leave as bf16", dtype=BF16)  # noqa: E731
    return [ways[0], sums, *ways[2:7]]


def few(p: Product, num: int) -> list[Callable[[], Case]]:
    """List ways of products of few tokens with codes of the weights alone."""
    return [
        lambda: floats(p, num, "bf16, XLA", alone=True),
        lambda: floats(p, num, "bf16, XLA, w held as [N, K]", is_transposed=True),
        lambda: codes(p, num, "W4A16", None, INT4, alone=True),
        lambda: codes(p, num, "W8A16", None, INT8, alone=True),
        lambda: codes(p, num, "W4A16, w held as [K, N]", None, INT4, is_transposed=False),
    ]


def chained(fn):
    """Run fn on every set, one after another, as the layers of a network."""

    def run(sets):
        ys: list = []
        for args in sets:
            if ys:
                args, ys[-1] = jax.lax.optimization_barrier((args, ys[-1]))
            ys.append(fn(*args))
        return ys

    return run


def compile_case(case: Case) -> tuple[Callable, Callable | None]:
    """Compile what is timed: all products, and one of them if it is timed alone."""
    together = jax.jit(chained(case.fn)).lower(case.sets).compile()
    return together, jax.jit(case.fn).lower(*case.sets[0]).compile() if case.alone else None


def measure(case: Case, compiled, repeats: int, least: float) -> dict[str, Any]:
    """Check the first product, then time: columns, with `seconds` [repeats] of one product.

    Raises:
      Exception: the one that `compiled` is, where the compiler failed.
    """
    together, single = timing.result(compiled)
    columns: dict[str, Any] = {}
    y = together(case.sets)[0]
    if case.expected is not None:
        expected = case.expected()
        norm = jnp.linalg.norm(expected)
        columns["error"] = float(jnp.linalg.norm(y.astype(jnp.float32) - expected) / norm)
    seconds = timing.repeat(lambda: together(case.sets), repeats, least) / len(case.sets)
    columns |= {"seconds": seconds, **rates(case, seconds)}
    if single is not None:
        alone = timing.repeat(lambda: [single(*args) for args in case.sets], repeats, least)
        columns["us_alone"] = 1e6 * float(np.median(alone)) / len(case.sets)
    return columns


def rates(case: Case, seconds: np.ndarray) -> dict[str, float]:
    """Return columns of a product that takes these seconds."""
    us = 1e6 * float(np.median(seconds))
    return {"us": us, "tflops": case.flops / us / 1e6, "gbs": case.bytes / us / 1e3}


def row_of(case: Case, job: Callable[[], dict[str, Any]], **flags: bool) -> dict[str, Any]:
    """Return the row of a case with the columns that a job measures, or with its error."""
    row = {"name": case.name, "kind": case.kind, "flops": case.flops, "bytes": case.bytes, **flags}
    try:
        return row | job()
    except Exception as error:  # whatever a compiler says belongs into the table
        return row | {"failed": timing.words(error)}


@functools.cache
def torch() -> Any:
    """Return torch if it has a GPU, else None."""
    try:
        import torch as peer
    except ImportError:
        return None
    return peer if peer.cuda.is_available() else None


def torch_rows(product: Product, repeats: int, least: float) -> list[dict[str, Any]]:
    """Return rows of cuBLASLt, as torch calls it, for many tokens on a GPU; none elsewhere."""
    if len(product.x) != 2 or product.x[0] <= 16 or torch() is None:
        return []
    wait = lambda _: torch().cuda.synchronize()  # noqa: E731

    def measure(case: Case) -> dict[str, float]:
        return rates(case, timing.repeat(case.fn, repeats, least, wait=wait))

    return [row_of(case, functools.partial(measure, case), is_peer=True)
            for case in torch_cases(product)]  # fmt: skip


def torch_cases(p: Product) -> list[Case]:
    """List the calls that torch has, on data of its own."""
    t = torch()
    (m, k), n = p.x, p.w[1]
    x, w = (t.randn(*shape, device="cuda") for shape in ((m, k), (n, k)))
    xb, wb = x.bfloat16(), w.bfloat16()
    xi, wi = ((30 * a).clamp(-127, 127).to(t.int8) for a in (x, w))
    x8, w8 = (a.to(t.float8_e4m3fn) for a in (x, w))
    one = t.tensor(1.0, device="cuda")
    scaled = functools.partial(t._scaled_mm, x8, w8.t(), one, one, out_dtype=t.bfloat16)

    def case(name: str, kind: str, bits: int, fn: Callable) -> Case:
        return Case(name, kind, fn, [], None, p.flops, p.bytes(bits, bits))

    return [
        case("bf16, torch", "bf16", 16, lambda: xb @ wb.t()),
        case("int8, torch _int_mm", "int8", 8, lambda: t._int_mm(xi, wi.t())),
        case("e4m3, torch _scaled_mm", "fp8", 8, functools.partial(scaled, use_fast_accum=True)),
    ]
