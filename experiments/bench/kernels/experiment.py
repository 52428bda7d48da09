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

from experiments.bench.kernels import cases
from experiments.bench.kernels.cases import Case
from experiments.bench.products import Product
from experiments.harness import command, timing
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import results
from qdiffjax._checks import require
from qdiffjax.kernels import backends


def image(text: str) -> tuple[int, int, int]:
    """Read "number x side x channels"."""
    numbers = text.split("x")
    require(len(numbers) == 3 and all(n.isdigit() for n in numbers), "images", got=repr(text),
            expected="number x side x channels, as 16x32x640",
            remedy="write it in that form")  # fmt: skip
    batch, side, channels = map(int, numbers)
    return batch, side, channels


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    size: int = option(4096, "Side of the square product, and inputs of few tokens.", least=1)
    tokens: int = option(
        8192, "Tokens of the products of DiT-XL/2: 32 images have 256 each.", least=1
    )
    width: int = option(1152, "Width of these tokens.", least=1)
    few: tuple[int, ...] = option((16, 1, 4), "Numbers of few tokens.", least=1)
    outputs: tuple[int, ...] = option(
        (4096, 14336), "Outputs of the products of few tokens.", least=1
    )
    num_layers: int = option(32, "Number of products of few tokens in a row.", least=1)
    images: tuple[str, ...] = option(
        ("16x32x640", "16x64x320", "8x16x1280"),
        "Images of 3x3 convolutions, number x side x channels.", each=image,
    )  # fmt: skip
    ceiling: int = option(8192, "Side of the product that measures the highest rate.", least=1)
    repeats: int = option(5, "Number of repetitions of each timing.", least=1)
    least_ms: float = option(20.0, "Least milliseconds of each repetition.", above=0)
    time_limit: float = option(900.0, "Seconds after which nothing more begins.", above=0)
    stall: float = option(
        60.0, "Seconds that the cases of one product may take to compile.", above=0
    )


QUICK = {"size": 64, "tokens": 128, "width": 64, "few": (2,), "outputs": (64,), "num_layers": 2,
         "images": ("1x8x16",), "ceiling": 64, "repeats": 2, "least_ms": 1.0}  # fmt: skip


def products(config: Config) -> dict[str, tuple[Product, Callable]]:
    """Return what is multiplied, by importance, and the function that lists the ways."""

    def matrices(m, k, n, ways=cases.many):
        return f"{m}x{k} to {n}", (Product((m, k), (k, n)), ways)

    size, width, wide = config.size, config.width, 4 * config.width
    in_layers = functools.partial(cases.few, num=config.num_layers)
    few = [matrices(m, size, n, in_layers)
           for m, n in itertools.product(config.few, config.outputs)]  # fmt: skip
    dit = [matrices(config.tokens, *shape)
           for shape in ((width, wide), (wide, width), (width, 3 * width))]  # fmt: skip
    images = {text: image(text) for text in config.images}
    convs = [(f"conv {text}", (Product((b, side, side, c), (3, 3, c, c)), cases.many))
             for text, (b, side, c) in images.items()]  # fmt: skip
    square = matrices(size, size, size)
    return dict([square, *convs[:1], *few[:2], *dit, *convs[1:], *few[2:]])


def ceilings(square: Product) -> list[Callable[[], Case]]:
    """List what moves most bytes, and multiplies fastest."""
    length = 4 * square.outputs
    return [
        lambda: Case("add 1 to float32", "bandwidth", lambda x: x + 1, [(jnp.ones(length),)], None,
                     0.0, 8.0 * length),
        lambda: cases.floats(square, 1, "bf16, XLA"),
        lambda: cases.codes(square, 1, "int8", cases.INT8, cases.INT8),
        lambda: cases.codes(square, 1, "e4m3", cases.E4M3FN, cases.E4M3FN),
    ]  # fmt: skip


def effort(config: Config) -> tuple[int, float]:
    """Return the number of repetitions of a timing, and the seconds that each takes at least."""
    return config.repeats, config.least_ms / 1e3


def group(ways: list[Callable[[], Case]], config: Config, left: float):
    """Compile all ways side by side, then time one after another: (arrays, rows)."""
    made = [way() for way in ways]
    jobs = [functools.partial(cases.compile_case, case) for case in made]
    compiled = timing.with_limit(jobs, max(1.0, min(config.stall, left)))
    arrays, rows = {}, []
    for case, programs in zip(made, compiled, strict=True):
        measure = functools.partial(cases.measure, case, programs, *effort(config))
        rows.append(cases.row_of(case, measure, is_base=case.is_base))
        if "seconds" in rows[-1]:
            arrays[case.name.replace("/", " ")] = rows[-1].pop("seconds")
    return arrays, rows


def run(config: Config, *, progress: bool = False, keep=None, kept=None):
    """Return seconds [repeats] by "<product>/<way>", and a row for each."""
    end = time.monotonic() + config.time_limit
    square = Product((config.ceiling,) * 2, (config.ceiling,) * 2)
    listed = {"ceilings": (square, ceilings), **products(config)}

    def measure(name):
        problem, ways = listed[name]
        left = end - time.monotonic()
        if left <= 0:
            return {}, {"rows": [{"name": "all", "failed": "not reached"}]}
        arrays, rows = group(ways(problem), config, left)
        return arrays, {"rows": rows + cases.torch_rows(problem, *effort(config))}

    def keep_if_done(name, mark, arrays, row):
        if keep and arrays:
            keep(name, mark, arrays, row)

    mark = results.fingerprint(dataclasses.asdict(config), jax.__version__, backends.default().name)
    done = command.parts(listed, measure, mark, progress=progress, keep=keep_if_done, kept=kept)
    return command.by_part(done), summary({name: row["rows"] for name, (_, row) in done.items()})


def summary(groups: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of all products, with ratios and rooflines."""
    top = rates(groups["ceilings"])
    rows = []
    for name, group_rows in groups.items():
        timed = [row for row in group_rows if "us" in row]
        base = min((row["us"] for row in timed if row.get("is_base")), default=None)
        lt = {row["kind"]: row["us"] for row in timed if row.get("is_peer")}
        for row in group_rows:
            more: dict[str, Any] = {"product": name}
            if "us" in row:
                peer = lt.get(row["kind"])
                more["over_bf16"] = None if base is None else base / row["us"]
                more["over_cublaslt"] = None if peer is None else peer / row["us"]
                more["roofline_us"] = roofline(row, top)
            rows.append(more | row)
    return rows


def rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the highest rates by kind: flops per us, and bytes per us as "bandwidth"."""
    numbers = [(row["kind"], row["bytes" if row["kind"] == "bandwidth" else "flops"] / row["us"])
               for row in rows if "us" in row]  # fmt: skip
    return {kind: max(rate for k, rate in numbers if k == kind) for kind, _ in numbers}


def roofline(row: dict[str, Any], top: dict[str, float]) -> float | None:
    """Return the least microseconds that measured rates allow, None where one is missing."""
    if not {row["kind"], "bandwidth"} <= set(top):
        return None
    return max(row["bytes"] / top["bandwidth"], row["flops"] / top[row["kind"]])


COLUMNS = (
    ("", lambda r: r["name"]), ("us", tables.numbers("us", 4)),
    ("alone", tables.numbers("us_alone")),
    ("TFLOP/s", tables.numbers("tflops", 4)), ("GB/s", tables.numbers("gbs", 4)),
    ("x bf16", tables.numbers("over_bf16")), ("x Lt", tables.numbers("over_cublaslt")),
    ("roofline", tables.numbers("roofline_us")), ("error", tables.numbers("error", 2)),
)  # fmt: skip
EXPERIMENT = command.experiment(
    Config,
    run,
    table=lambda rows: [
        *tables.grouped(rows, "product", COLUMNS),
        *tables.reasons(rows, "failed", "product", "name"),
    ],
    quick=QUICK,
)
