"""Certified error of a whole sampling run: a tube of states and of errors around it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_count, checked, require
from qdiffjax._typing import Array, Key
from qdiffjax.analysis.certificates import forms
from qdiffjax.analysis.certificates.forms import Form
from qdiffjax.analysis.certificates.network import enclose
from qdiffjax.analysis.certificates.pairs import Pair
from qdiffjax.analysis.errors.runs import noises
from qdiffjax.diffusion import Steps, stack
from qdiffjax.labels import Kind, bound
from qdiffjax.precision.quantized import Quantized


class Tube(NamedTuple):
    """Bounds at every state, each [N+1, *shape], noisiest first; infinite where nothing is known.

    low, high: of x_t of the full-precision run; error_low, error_high: of x_hat_t - x_t.
    """

    low: Array
    high: Array
    error_low: Array
    error_high: Array


@bound(
    Kind.CERTIFIED,
    "every x_T of the set, every outcome of every rounding; real arithmetic of both networks",
)
@checked(max_symbols=check_count)
def sample_tube(
    q: Quantized, x_T: Form, steps: Steps, *, key: Key | None = None, max_symbols: int = 4096
) -> Tube:
    """Enclose both runs of a sampler from every x_T of a set, and their difference.

        x'  = c_x x + c_eps eps(x, t) + c_noise z
        dx' = c_x dx + c_eps (eps_hat(x + dx, t) - eps(x, t))

    Certified for every x_T in the set and every outcome of every rounding in every step, see
    `enclose`. Errors keep their symbols through all later steps, so c_x I + c_eps D eps acts on
    each as one matrix: they turn and shrink with the sampler instead of being boxed anew in every
    step (where Lohner's method keeps a single parallelepiped by QR factors). What a step adds, by
    rounding and by curvature, is boxed once: one new symbol an element for x and one for dx.

    Args:
      q: the two denoisers.
      x_T: initial noise [batch, *shape], `forms.box(low, high)`; vmap over samples or boxes.
      steps: a sampler without memory, leaves [N]; its numbers are taken as exact.
      key: noise of a stochastic sampler, as in `diffusion.sample`; the same in both runs.
      max_symbols: as in `enclose`; x, and the errors of all steps, take n (1 + 2 N) of them.

    Raises:
      TypeError: a sampler with memory.
    """
    require(
        steps.is_first_order,
        got="a sampler with memory or with matrix coefficients",
        expected="a first-order one, whose state is x_t: for others no certificates are written",
        remedy="such as ddim",
        error=TypeError,
    )
    num_steps, n = steps.t.shape[0], x_T.mid.size
    require(
        len(x_T) <= n,
        "x_T",
        got=f"{len(x_T)} symbols",
        expected=f"at most {n}",
        remedy="see forms.box",
    )
    last = n * (1 + num_steps)
    x_T = forms.pad(x_T, last)
    nothing = Form(jnp.zeros(x_T.shape), jnp.zeros((last + n * num_steps, *x_T.shape)),
                   jnp.zeros(x_T.shape))  # fmt: skip

    def body(state, slices):
        (x, dx), (i, t, c, z) = state, slices
        eps = enclose(q, Pair(x, dx), t, max_symbols=max_symbols)
        move = lambda a, e: forms.add(forms.scale(a, c.x), forms.scale(e, c.eps))  # noqa: E731
        x_new, dx_new = move(x, eps.z), move(dx, eps.dz)
        if z is not None:
            x_new = forms.add(x_new, forms.scale(forms.exactly(z), c.noise))
        x_new = _condense(x_new, last, n * (1 + i))
        dx_new = _condense(dx_new, len(dx), last + n * i)
        return (x_new, dx_new), (*forms.bounds(x_new), *forms.bounds(dx_new))

    like = x_T.mid
    table = (jnp.arange(num_steps), steps.times(like), steps.coeffs, noises(key, steps, like))
    first = (*forms.bounds(x_T), *forms.bounds(nothing))
    return Tube(*stack(first, jax.lax.scan(body, (x_T, nothing), table)[1]))


def _condense(form: Form, num: int, slot) -> Form:
    """Box the symbols from `num` on, and rad, into one new symbol an element, written at `slot`."""
    rest = forms.spread(Form(form.mid, form.gens[num:], form.rad))
    rows = forms.one_hot(rest)
    kept = jax.lax.dynamic_update_slice_in_dim(form.gens[:num], rows, slot, 0)
    return forms.settle(Form(form.mid, kept, jnp.zeros_like(rest)))
