"""Networks of one operation, and the distance of `lower` from the simulation at a site."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import precision
from qdiffjax.kernels import Activation, narrow
from qdiffjax.kernels.operands import quantized
from qdiffjax.precision import calibration as ptq
from qdiffjax.quant import (
    IntFormat,
    absmax,
    calibration,
    dequantize,
    quantize,
)
from qdiffjax.sites import list_sites, rules, transform
from tests.sites import networks
from tests.sites.networks import normal

UNSIGNED = IntFormat(8, signed=False)
LOWER = precision.lower()
NETWORKS = {
    f.__name__: f
    for f in (
        networks.linen_unet, networks.nnx_net, networks.eqx_net, networks.handwritten,
        networks.layers, networks.linen_layers,
    )
}  # fmt: skip


def in_float64(site, op, operands, inputs):
    """The simulation at these operands, in float64."""
    values = [jnp.asarray(a).astype(jnp.float64) for a in operands]
    if inputs.weight is not None:
        values[site.weight] = dequantize(inputs.weight, jnp.float64)
    for i, how in zip(site.activations, inputs.activations, strict=False):
        x = operands[i]
        axes = site.contract_axes[i] or tuple(range(x.ndim))
        if site.kind == "conv":
            axes = tuple(a for a in range(x.ndim) if a != site.product.lhs[0])
        x = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
        values[i] = dequantize(quantized(x, how, axes), jnp.float64)
    if site.product is None:
        return values[0]
    return op(*values)


def audit(site, op, operands, inputs):
    """Rule: `lower`, with its distance from the simulation, relative to the largest number."""
    y, _ = LOWER(site, op, operands, inputs)
    if inputs is None:
        return y, None
    exact = in_float64(site, lambda *v: _wide(op, v), operands, inputs)
    return y, jnp.max(jnp.abs(y.astype(jnp.float64) - exact)) / jnp.max(jnp.abs(exact))


def _wide(op, values):
    """The product itself in float64; the equation keeps the dtype it was traced with."""
    jaxpr = jax.make_jaxpr(op)(*[v.astype(jnp.float32) for v in values])
    (eqn,) = jaxpr.eqns
    params = eqn.params | {"preferred_element_type": jnp.dtype(jnp.float64)}
    return eqn.primitive.bind(*values, **params)


# Exactness does not wait for LLVM's optimizations.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def ranges_of(net):
    return compiled(transform(net.fn, rules.observe(ptq.range_of)))(*net.args)[1]


def lowered(net, weight_bits, activation_bits):
    sites = list_sites(net.fn, *net.args)
    recipe = precision.uniform(sites, weight_bits=weight_bits, activation_bits=activation_bits)
    weights = precision.weight_operands(net.fn, *net.args)
    codes = precision.prepare_codes(weights, sites, recipe)
    inputs = compiled(functools.partial(ptq.code_inputs, recipe))(codes, ranges_of(net))
    return sites, precision.Quantized(net.fn, net.params, inputs, LOWER)


def one_site(fn, *shapes, weight=None, seed=0):
    """A network of one operation: (fn, params, x, t) and its only site but the edges."""
    arrays = [normal(seed + i, *shape, dtype=np.float32) for i, shape in enumerate(shapes)]
    x, w = arrays
    if weight is None:  # both operands from the input, as in attention
        sizes = np.cumsum([x.size, w.size])

        def both(params, z, t):
            return fn(z[: sizes[0]].reshape(shapes[0]), z[sizes[0] :].reshape(shapes[1]))

        return networks.Network(both, {}, jnp.concatenate([x.ravel(), w.ravel()]), jnp.float32(0))
    if weight == 0:
        return networks.Network(lambda p, z, t: fn(p["w"], z), {"w": x}, w, jnp.float32(0))
    return networks.Network(lambda p, z, t: fn(z, p["w"]), {"w": w}, x, jnp.float32(0))


def check_site(net, inputs_fn, tolerance=4e-7):
    (site,) = [s for s in list_sites(net.fn, *net.args) if s.product]
    inputs = {site.name: inputs_fn(site, net)}
    g = compiled(transform(net.fn, audit))
    error = g(*net.args, site_inputs=inputs)[1][site.name]
    assert error < tolerance
    return precision.lowering_of([site], inputs)[site.name]


# One compilation each, not one for every operation.
@functools.partial(jax.jit, static_argnums=(1, 2))
def codes_of(w, format, scale_shape):
    return quantize(w, *absmax(w, format=format, scale_shape=scale_shape), format=format)


@functools.partial(jax.jit, static_argnums=1)
def affine(x, format=UNSIGNED):
    return Activation(format, *map(jnp.squeeze, calibration.minmax(x, format=format)))


@functools.partial(jax.jit, static_argnums=1)
def symmetric(x, format):
    return Activation(format, jnp.squeeze(absmax(x, format=format)[0]))


def activations(site, net, how_fn=affine):
    if site.weight is not None:
        return (how_fn(net.x),)
    n = np.prod(site.shapes[0])
    return how_fn(net.x[:n]), how_fn(net.x[n:])


def w8a8(site, net, bits=8):
    weight = None
    if site.weight is not None:
        w, format, shape = net.params["w"], IntFormat(bits), precision.output_channels(site)
        weight = narrow(codes_of(w, format, shape))
    return precision.SiteQuant(weight, activations(site, net))


def weight_only(site, net):
    return w8a8(site, net, 4)._replace(activations=())


def dynamic(site, net):
    how = Activation(IntFormat(8))
    return w8a8(site, net)._replace(activations=(how,) * len(site.activations))


def groups(site, net):
    w, format = net.params["w"], IntFormat(4)
    shape = tuple(
        2 if a == site.contract_axes[site.weight][0] else n
        for a, n in enumerate(precision.output_channels(site))
    )
    return precision.SiteQuant(codes_of(w, format, shape), activations(site, net))


DOTS = {
    "x w": (((3, 4, 8), (8, 6)), (((2,), (0,)), ((), ())), 1),
    "w x": (((6, 8), (4, 8, 3)), (((1,), (1,)), ((), ())), 0),
    "rows of w": (((5, 8), (6, 8)), (((1,), (1,)), ((), ())), 1),
    "two axes": (((3, 2, 4, 5), (4, 7, 2)), (((1, 2), (2, 0)), ((), ())), 1),
    "w in the middle": (((8, 5), (2, 8, 3)), (((0,), (1,)), ((), ())), 1),
    "batch of w": (((4, 3, 8), (4, 8, 5)), (((2,), (1,)), ((0,), (0,))), 1),
    "q k": (((2, 5, 3, 4), (2, 6, 3, 4)), (((3,), (3,)), ((0, 2), (0, 2))), None),
    "p v": (((2, 6, 3, 4), (2, 3, 5, 6)), (((1,), (3,)), ((0, 2), (0, 1))), None),
}


def dot(name):
    shapes, dims, weight = DOTS[name]
    return one_site(lambda a, b: jax.lax.dot_general(a, b, dims), *shapes, weight=weight)
