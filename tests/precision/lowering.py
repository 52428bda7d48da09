"""Operands at a site, and the distance of `lower` from the simulation there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.kernels import narrow
from qdiffjax.kernels.operands import quantized
from qdiffjax.precision import ranges
from qdiffjax.quant import (
    ActivationGrid,
    IntFormat,
    absmax,
    calibration,
    dequantize,
    quantize,
)
from qdiffjax.sites import list_sites, rules, transform
from tests.worlds import quick_jit

UNSIGNED = IntFormat(8, signed=False)
LOWER = precision.lower_site()


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


def ranges_of(net):
    return quick_jit(transform(net.fn, rules.observe(ranges.range_of)))(*net.args)[1]


def calibrated(net, ranges=None):
    """A network's calibration, with ranges given or none."""
    sites, weights = list_sites(net.fn, *net.args), precision.weight_operands(net.fn, *net.args)
    return precision.Calibration(Denoiser(net.fn, net.params), sites, weights, ranges or {})


def lowered(net, weight_bits, activation_bits):
    calibration = calibrated(net, ranges_of(net))
    recipe = precision.uniform(
        calibration.sites, weight_bits=weight_bits, activation_bits=activation_bits
    )
    return calibration.sites, precision.lower(calibration, recipe)


def check_site(net, inputs_fn, tolerance=4e-7):
    (site,) = [s for s in list_sites(net.fn, *net.args) if s.product]
    inputs = {site.name: inputs_fn(site, net)}
    g = quick_jit(transform(net.fn, audit))
    error = g(*net.args, site_inputs=inputs)[1][site.name]
    assert error < tolerance
    return precision.lowering_of([site], inputs)[site.name]


# One compilation each, not one for every operation.
@functools.partial(jax.jit, static_argnums=(1, 2))
def codes_of(w, format, scale_shape):
    return quantize(w, *absmax(w, format=format, scale_shape=scale_shape), format=format)


@functools.partial(jax.jit, static_argnums=1)
def affine(x, format=UNSIGNED):
    return ActivationGrid(format, *map(jnp.squeeze, calibration.minmax(x, format=format)))


@functools.partial(jax.jit, static_argnums=1)
def symmetric(x, format):
    return ActivationGrid(format, jnp.squeeze(absmax(x, format=format)[0]))


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
    how = ActivationGrid(IntFormat(8))
    return w8a8(site, net)._replace(activations=(how,) * len(site.activations))


def groups(site, net):
    w, format = net.params["w"], IntFormat(4)
    shape = tuple(
        2 if a == site.contract_axes[site.weight][0] else n
        for a, n in enumerate(precision.output_channels(site))
    )
    return precision.SiteQuant(codes_of(w, format, shape), activations(site, net))
