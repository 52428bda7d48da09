"""Wrong calls of bounds, gains, errors, divergences, certificates and estimates."""

import jax.numpy as jnp
import numpy as np

from qdiffjax import Flow, estimates, strategies
from qdiffjax.analysis import bounds, certificates, divergences, errors, gains, guarantees
from tests.wrong_calls import (
    AT_LEAST_0,
    COUNT,
    COUNT_FROM_0,
    FROM_2,
    FUNCTIONS,
    INF,
    KEY,
    KEYS,
    NAN,
    POSITIVE,
    holed,
    not_finite,
)
from tests.wrong_calls.front_door import DENOISER, STEPS, Q

X, Y = holed((40, 2), 0.5), holed((40, 2), -0.5)
LINE = X[:, 0]
XS = jnp.zeros((5, 3, 2), jnp.float32)
STEP_GAINS = np.ones((4, 3), np.float32)
NEGATIVE = np.array([[1.0, -1.0]], np.float32)
SAMPLES = (*not_finite(40, 2), X[:, :1], X[:0], "x", None, np.zeros((40, 2), complex))
NORMS = (NEGATIVE, *not_finite(4, 3))
TABLE = np.ones((2, 2))
GRAM = np.ones((2, 2, 2, 2))
ODD = np.arange(16.0).reshape(2, 2, 2, 2)  # not symmetric
TOGETHER = ("choose_together", "choose_exhaustively", "relaxed_together")
BOX = certificates.box(-jnp.ones((1, 2)), jnp.ones((1, 2)))
AMOUNTS = np.ones(4, np.float32)
ONES = np.ones(40)
OPEN = (0.0, 1.0, -0.1, NAN, INF, "x")
BOUNDED = {
    "betting_upper": lambda v: guarantees.betting_upper(v, 0.1, 4.0),
    "bernstein_upper": lambda v: guarantees.bernstein_upper(v, 0.1, 4.0),
    "betting_p_value": lambda v: guarantees.betting_p_value(v, 0.5, 4.0),
    "hoeffding_bentkus_p_value": lambda v: guarantees.hoeffding_bentkus_p_value(v, 0.5, 4.0),
}
GUARANTEES = BOUNDED | {
    "conformal_bound": lambda v: guarantees.conformal_bound(v, 0.1),
    "share_p_value": lambda v: guarantees.share_p_value(v, 0.5, 0.1),
}


def call(x, t, inputs, state):
    return x, None, state


def fn(x):
    return x


def two(name, **options):
    """Rows of both samples of a distance."""
    distance = getattr(divergences, name)
    return {f"{name}(x)": (lambda v: distance(v, Y, **options), SAMPLES),
            f"{name}(y)": (lambda v: distance(X, v, **options), SAMPLES)}  # fmt: skip


ROWS = {
    **two("kid"),
    "kid(paired)": (lambda v: divergences.kid(X, Y[:9], paired=v), (True,)),
    "frechet_bias(num)": (lambda v: divergences.frechet_bias(np.eye(2), v), FROM_2),
    "frechet_bias(covariance)": (lambda v: divergences.frechet_bias(v, 9), (None, *not_finite(2))),
    "frechet_limit(nums)": (lambda v: divergences.frechet_limit(v, np.ones(3)),
                            (np.ones(2), np.ones(3), np.array([1.0, 2.0, NAN]), "x", None)),
    "gaussian_w1(std_1, std_2)": (lambda v: divergences.gaussian_w1(0.0, v, 0.0, 1.0),
                                  (0.0, -1.0, NAN, INF)),
    "gaussian_total_variation(std_1, std_2)": (
        lambda v: divergences.gaussian_total_variation(0.0, 1.0, 0.0, v), (0.0, -1.0, NAN, INF)),
    "reverse_water_filling(variances)": (
        lambda v: strategies.reverse_water_filling(v, rate=1.0),
        (NEGATIVE, np.zeros(0), None, "x", *not_finite(3))),
    "reverse_water_filling(rate)": (
        lambda v: strategies.reverse_water_filling(np.ones(2), rate=v), AT_LEAST_0),
    "reverse_water_filling(distortion)": (
        lambda v: strategies.reverse_water_filling(np.ones(2), distortion=v), POSITIVE),
    "lagrangian_bits(mean_bits)": (
        lambda v: strategies.lagrangian_bits(np.ones(2), v, least=2, most=8),
        (1.0, 9.0, NAN, INF, "x", None)),
    "lagrangian_bits(sizes)": (
        lambda v: strategies.lagrangian_bits(np.ones(2), 4.0, sizes=v),
        (np.ones(3), np.zeros(2), -np.ones(2), np.array([1.0, NAN]))),
    **{f"{name}(budget)": (lambda v, name=name: getattr(strategies, name)(TABLE, TABLE, v),
                           (0.0, NAN, INF, "x", None)) for name in ("choose", "relaxed_choice")},
    **{f"{name}(costs)": (lambda v, name=name: getattr(strategies, name)(v, TABLE, 9.0),
                          (np.ones(2), np.ones((3, 3)), np.full((2, 2), NAN), None, "x"))
       for name in ("choose", "relaxed_choice")},
    **{f"{name}(budget)": (lambda v, name=name: getattr(strategies, name)(TABLE, GRAM, v),
                           (0.0, NAN, INF, "x", None)) for name in TOGETHER},
    **{f"{name}(costs)": (lambda v, name=name: getattr(strategies, name)(v, GRAM, 9.0),
                          (np.ones(2), np.ones((3, 3)), np.full((2, 2), NAN), None, "x"))
       for name in TOGETHER},
    **{f"{name}(gram)": (lambda v, name=name: getattr(strategies, name)(TABLE, v, 9.0),
                         (TABLE, NAN * GRAM, None, ODD))
       for name in TOGETHER},
    **{f"{name}(scores)": (lambda v, fn=fn: fn(v), (*not_finite(40), ONES[:0], "x", None, 1.0))
       for name, fn in GUARANTEES.items()},
    **{f"{name}(scores), bounded": (lambda v, fn=fn: fn(v), (-ONES, 5 * ONES))
       for name, fn in BOUNDED.items()},
    "conformal_bound(alpha)": (
        lambda v: guarantees.conformal_bound(ONES, v), (*OPEN, None)),
    "conformal_bound(delta)": (lambda v: guarantees.conformal_bound(ONES, 0.1, v), OPEN),
    "samples_needed(alpha)": (guarantees.samples_needed, (*OPEN, None)),
    "betting_upper(delta)": (lambda v: guarantees.betting_upper(ONES, v), (*OPEN, None)),
    "betting_upper(most)": (lambda v: guarantees.betting_upper(ONES, 0.1, v), POSITIVE),
    "bernstein_upper(delta)": (lambda v: guarantees.bernstein_upper(ONES, v), (*OPEN, None)),
    "mean_bounds(upper_fn)": (
        lambda v: guarantees.mean_bounds(ONES, 0.1, upper_fn=v), FUNCTIONS),
    "mean_floor(num)": (lambda v: guarantees.mean_floor(v, 0.1), COUNT),
    "samples_for_mean(target)": (
        lambda v: guarantees.samples_for_mean(0.1, v, 0.1), (0.05, 0.1, 1.5, NAN, "x")),
    "betting_p_value(promise)": (
        lambda v: guarantees.betting_p_value(ONES, v), (*POSITIVE, 1.1)),
    "hoeffding_bentkus_p_value(promise)": (
        lambda v: guarantees.hoeffding_bentkus_p_value(ONES, v), (*POSITIVE, 1.1)),
    "share_p_value(share)": (lambda v: guarantees.share_p_value(ONES, 1.0, v), OPEN),
    "share_p_value(tolerance)": (
        lambda v: guarantees.share_p_value(ONES, v, 0.1), (NAN, INF, "x", None)),
    "fixed_sequence(delta)": (lambda v: guarantees.fixed_sequence({"W8": 0.1}, v), OPEN),
    "gronwall(gains)": (lambda v: bounds.gronwall(v, STEP_GAINS), NORMS),
    "gronwall(local_norms)": (lambda v: bounds.gronwall(STEP_GAINS, v), NORMS),
    "remainder_bound(gains)": (lambda v: bounds.remainder_bound(v, STEP_GAINS, XS), NORMS),
    "remainder_bound(remainder_norms)": (
        lambda v: bounds.remainder_bound(STEP_GAINS, v, XS), NORMS),
    "minkowski_bound(gains)": (lambda v: bounds.minkowski_bound(v, STEP_GAINS),
                               (-np.ones(4, np.float32), *not_finite(4))),
    "minkowski_bound(local_norms)": (lambda v: bounds.minkowski_bound(np.ones(4, np.float32), v),
                                     NORMS),
    "gains_between_nodes(num_nodes)": (
        lambda v: bounds.gains_between_nodes(STEP_GAINS, STEP_GAINS, STEP_GAINS, v), FROM_2),
    "gains_between_nodes(curvature)": (
        lambda v: bounds.gains_between_nodes(STEP_GAINS, v, STEP_GAINS, 2), NORMS),
    "log_concave_bound(sigma_edm)": (
        lambda v: bounds.log_concave_bound(np.array(v), np.ones(2), 1.0),
        ((2.0, 1.0, 0.5), (0.0, 1.0, 2.0), (2.0, NAN, 0.0))),
    "log_concave_bound(strength)": (
        lambda v: bounds.log_concave_bound(np.array([2.0, 1.0, 0.0]), np.ones(2), v), POSITIVE),
    "log_concave_bound(eps_errors)": (
        lambda v: bounds.log_concave_bound(np.array([2.0, 1.0, 0.0]), np.array(v), 1.0),
        ((1.0, -1.0), (1.0, NAN), (1.0,))),
    "log_concave_posterior(strength)": (lambda v: bounds.log_concave_posterior(1.0, v), POSITIVE),
    "mixture_posterior(radius)": (lambda v: bounds.mixture_posterior(1.0, v, 1.0), AT_LEAST_0),
    "mixture_posterior(std)": (lambda v: bounds.mixture_posterior(1.0, 1.0, v), AT_LEAST_0),
    "posterior_gains(posterior)": (
        lambda v: bounds.posterior_gains(DENOISER.schedule, STEPS, v), (-AMOUNTS, *not_finite(4))),
    "step_gains(num_iterations)": (
        lambda v: gains.step_gains(call, XS, STEPS, key=KEY, num_iterations=v), FROM_2),
    "step_gains(num_burn_in)": (
        lambda v: gains.step_gains(call, XS, STEPS, key=KEY, num_burn_in=v), COUNT_FROM_0),
    "step_gains(key)": (lambda v: gains.step_gains(call, XS, STEPS, key=v), KEYS),
    "step_gains(xs)": (lambda v: gains.step_gains(call, v, STEPS, key=KEY), (XS[:2], "x", None)),
    "segment_gains(nodes)": (
        lambda v: gains.segment_gains(call, XS, XS, STEPS, nodes=v, key=KEY),
        ((), (-1.0, 0.5), (0.0, NAN), (0.0, 2.0))),
    "spectral_norm(num_iterations)": (lambda v: gains.spectral_norm(fn, X, v), FROM_2),
    "singular_values(num)": (lambda v: gains.singular_values(fn, X[0], v), (*COUNT, 3)),
    "step_spectra(num)": (
        lambda v: gains.step_spectra(call, XS, STEPS, num=v, key=KEY), (*COUNT, 3)),
    "sampler_spectrum(num)": (
        lambda v: gains.sampler_spectrum(call, XS, STEPS, num=v, key=KEY), (*COUNT, 3)),
    "sampler_spectrum(first)": (
        lambda v: gains.sampler_spectrum(call, XS, STEPS, num=1, key=KEY, first=v),
        (-1, 4, 2.5, NAN)),
    "stretches(every)": (
        lambda v: gains.stretches(call, XS, STEPS, num=1, key=KEY, every=v), COUNT),
    "probed_log_volumes(num)": (
        lambda v: gains.probed_log_volumes(call, XS, STEPS, num=v, key=KEY), (*COUNT, 3)),
    "mixture_flow_gain(radius)": (lambda v: gains.mixture_flow_gain(2.0, 1.0, v, 1.0), AT_LEAST_0),
    "mixture_flow_gain(std)": (lambda v: gains.mixture_flow_gain(2.0, 1.0, 1.0, v), AT_LEAST_0),
    "errors.couple(x_T)": (lambda v: errors.couple(call, call, v, STEPS),
                           (np.zeros((3, 2), np.int32), None, *not_finite(3, 2))),
    "errors.attribution(x_T)": (lambda v: errors.attribution(Q, v, STEPS),
                                (np.zeros((3, 2), np.int32), None, *not_finite(3, 2))),
    "errors.attribution(num_nodes)": (lambda v: errors.attribution(Q, XS[0], STEPS, num_nodes=v),
                                      COUNT),
    "errors.forecast(x_T)": (lambda v: errors.forecast(Q, v, STEPS, jnp.sum),
                             (np.zeros((3, 2), np.int32), None, *not_finite(3, 2))),
    "errors.forecast(num_exact)": (
        lambda v: errors.forecast(Q, XS[0], STEPS, jnp.sum, num_exact=v), (-1, 3, 2.5, NAN)),
    "errors.forecast(functional)": (lambda v: errors.forecast(Q, XS[0], STEPS, v), FUNCTIONS),
    "errors.inject(amounts)": (
        lambda v: errors.inject(Q, XS[0], STEPS, v),
        ({"inn": AMOUNTS}, {"in": AMOUNTS[:2]}, {"in": AMOUNTS * NAN})),
    "errors.rerun(first)": (lambda v: errors.rerun(Q, XS, STEPS, v, {}), (-1, 4, 2.5, NAN)),
    "errors.rerun(on)": (lambda v: errors.rerun(Q, XS, STEPS, 0, v), ({"inn": True}, {"x": True})),
    "errors.run_suffix(first)": (
        lambda v: errors.run_suffix(call, XS[0], v, STEPS), (-1, 5, 2.5, NAN)),
    "errors.predict_errors(followed)": (
        lambda v: errors.predict_errors(Q, XS, STEPS, followed=v), (("inptu",), ("in", "x"), "in")),
    "errors.predict_errors(xs)": (
        lambda v: errors.predict_errors(Q, v, STEPS), (XS[:2], None, "x")),
    "errors.split_error(num_nodes)": (
        lambda v: errors.split_error(call, XS[0], STEPS, XS[:1, None], num_nodes=v), COUNT),
    "errors.signs(num)": (lambda v: errors.signs(KEY, v, X), COUNT),
    "errors.signs(key)": (lambda v: errors.signs(v, 2, X), KEYS),
    "errors.end_shares(fraction)": (lambda v: errors.end_shares(np.ones(4), v),
                                    (0.0, -0.1, 1.1, NAN, INF)),
    "errors.fit_exponent(sizes)": (
        lambda v: errors.fit_exponent(np.array(v), np.arange(1.0, 4.0)),
        ((0.0, 1.0, 2.0), (-1.0, 1.0, 2.0), (NAN, 1.0, 2.0), (1.0, 2.0), (1.0, 1.0, 1.0))),
    "errors.fit_exponent(values)": (
        lambda v: errors.fit_exponent(np.arange(1.0, 4.0), np.array(v)),
        ((0.0, 1.0, 2.0), (-1.0, 1.0, 2.0), (NAN, 1.0, 2.0))),
    "errors.fit_floor(num_steps)": (
        lambda v: errors.fit_floor(np.array(v), np.arange(1.0, 4.0)),
        ((0.0, 1.0, 2.0), (-1.0, 1.0, 2.0), (NAN, 1.0, 2.0), (1.0, 2.0))),
    "errors.guidance_gain(correlation)": (
        lambda v: errors.guidance_gain(2.0, v), (-1.1, 1.1, NAN, "x")),
    "errors.probed(probes)": (lambda v: errors.probed(fn, v), (X[:1], X[:0])),
    **two("energy_distance"), **two("median_distance"), **two("w2_coupling"),
    **two("gelbrich_squared"), **two("assignment_w2_squared"),
    **two("mmd_squared", kernel=divergences.negative_distance), **two("w2_lower", key=KEY),
    "knn_kl(x)": (lambda v: divergences.knn_kl(v, Y), SAMPLES),
    "knn_kl(num_neighbours)": (lambda v: divergences.knn_kl(X, Y, num_neighbours=v), (*COUNT, 41)),
    "knn_kl(num_blocks)": (lambda v: divergences.knn_kl(X, Y, num_blocks=v), COUNT),
    "projected_kl(num_neighbours)": (
        lambda v: divergences.projected_kl(X, Y, np.eye(2)[None], num_neighbours=v), COUNT),
    "projected_kl(frames)": (
        lambda v: divergences.projected_kl(X, Y, v),
        (np.eye(2), np.eye(3)[None], *not_finite(1, 2, 2))),
    "histogram_kl(x)": (lambda v: divergences.histogram_kl(v, LINE),
                        (*not_finite(40), X[:0, 0], "x", None)),
    "histogram_kl(y)": (lambda v: divergences.histogram_kl(LINE, v),
                        (*not_finite(40), X[:0, 0], "x", None)),
    "histogram_kl(num_bins)": (lambda v: divergences.histogram_kl(LINE, LINE, num_bins=v), FROM_2),
    "rbf_mixture(bandwidths)": (divergences.rbf_mixture,
                                (0.0, -1.0, NAN, INF, (1.0, -1.0), (), "x")),
    "sliced_w2_squared(directions)": (
        lambda v: divergences.sliced_w2_squared(X, Y, v), (np.eye(3), *not_finite(2, 2))),
    "orthonormal_frames(num_frames)": (
        lambda v: divergences.orthonormal_frames(KEY, v, 2), COUNT),
    "w2_lower(num_frames)": (lambda v: divergences.w2_lower(X, Y, KEY, v), COUNT),
    "w2_bracket(num)": (lambda v: divergences.w2_bracket(X, Y, key=KEY, num=v), COUNT),
    "w2_bracket(key)": (lambda v: divergences.w2_bracket(X, Y, key=v), KEYS),
    "sinkhorn_divergence(epsilon)": (
        lambda v: divergences.sinkhorn_divergence(X, Y, v), POSITIVE),
    "sinkhorn_divergence(threshold)": (
        lambda v: divergences.sinkhorn_divergence(X, Y, 0.1, threshold=v), POSITIVE),
    "sinkhorn_divergence(max_iterations)": (
        lambda v: divergences.sinkhorn_divergence(X, Y, 0.1, max_iterations=v), COUNT),
    "log_ratio_kl(log_p)": (lambda v: divergences.log_ratio_kl(v, np.zeros(3)),
                            (np.zeros(2), *not_finite(3))),
    "quadrature(num_panels)": (lambda v: divergences.quadrature(0.1, 1.0, v), COUNT),
    "quadrature(num_nodes)": (lambda v: divergences.quadrature(0.1, 1.0, 2, v), COUNT),
    "quadrature(t_min)": (lambda v: divergences.quadrature(v, 1.0), (0.0, -1.0, 1.0, 2.0, NAN)),
    "girsanov_weights(times)": (
        lambda v: divergences.girsanov_weights(Flow(), v), ((NAN,), (-1.0,), (0.0,))),
    "certificates.box(low, high)": (
        lambda v: certificates.box(*map(np.array, v)),
        (([1.0], [0.0]), ([NAN], [1.0]), ([0.0], [INF]))),
    "certificates.sample_tube(max_symbols)": (
        lambda v: certificates.sample_tube(Q, BOX, STEPS, max_symbols=v), COUNT),
    "bootstrap(num)": (lambda v: estimates.bootstrap(jnp.mean, LINE, key=KEY, num=v), COUNT),
    "bootstrap(block)": (lambda v: estimates.bootstrap(jnp.mean, LINE, key=KEY, block=v),
                         (*COUNT, 41)),
    "bootstrap(key)": (lambda v: estimates.bootstrap(jnp.mean, LINE, key=v), KEYS),
    "bootstrap(stat_fn)": (lambda v: estimates.bootstrap(v, LINE, key=KEY), FUNCTIONS),
    "block_mean(num_blocks)": (lambda v: estimates.block_mean(jnp.mean, LINE, num_blocks=v),
                               (*FROM_2, 41)),
    "mean_interval(samples)": (estimates.mean_interval, (LINE[:1], LINE[:0], jnp.float32(1), "x")),
    "student_quantile(num)": (estimates.student_quantile, FROM_2),
    "beside_floor(key)": (
        lambda v: estimates.beside_floor(divergences.energy_distance, X, Y, key=v),
                          KEYS),
}  # fmt: skip
