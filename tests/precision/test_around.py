"""What is done around a product leaves the exact product as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from qdiffjax import comparisons, diffusion, precision
from qdiffjax.analysis.errors import ledger
from qdiffjax.precision import around as surroundings
from qdiffjax.precision.around import Affine, Around, Diagonal, Order, Rotation
from qdiffjax.sites import list_sites, transform
from tests import worlds
from tests.precision.small import STEPS, X_T, calibrated
from tests.tolerances import assert_close

SCALES = jnp.asarray(np.exp(np.random.default_rng(3).normal(size=8)))
SIGNS = jnp.asarray([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, 1.0])
BASES = {
    "diagonal": (Diagonal(SCALES),),
    "rotation": (Rotation(SIGNS, 8),),
    "rotation of blocks": (Rotation(SIGNS, 2),),
    "order": (Order(jnp.argsort(SCALES)),),
    "all": (Diagonal(SCALES), Rotation(SIGNS, 4), Order(jnp.argsort(SCALES))),
    "by call": (Diagonal(jnp.stack([SCALES, SCALES**-1, SCALES * 3])),),
}
PRODUCTS = {
    "x w": (worlds.dot("x w"), 1),
    "w x": (worlds.dot("w x"), 0),
    "rows of w": (worlds.dot("rows of w"), 1),
    "convolution": (
        worlds.one_site(lambda x, w: worlds.conv("SAME")({"kernel": w}, x, None),
                        (2, 5, 5, 8), (3, 3, 8, 4), weight=1), 1),
}  # fmt: skip


@pytest.mark.parametrize("bases", BASES.values(), ids=BASES)
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_a_change_of_basis_leaves_the_product(product, bases):
    """B on the activation and its inverse, transposed, on the weight, beside a branch."""
    network, weight = product
    site = next(s for s in list_sites(network.fn, *network.args) if s.product is not None)
    assert site.weight == weight
    w = network.params["w"]
    branch = 0.3 * jnp.sin(w)
    around = Around(bases, branch.astype(w.dtype))
    inputs = precision.SiteQuant(
        around.weight(w, precision.group_axis(site, weight), 1), around=around, call=1
    )
    run = transform(network.fn, precision.quantize_site)
    y, _ = run(*network.args, site_inputs={site.name: inputs})
    assert_close(y, network.fn(*network.args), factor=64)


def test_hadamard_is_sylvesters_matrix_on_blocks():
    x = worlds.normal(0, 3, 16)
    for block in (1, 2, 8, 16):
        h = scipy.linalg.hadamard(block) / np.sqrt(block)
        expected = np.einsum("ij,nbj->nbi", h, np.asarray(x).reshape(3, -1, block)).reshape(3, 16)
        assert_close(surroundings.hadamard(x, block), expected, factor=64)
    with pytest.raises(ValueError, match="4 is the largest"):
        surroundings.hadamard(x[:, :12], 8)


def test_a_rotation_spreads_an_outlier_evenly():
    x = jnp.zeros(8).at[3].set(4.0)
    y = Rotation(SIGNS, 8).activation(x, 0)
    assert_close(jnp.abs(y), np.full(8, 4 / np.sqrt(8)))


def test_a_correction_is_that_of_its_call():
    affine = Affine(jnp.asarray([1.0, 2.0]), jnp.asarray([[0.5, 0.0], [0.0, -1.0]]))
    y = worlds.normal(1, 3, 2)
    assert affine.num_calls == 2
    assert_close(affine(y, 0), np.asarray(y) + np.array([0.5, 0.0]))
    assert_close(affine(y, 1), 2 * np.asarray(y) + np.array([0.0, -1.0]))


def _corrected(num: int):
    q = precision.quantize(calibrated(), "W4A6")
    name = next(iter(q.site_inputs))
    own = q.site_inputs[name]
    shift = jnp.linspace(0.1, 0.3, num)[:, None]
    around = Around(correction=Affine(jnp.full(num, 1.1), shift))
    inputs = {**q.site_inputs, name: own._replace(around=around)}
    return precision.Quantized(q.denoiser, inputs)


def test_ledger_and_injection_see_corrections():
    q = _corrected(len(STEPS.t))
    xs = diffusion.sample(precision.full_call(q), X_T, STEPS).states
    run = jax.jit(comparisons.measured)(q, X_T, xs, STEPS)
    entries = ledger.attribution(q, X_T, STEPS, num_nodes=6)
    # Two programs flip a few roundings of W4A6; what they add up to is of one.
    apart = jnp.linalg.norm(entries.x_hat_0 - run.xs_hat[-1])
    assert float(apart / jnp.linalg.norm(run.errors[-1])) < 5e-2
    assert float(jnp.median(ledger.defect(entries))) < 2e-2


def test_corrections_for_another_number_of_calls_are_refused():
    with pytest.raises(ValueError, match="one of 3"):
        _corrected(3).calls(STEPS)


def test_readers_of_roundings_alone_refuse_what_is_around_them():
    from qdiffjax.analysis.errors import runs, site_variances

    q = _corrected(1)
    probes = runs.signs(jax.random.key(0), 2, X_T)
    with pytest.raises(ValueError, match="a cure around its product"):
        site_variances.activation_variances(q, X_T, STEPS, probes)


def test_a_family_keeps_what_is_around_if_all_have_the_same_kind():
    q = _corrected(1)
    alike = precision.alike([q, q], STEPS)
    call = [precision.quantized_call(each)(X_T, STEPS.t[0])[0] for each in (q, alike[1])]
    assert_close(call[1], call[0], factor=64)
    with pytest.raises(ValueError, match="several structures"):
        precision.alike([q, precision.quantize(calibrated(), "W4A6")], STEPS)
