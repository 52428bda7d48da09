"""Convolutions in the layout that XLA compiles well, compilation in a hurry, programs forgotten."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from qdiffjax import _compat

MAPPINGS = Path("/proc/self/maps")  # a line each, where there is such a file
MOST_MAPPINGS = 40_000  # of the 65530 that Linux gives a process (vm.max_map_count)


def canonical_convolutions(fn: Callable) -> Callable:
    """Return fn with the kernel of every convolution stored as [*space, in, out].

    The transpose of a convolution is a convolution whose kernel has its channel axes swapped, and
    JAX says so by naming the axes. Inside a loop XLA's CPU compiler takes such a kernel on a path
    without its fast routines: the input-VJP of a 3x3 convolution inside a scan costs 10 to 60
    times the forward one (measured, jax 0.10.2). Here the axes are moved instead of renamed; the
    sums are the same up to their order.

    Use it outside of the differentiation, `canonical_convolutions(lambda x: ... jax.vjp ...)`: it
    rewrites what it finds, in the bodies of loops and branches too, and the result can be
    differentiated, vmapped and compiled like any function.

    Args:
      fn: any function of pytrees of arrays.
    """

    def rewritten(*args):
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        results = _run(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return rewritten


def sweep(fn: Callable, *table) -> Any:
    """Return fn(*row) for the rows of a table, one after another, by `canonical_convolutions`."""
    rows = canonical_convolutions(lambda *table: jax.lax.map(lambda row: fn(*row), table))
    return rows(*table)


def _run(closed, args) -> list:
    """Evaluate a jaxpr, its convolutions rewritten."""
    jaxpr, consts = _compat.open_jaxpr(closed)
    env: dict[Any, Any] = {}

    def read(atom):
        return atom.val if isinstance(atom, _compat.Literal) else env[atom]

    env.update(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        results = _equation(eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _equation(eqn, values) -> list:
    if _is_odd(eqn):
        return [_convolve(eqn.params, *values)]
    bodies = _compat.sub_jaxprs(eqn)
    if not any(_has_odd(body) for body in bodies):
        return _compat.bind(eqn, values)
    rebuild = {"scan": _scan, "while": _while, "cond": _cond}.get(eqn.primitive.name)
    if rebuild:
        return rebuild(eqn.params, values)
    return _run(bodies[0], values)  # jit, remat and rules: nothing differentiates what is here


def _kernel_order(params) -> tuple[int, ...]:
    """Axes of the kernel as [*space, in, out]."""
    out_axis, in_axis, *space = params["dimension_numbers"].rhs_spec
    return (*space, in_axis, out_axis)


def _is_odd(eqn) -> bool:
    if eqn.primitive.name != "conv_general_dilated":
        return False
    order = _kernel_order(eqn.params)
    return order != tuple(range(len(order)))


def _has_odd(jaxpr) -> bool:
    inner, _ = _compat.open_jaxpr(jaxpr)
    return any(
        _is_odd(eqn) or any(_has_odd(body) for body in _compat.sub_jaxprs(eqn))
        for eqn in inner.eqns
    )


def _convolve(params, lhs, rhs):
    numbers = params["dimension_numbers"]
    rank = len(numbers.rhs_spec)
    straight = numbers._replace(rhs_spec=(rank - 1, rank - 2, *range(rank - 2)))
    keys = (
        "window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count",
        "batch_group_count", "precision", "preferred_element_type",
    )  # fmt: skip
    return jax.lax.conv_general_dilated(
        lhs, rhs.transpose(_kernel_order(params)), dimension_numbers=straight,
        **{key: params[key] for key in keys},
    )  # fmt: skip


def _scan(params, values) -> list:
    num_consts, num_carry = _compat.scan_counts(params)
    consts, rest = values[:num_consts], values[num_consts:]

    def body(carry, xs):
        results = _run(params["jaxpr"], [*consts, *carry, *xs])
        return results[:num_carry], results[num_carry:]

    carry, ys = jax.lax.scan(
        body, rest[:num_carry], rest[num_carry:], length=params["length"],
        reverse=params["reverse"], unroll=params["unroll"],
    )  # fmt: skip
    return [*carry, *ys]


def _while(params, values) -> list:
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    in_cond, in_body = values[:num_cond], values[num_cond : num_cond + num_body]
    return jax.lax.while_loop(
        lambda state: _run(params["cond_jaxpr"], [*in_cond, *state])[0],
        lambda state: _run(params["body_jaxpr"], [*in_body, *state]),
        values[num_cond + num_body :],
    )


def _cond(params, values) -> list:
    branches = [lambda *args, branch=branch: _run(branch, args) for branch in params["branches"]]
    return jax.lax.switch(values[0], branches, *values[1:])


def compiled(fn: Callable):
    """`jax.jit`, on CPU with LLVM at level 1, and with every convolution's kernel in one layout.

    Measured on the adjoints of the shipped network, two cores: level 1 takes a quarter off their
    compilation and half off their run time, the layout another third to two thirds
    (`canonical_convolutions`).
    """
    if jax.default_backend() != "cpu":
        return jax.jit(fn)
    options = {"xla_backend_optimization_level": 1}
    return jax.jit(canonical_convolutions(fn), compiler_options=options)


def hurried_jit(fn: Callable) -> Callable:
    """Return fn compiled with few optimizations, for what runs a few times.

    On a CPU a UNet compiles in 40 % of the time; elsewhere this is `jax.jit`.
    """
    hurry = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(fn, compiler_options=hurry if jax.default_backend() == "cpu" else None)


def forget_programs(most: int = MOST_MAPPINGS) -> bool:
    """Forget all that is compiled if the process has more than `most` mappings of memory.

    On a CPU each program takes some of them for good, and a process that runs out of them dies in
    the next compilation. What is needed again is compiled again, or read from JAX's cache on disk.
    The memory goes back to the system, which the C library does not do by itself.

    Returns:
      Whether there were so many; False where the system does not tell.
    """
    if not MAPPINGS.exists() or MAPPINGS.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return True
