"""cuBLASLt, as torch calls it, beside the kernels of `experiments.bench.kernels`."""

import functools
from collections.abc import Callable
from typing import Any

from experiments.bench.kernels import cases
from experiments.bench.kernels.cases import Case
from experiments.bench.products import Product
from experiments.harness import timing


@functools.cache
def torch() -> Any:
    """The peer with a GPU, or None."""
    try:
        import torch as peer
    except ImportError:
        return None
    return peer if peer.cuda.is_available() else None


def rows(problem: Product, repeats: int, least: float) -> list[dict[str, Any]]:
    """Rows of a product of many tokens; none for other things or machines."""
    if len(problem.x) != 2 or problem.x[0] <= 16 or torch() is None:
        return []
    wait = lambda _: torch().cuda.synchronize()  # noqa: E731

    def measure(case: Case) -> dict[str, float]:
        return cases.rates(case, timing.repeat(case.fn, repeats, least, wait=wait))

    return [cases.row_of(case, functools.partial(measure, case), is_peer=True)
            for case in products(problem)]  # fmt: skip


def products(p: Product) -> list[Case]:
    """Every call that torch has, on data of its own."""
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
