"""Products of codes against bfloat16, cuBLASLt and the machine: time, rate and error.

    python -m experiments.bench.kernels            minutes, on a Hopper GPU
    python -m experiments.bench.kernels --quick    tiny sizes anywhere, to see that it runs

Every case is checked against a float32 product of the numbers that its codes stand for (`error`,
relative, with the rounding of the bfloat16 result: 0.0017 is that alone). Then several products
with operands of their own run one after another in one program: for few tokens as many as a
network has layers, so that what it costs to start a kernel is what it costs in a network; beside
it, us alone is a call of its own for each. Medians over repeats.

"x bf16" is against the fastest bfloat16 of XLA here (two layouts of a matrix; sums that leave a
convolution as float32 or bfloat16), "x Lt" against torch's call of cuBLASLt with operands of the
same kind: `_int_mm`, which scales nothing, or `_scaled_mm`. Roofline: the longer of the flops at
the highest rate of that kind and the bytes at the bandwidth, both measured in this run on large
arrays. Weights are held as [N, K], as the tensor cores read 8 bits; a row says where not, and
transposes in every call. "x rounded" starts from bfloat16 and includes the rounding; static has
one constant scale, dynamic one for each token or image. What a kernel does not take is XLA's.

A case that fails keeps its error; after --time-limit the rest is "not reached".
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.kernels import cases as parts
from experiments.bench.kernels import torch_peer as peer
from experiments.bench.kernels.cases import Case, Problem
from experiments.harness import old_command as command
from experiments.harness import store, tables
from qdiffjax.kernels import backends


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    size: int = 4096
    tokens: int = 8192
    width: int = 1152
    few: tuple[int, ...] = (16, 1, 4)
    outputs: tuple[int, ...] = (4096, 14336)
    num_layers: int = 32
    images: tuple[str, ...] = ("16x32x640", "16x64x320", "8x16x1280")
    ceiling: int = 8192
    repeats: int = 5
    least_ms: float = 20.0
    time_limit: float = 900.0
    stall: float = 60.0


HELP = {
    "size": "side of the square product, and inputs of few tokens",
    "tokens": "of the products of DiT-XL/2: 32 images of 256",
    "width": "of its tokens",
    "few": "numbers of few tokens",
    "outputs": "of the products of few tokens",
    "num_layers": "products of few tokens in a row",
    "images": "of 3x3 convolutions, number x side x channels",
    "ceiling": "side of the product that measures the highest rate",
    "repeats": "of every timing",
    "least_ms": "of every repeat",
    "time_limit": "seconds after which nothing more begins",
    "stall": "seconds that the cases of one product may take to compile",
}
QUICK = {"size": 64, "tokens": 128, "width": 64, "few": (2,), "outputs": (64,), "num_layers": 2,
         "images": ("1x8x16",), "ceiling": 64, "repeats": 2, "least_ms": 1.0}  # fmt: skip


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    for text in config.images:
        image(text)
    if min(config.size, config.tokens, config.width, config.num_layers, config.repeats) < 1:
        raise ValueError(f"expected sizes and repeats of at least 1, got {config}.")


def image(text: str) -> tuple[int, int, int]:
    """Read "number x side x channels"."""
    numbers = text.split("x")
    if len(numbers) != 3 or not all(n.isdigit() for n in numbers):
        raise ValueError(f"images: got {text!r}, expected number x side x channels, as 16x32x640.")
    batch, side, channels = map(int, numbers)
    return batch, side, channels


def problems(config: Config) -> dict[str, tuple[Problem, Callable]]:
    """What is multiplied, by importance, and the function that lists the ways."""
    n = config.size
    wide = 4 * config.width
    dit = [(config.tokens, wide, config.width), (config.tokens, config.width, wide),
           (config.tokens, 3 * config.width, config.width)]  # fmt: skip
    matrix = lambda m, n, k: Problem((m, k), (k, n), 2)  # noqa: E731
    found = {f"{n}x{n} to {n}": (matrix(n, n, n), parts.many)}
    first, convs = {}, {}
    for m, n in itertools.product(config.few, config.outputs):
        p = Problem((m, config.size), (config.size, n), config.num_layers)
        first[f"{m}x{config.size} to {n}"] = p, parts.few
    for text in config.images:
        batch, side, ch = image(text)
        convs[f"conv {text}"] = Problem((batch, side, side, ch), (3, 3, ch, ch), 2), parts.many
    ends = list(first.items()), list(convs.items())
    found |= dict(ends[1][:1] + ends[0][:2])
    found |= {f"{m}x{k} to {n}": (matrix(m, n, k), parts.many) for m, n, k in dit}
    return found | dict(ends[1][1:] + ends[0][2:])


def ceilings(config: Config) -> list[Callable[[], Case]]:
    """What moves most bytes, and multiplies fastest."""
    n = config.ceiling
    square, length = Problem((n, n), (n, n), 1), 4 * n * n
    one = lambda x: x + 1  # noqa: E731
    return [
        lambda: Case("add 1 to float32", "bandwidth", one, [(jnp.ones(length),)], None, 0.0,
                     8.0 * length),
        lambda: parts.floats(square, "bf16, XLA"),
        lambda: parts.codes(square, "int8", parts.INT8, parts.INT8),
        lambda: parts.codes(square, "e4m3", parts.E4M3FN, parts.E4M3FN),
    ]  # fmt: skip


def group(ways: list[Callable[[], Case]], config: Config, left: Callable[[], float]):
    """Compile all ways side by side, then time one after another: (arrays, rows)."""
    cases = [way() for way in ways]
    jobs = [functools.partial(parts.compile_case, case) for case in cases]
    compiled = parts.with_limit(jobs, max(1.0, min(config.stall, left())))
    arrays, rows = {}, []
    for case, found in zip(cases, compiled, strict=True):
        row = {"name": case.name, "kind": case.kind, "is_base": case.is_base,
               "flops": case.flops, "bytes": case.bytes}  # fmt: skip
        try:
            if isinstance(found, Exception):
                raise found
            arrays[case.name.replace("/", " ")], more = parts.measure(
                found, config.repeats, config.least_ms / 1e3
            )
            row |= more
        except Exception as error:  # whatever a compiler says belongs into the table
            row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        rows.append(row)
    return arrays, rows


def run(config: Config, *, progress: bool = False, keep=None, kept=None):
    """Return seconds [repeats] by "<product>/<way>", and a row for each."""
    check(config)
    start = time.monotonic()
    listed = {"ceilings": (None, lambda _: ceilings(config)), **problems(config)}

    def left() -> float:
        return config.time_limit - (time.monotonic() - start)

    def measure(name):
        problem, ways = listed[name]
        if left() <= 0:
            return {}, {"rows": [{"name": "all", "failed": "not reached"}]}
        arrays, rows = group(ways(problem), config, left)
        return arrays, {"rows": rows + peer.rows(name, problem, config)}

    def keep_if_done(name, mark, arrays, row):
        if keep and arrays:
            keep(name, mark, arrays, row)

    mark = store.fingerprint(dataclasses.asdict(config), jax.__version__, backends.default().name)
    found = command.parts(listed, measure, mark, progress=progress, keep=keep_if_done, kept=kept)
    return command.by_part(found), summary({name: row["rows"] for name, (_, row) in found.items()})


def summary(groups: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of all products, with ratios and rooflines."""
    top = rates(groups["ceilings"])
    rows = []
    for name, group_rows in groups.items():
        base = min((r["us"] for r in group_rows if r.get("is_base") and "us" in r), default=None)
        lt = {r["kind"]: r["us"] for r in group_rows if r.get("is_peer") and "us" in r}
        for row in group_rows:
            more: dict[str, Any] = {"product": name}
            if "us" in row:
                peer_us = lt.get(row["kind"])
                more["over_bf16"] = None if base is None else base / row["us"]
                more["over_cublaslt"] = None if peer_us is None else peer_us / row["us"]
                more["roofline_us"] = roofline(row, top)
            rows.append(more | row)
    return rows


def rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Highest rates by kind of operands: flops per us, and bytes per us as "bandwidth"."""
    best: dict[str, float] = {}
    for row in rows:
        if "us" in row:
            rate = row["bytes" if row["kind"] == "bandwidth" else "flops"] / row["us"]
            best[row["kind"]] = max(rate, best.get(row["kind"], 0.0))
    return best


def roofline(row: dict[str, Any], top: dict[str, float]) -> float | None:
    """The least microseconds that the measured rates allow, None where one is missing."""
    if row["kind"] not in top or "bandwidth" not in top:
        return None
    times = [row["bytes"] / top["bandwidth"]]
    if row["flops"]:
        times.append(row["flops"] / top[row["kind"]])
    return float(np.max(times))


COLUMNS = (
    ("us", "us", 4), ("alone", "us_alone", 3), ("TFLOP/s", "tflops", 4), ("GB/s", "gbs", 4),
    ("x bf16", "over_bf16", 3), ("x Lt", "over_cublaslt", 3), ("roofline", "roofline_us", 3),
    ("error", "error", 2),
)  # fmt: skip


def print_rows(rows, *, file=None) -> None:
    """Print a table with a line for each way of each product."""
    screen, table = tables.console(file), tables.blank()
    for i, title in enumerate(("", *(title for title, *_ in COLUMNS))):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    last = None
    for row in rows:
        if row["product"] != last:
            last = row["product"]
            table.add_row(last)
        cells = ("-" if row.get(key) is None else tables.number(row[key], digits)
                 for _, key, digits in COLUMNS)  # fmt: skip
        table.add_row("  " + row["name"], *cells)
    screen.print(table)
    for row in rows:
        if "failed" in row:
            screen.print(f"{row['product']}, {row['name']}: {row['failed']}", markup=False)


EXPERIMENT = command.Experiment(
    "bench_kernels", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, quick=QUICK
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)
