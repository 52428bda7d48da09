"""cuBLASLt, as torch calls it, beside the kernels of `experiments.bench.kernels`."""

import functools
import time
from typing import Any

import numpy as np

from experiments.bench.kernels.cases import Problem


@functools.cache
def torch() -> Any:
    """The peer with a GPU, or None."""
    try:
        import torch as peer
    except ImportError:
        return None
    return peer if peer.cuda.is_available() else None


def rows(name: str, problem: Problem | None, config) -> list[dict[str, Any]]:
    """Rows of a product of many tokens or of the ceilings; none for other things or machines."""
    n = config.ceiling
    problem = Problem((n, n), (n, n), 1) if name == "ceilings" else problem
    if problem is None or len(problem.x) != 2 or problem.x[0] <= 16 or torch() is None:
        return []
    return [_row(kind, title, fn, problem, config) for kind, title, fn in calls(problem)]


def calls(problem: Problem):
    """(kind, name, function) of every call."""
    t = torch()
    (m, k), n = problem.x, problem.w[1]
    x, w = (t.randn(*shape, device="cuda") for shape in ((m, k), (n, k)))
    xb, wb = x.bfloat16(), w.bfloat16()
    xi, wi = ((30 * a).clamp(-127, 127).to(t.int8) for a in (x, w))
    x8, w8 = (a.to(t.float8_e4m3fn) for a in (x, w))
    one = t.tensor(1.0, device="cuda")
    scaled = functools.partial(t._scaled_mm, x8, w8.t(), one, one, out_dtype=t.bfloat16)
    return [
        ("torch bf16", "bf16, torch", lambda: xb @ wb.t()),
        ("int8", "int8, torch _int_mm", lambda: t._int_mm(xi, wi.t())),
        ("fp8", "e4m3, torch _scaled_mm", functools.partial(scaled, use_fast_accum=True)),
    ]


def _row(kind: str, name: str, fn, problem: Problem, config) -> dict[str, Any]:
    bits = 16 if kind == "torch bf16" else 8
    kind = "bf16" if kind == "torch bf16" else kind
    row: dict[str, Any] = {"name": name, "kind": kind, "is_peer": True, "flops": problem.flops,
           "bytes": problem.bytes(bits, bits)}  # fmt: skip
    try:
        us = 1e6 * _seconds(fn, config.repeats, config.least_ms / 1e3)
    except Exception as error:  # calls without a promise: versions of torch differ
        return row | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return row | {"us": us, "tflops": row["flops"] / us / 1e6, "gbs": row["bytes"] / us / 1e3}


def _seconds(fn, repeats: int, least: float) -> float:
    t = torch()
    for _ in range(3):
        fn()
    t.cuda.synchronize()
    start = time.perf_counter()
    fn()
    t.cuda.synchronize()
    num = int(np.clip(least / (time.perf_counter() - start), 1, 300))
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(num):
            fn()
        t.cuda.synchronize()
        found.append((time.perf_counter() - start) / num)
    return float(np.median(found))
