"""With and without jit: rounding, sampling and sites keep what algebra says of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion, precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.quant import IntFormat, fake_quant
from qdiffjax.sites import rules, transform
from tests.tolerances import assert_close

W = np.diag([2.0, 0.5])


def linear_fn(params, x, t):
    return x @ params["w"] + t


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_points_of_the_grid_stay_and_others_go_to_the_nearest(self):
        codes, scale = np.arange(-7.0, 8.0)[:, None], 0.25
        rounded = self.variant(
            lambda x: fake_quant(x, jnp.full((1, 1), scale), format=IntFormat(4))
        )
        chex.assert_trees_all_equal(rounded(codes * scale), codes * scale)
        np.testing.assert_array_equal(rounded((codes + 0.3) * scale)[:-1], (codes * scale)[:-1])

    @chex.variants(with_jit=True, without_jit=True)
    def test_ddim_with_the_optimum_of_point_mass_data_ends_at_the_point(self):
        schedule, point = diffusion.linear(20, 1e-3, 0.3), jnp.array([1.5, -0.5])
        steps = diffusion.ddim(schedule, 5)

        def optimum(params, x, t):
            alpha, sigma = schedule(t)
            return (x - alpha * point[None]) / sigma

        call = diffusion.bind(optimum, ())
        run = self.variant(lambda x: diffusion.sample(call, x, steps).x_0)
        assert_close(run(jnp.ones((3, 2))), np.tile(point, (3, 1)), factor=64)

    @chex.variants(with_jit=True, without_jit=True)
    def test_what_is_added_at_the_output_is_added_to_the_result(self):
        perturbed = self.variant(transform(linear_fn, rules.perturb))
        x = np.ones((3, 2))
        out, _ = perturbed({"w": W}, x, 0.5, site_inputs={"output": jnp.full((3, 2), 0.25)})
        np.testing.assert_array_equal(out, x @ W + 0.75)

    @chex.variants(with_jit=True, without_jit=True)
    def test_a_quantized_denoiser_keeps_the_tree_shapes_and_dtypes_of_the_full_one(self):
        denoiser = Denoiser(linear_fn, {"w": W.astype(np.float32)}, diffusion.linear(), (2,))
        steps = diffusion.ddim(denoiser.schedule, 2)
        calibration = precision.calibrate(denoiser, steps, jax.random.key(0), num_samples=2)
        recipe = precision.uniform(calibration.sites, weight_bits=8, activation_bits=8)
        q, x = precision.quantize(calibration, recipe), jnp.ones((3, 2), jnp.float32)
        calls = precision.full_call(q), precision.quantized_call(q)
        full, low = (self.variant(lambda x, c=c: c(x, jnp.float32(1)))(x) for c in calls)
        chex.assert_trees_all_equal_shapes_and_dtypes(full, low)
        chex.assert_trees_all_equal_structs(full, low)
        chex.assert_tree_all_finite(low)
