"""Everything that differs between the JAX versions we support (>= 0.10, < 0.13).

JAX 0.11 merged `ClosedJaxpr` into `Jaxpr`, whose constants then travel with it. All reading of
jaxprs goes through the functions below; no other file looks at a jaxpr's layout.
"""

import inspect
import itertools
from pathlib import Path
from typing import Any

import jax
from jax.extend import core as jex_core

Literal = jex_core.Literal


def is_jaxpr(value: Any) -> bool:
    """Say whether `value` is a jaxpr, open or closed."""
    return isinstance(value, (jex_core.Jaxpr, jex_core.ClosedJaxpr))


def open_jaxpr(jaxpr: Any) -> tuple[Any, list]:
    """Split a jaxpr into (jaxpr with eqns, constvars, invars, outvars; values of its constants)."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return inner, list(getattr(jaxpr, "consts", ()))


def bind(eqn: Any, args: list) -> list:
    """Run one equation on values and return its outputs as a list."""
    outs = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


def scan_counts(params: dict) -> tuple[int, int]:
    """Numbers of constants and of carried values among the operands of a scan, in that order.

    JAX 0.11 keeps the operands' tree, of (constants, carry, slices), instead of their numbers.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def sub_jaxprs(eqn: Any) -> list:
    """Return every jaxpr among an equation's parameters."""
    values = (v if isinstance(v, (tuple, list)) else (v,) for v in eqn.params.values())
    return [item for items in values for item in items if is_jaxpr(item)]


# A line of a framework says less than the line of the network that calls it.
_FRAMEWORKS = tuple(f"/site-packages/{name}/" for name in ("flax", "equinox", "haiku", "einops"))
_JAX = f"{Path(jax.__file__).parent}/"
_TRACER = f"{Path(__file__).parent}/sites/"


def source_line(eqn: Any) -> str | None:
    """Return the line of the network's source that makes an equation, as layers.py:12.

    The innermost frame outside of JAX and, if there is one, of the frameworks; None if nothing is
    known.
    """
    frames = getattr(getattr(eqn.source_info, "traceback", None), "frames", ())
    inside = itertools.takewhile(lambda frame: not frame.file_name.startswith(_TRACER), frames)
    lines = [frame for frame in inside if not frame.file_name.startswith(_JAX)]
    own = (f for f in lines if not any(name in f.file_name for name in _FRAMEWORKS))
    frame = next(own, lines[0] if lines else None)
    return None if frame is None else f"{Path(frame.file_name).name}:{frame.line_num}"


def is_of_jax(jaxpr: Any) -> bool:
    """Say whether a jaxpr is that of a function of JAX; False if that is not known."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return f" at {_JAX}" in str(getattr(info, "func_src_info", ""))


def vector_loader(interpret: Any) -> Any:
    """How a Mosaic GPU kernel reads a vector of global memory into registers: (ref, layout) -> it.

    JAX 0.11 dropped the index of `load`; the interpreter of 0.10 knows neither it nor layouts.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if interpret:
        return lambda ref, layout: ref[...]
    indexed = inspect.signature(plgpu.load).parameters["idx"].default is inspect.Parameter.empty
    index = ((),) if indexed else ()
    return lambda ref, layout: plgpu.load(ref, *index, layout=layout, optimized=False)
