"""Wrong calls of the front door's functions, on a network of two matrices."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

import qdiffjax as qd
from qdiffjax import precision
from qdiffjax.comparisons import Run
from qdiffjax.verdicts import Limits
from tests.wrong_calls import (
    AT_LEAST_0,
    COUNT,
    FROM_2,
    FUNCTIONS,
    INF,
    KEY,
    KEYS,
    NAN,
    POSITIVE,
    not_finite,
)

PARAMS = {"in": jnp.eye(2, dtype=jnp.float32), "out": jnp.eye(2, dtype=jnp.float32)}


def net_fn(params, x, t):
    return x @ params["in"] @ params["out"]


DENOISER = qd.Denoiser(net_fn, PARAMS, qd.linear(), (2,))
STEPS = qd.ddim(DENOISER.schedule, 4)
BEYOND = qd.ddim(qd.linear(2000), 4)  # of a longer schedule
SITES = DENOISER.sites()
RANGE = (jnp.zeros(4, jnp.float32), jnp.ones(4, jnp.float32))
CALIBRATION = qd.Calibration(DENOISER, SITES, dict(PARAMS), {site.name: (RANGE,) for site in SITES})
OTHER = {
    "ranges of another network": {"ranges": {"conv/kernel": (RANGE,)}},
    "ranges of more operands": {"ranges": {site.name: (RANGE, RANGE) for site in SITES}},
    "weights of another shape": {"weights": {"in": jnp.eye(3), "out": jnp.eye(2)}},
    "weights of another network": {"weights": {"kernel": jnp.eye(2)}},
}
Q = qd.Quantized(DENOISER, {"in": precision.SiteQuant()})
RUN = Run(*(jnp.zeros((n, 3, 2), jnp.float32) for n in (5, 5, 4)))
RUNS = (
    None, (RUN.xs, RUN.xs_hat),
    RUN._replace(xs=RUN.xs[:, :, :1]), RUN._replace(xs=RUN.xs[1:]),
)  # fmt: skip
NOISE = (
    np.zeros((3, 2), np.int32), np.zeros((3, 3), np.float32), np.float32(1.0),
    np.zeros((0, 2), np.float32), *not_finite(3, 2),
)  # fmt: skip
NOT_STEPS = (None, 4, KEY, BEYOND)
NOT_QUANTIZED = (None, DENOISER, CALIBRATION)
bits = qd.SiteBits
both = functools.partial
ROWS = {
    "Denoiser(net_fn)": (lambda v: qd.Denoiser(v, {}), FUNCTIONS),
    "Denoiser(schedule)": (lambda v: qd.Denoiser(net_fn, {}, v), ("linear", 1000, np.ones(3))),
    "Denoiser(shape)": (lambda v: qd.Denoiser(net_fn, {}, None, v),
                        (2, (0,), (2.5,), (), (-1, 2), "ab", (NAN,))),
    "Denoiser(prediction)": (lambda v: qd.Denoiser(net_fn, {}, prediction=v), ("epsilon", 3, None)),
    "Denoiser(cond)": (lambda v: qd.Denoiser(net_fn, {}, cond=v),
                       (3, np.int64([2**31]), np.int64([-(2**31) - 1]),
                        (np.zeros(2), np.zeros(3)))),
    "Denoiser.draw(num)": (lambda v: DENOISER.draw(KEY, v), COUNT),
    "Denoiser.draw(key)": (lambda v: DENOISER.draw(v, 2), KEYS),
    "Denoiser.sites(batch)": (DENOISER.sites, COUNT),
    "Denoiser.guided(scale)": (lambda v: DENOISER.guided(v, 0), (NAN, "x", None)),
    "edm_preconditioning(sigma_data)": (qd.edm_preconditioning, POSITIVE),
    "calibrate(denoiser)": (lambda v: qd.calibrate(v, STEPS, KEY), (None, net_fn, Q)),
    "calibrate(steps)": (lambda v: qd.calibrate(DENOISER, v, KEY), NOT_STEPS),
    "calibrate(key)": (lambda v: qd.calibrate(DENOISER, STEPS, v), KEYS),
    "calibrate(num_samples)": (lambda v: qd.calibrate(DENOISER, STEPS, KEY, num_samples=v), COUNT),
    "calibrate(x_T)": (lambda v: qd.calibrate(DENOISER, STEPS, KEY, x_T=v), NOISE),
    "recommend(budget)": (lambda v: qd.recommend(CALIBRATION, STEPS, v, key=KEY, sites=("*",)),
                          (0.0, -1.0, NAN, 2.0, None)),
    "recommend(key)": (lambda v: qd.recommend(CALIBRATION, STEPS, 9.0, key=v), KEYS),
    "recommend(num_noises)": (
        lambda v: qd.recommend(CALIBRATION, STEPS, 9.0, key=KEY, num_noises=v), COUNT),
    "recommend(num_samples)": (
        lambda v: qd.recommend(CALIBRATION, STEPS, 9.0, key=KEY, num_samples=v), FROM_2),
    "recommend(num_probes)": (
        lambda v: qd.recommend(CALIBRATION, STEPS, 9.0, key=KEY, num_probes=v), COUNT),
    "recommend(confidence)": (
        lambda v: qd.recommend(CALIBRATION, STEPS, 9.0, key=KEY, confidence=v), (0.0, 1.0, NAN)),
    "recommend(choices)": (
        lambda v: qd.recommend(CALIBRATION, STEPS, 9.0, v, key=KEY), ((), "W4", (4.5,), ("A8",))),
    "recommend(calibration)": (lambda v: qd.recommend(v, STEPS, 9.0, key=KEY), (None, DENOISER)),
    "Calibration.widened(factor)": (CALIBRATION.widened, POSITIVE),
    "Calibration.widened(names)": (lambda v: CALIBRATION.widened(1.2, v), (("inptu",), ("x",))),
    "quantize(calibration)": (lambda v: qd.quantize(v, "W8A8"), (None, DENOISER, "W8A8")),
    "quantize(recipe)": (lambda v: qd.quantize(CALIBRATION, v),
                         (None, 8, "W99A8", "W0", "8", "", "A17", "W4.5", qd.Recipe({}),
                          qd.Recipe({"inn": bits(8, 8)}),
                          qd.Recipe({"in": bits(8, 8), "outt": bits(4)}))),
    "quantize(sites)": (lambda v: qd.quantize(CALIBRATION, "W8A8", sites=v),
                        (("conv*",), ("inn",), ("!x",))),
    "quantize(activations)": (lambda v: qd.quantize(CALIBRATION, "W8A8", activations=v),
                              ("dynamik", 8)),
    "quantize(edge_margin)": (
        lambda v: qd.quantize(CALIBRATION, "W8A8", activations="static", edge_margin=v), POSITIVE
    ),
    "lower(edge_margin)": (
        lambda v: qd.lower(CALIBRATION, "W8A8", activations="static", edge_margin=v), POSITIVE
    ),
    "lower(recipe)": (
        lambda v: qd.lower(CALIBRATION, v), (None, "W99A8", qd.Recipe({"x": bits(8)}))),
    "quantize(options)": (lambda v: qd.quantize(CALIBRATION, "W8A8", **{v: 1}),
                         ("granularty", "calibrate", "format")),
    "quantize(ranges)": (
        lambda v: qd.quantize(dataclasses.replace(CALIBRATION, **OTHER[v]), "W8A8"),
        tuple(name for name in OTHER if name.startswith("ranges")),
    ),
    "quantize(weights)": (
        lambda v: qd.quantize(dataclasses.replace(CALIBRATION, **OTHER[v]), "W8A8"),
        tuple(name for name in OTHER if name.startswith("weights")),
    ),
    "Recipe(bits)": (lambda v: qd.Recipe({"in": bits(v, 8)}), (99, 0, 17, 8.5, "8", True, -4)),
    "Recipe(recipe)": (qd.Recipe, ({"in": 8}, {"in": (8, 8)}, {3: bits(8, 8)})),
    "Recipe.from_json(recipe)": (
        lambda v: qd.Recipe.from_json(v, SITES),
        ('{"inn": {"weight": 8}}', '{"in": {"wieght": 8}}', '{"in": 8}', "[1]", "not json"),
    ),
    "uniform(bits)": (lambda v: precision.uniform(SITES, weight_bits=v, activation_bits=8),
                      (99, 0, 2.5, "8")),
    "draw_scores(q)": (lambda v: qd.draw_scores(v, STEPS, KEY), (None, DENOISER, CALIBRATION)),
    "draw_scores(steps)": (lambda v: qd.draw_scores(Q, v, KEY), NOT_STEPS),
    "draw_scores(key)": (lambda v: qd.draw_scores(Q, STEPS, v), KEYS),
    "draw_scores(num_samples)": (lambda v: qd.draw_scores(Q, STEPS, KEY, v), COUNT),
    "draw_scores(box)": (lambda v: qd.draw_scores(Q, STEPS, KEY, 2, box=v),
                         ((1.0, -1.0), (0.0, 0.0), (0.0, NAN), (0.0, INF), "x", None)),
    "split_noise(key)": (qd.split_noise, KEYS),
    "promise(scores)": (qd.promise, (None, np.ones(40), Q)),
    "choose_recipe(recipes)": (
        lambda v: qd.choose_recipe(v, STEPS, KEY, 2, lambda s: 0.0), ({},)),
    "choose_recipe(p_value_fn)": (
        lambda v: qd.choose_recipe({"q": Q}, STEPS, KEY, 2, v), FUNCTIONS),
    "verdict(expected)": (lambda v: qd.verdict(v, Q, STEPS, KEY), NOT_QUANTIZED),
    "verdict(suspect)": (lambda v: qd.verdict(Q, v, STEPS, KEY), (None, DENOISER, 1)),
    "verdict(steps)": (lambda v: qd.verdict(Q, Q, v, KEY), NOT_STEPS),
    "verdict(key)": (lambda v: qd.verdict(Q, Q, STEPS, v), KEYS),
    "verdict(num_samples)": (lambda v: qd.verdict(Q, Q, STEPS, KEY, v), COUNT),
    "verdict(own_steps)": (
        lambda v: qd.verdict(Q, Q, STEPS, KEY, own_steps=v),
        (4, BEYOND, qd.ddim(DENOISER.schedule, 5)),
    ),
    "verdict(limits)": (
        lambda v: qd.verdict(Q, Q, STEPS, KEY, limits=Limits(v, 2.0, 2.0, 0.5)), (0.0, NAN, "x")),
    "verdict(batch_size)": (lambda v: qd.verdict(Q, Q, STEPS, KEY, batch_size=v), COUNT),
    "sample(model)": (lambda v: qd.sample(v, STEPS, KEY), (None, net_fn, CALIBRATION)),
    "sample(steps)": (lambda v: qd.sample(DENOISER, v, KEY), NOT_STEPS),
    "sample(key)": (lambda v: qd.sample(DENOISER, STEPS, v), KEYS),
    "sample(num_samples)": (lambda v: qd.sample(DENOISER, STEPS, KEY, v), COUNT),
    "sample(batch_size)": (lambda v: qd.sample(DENOISER, STEPS, KEY, batch_size=v), COUNT),
    "sample(x_T)": (lambda v: qd.sample(DENOISER, STEPS, KEY, x_T=v), NOISE),
    "couple(q)": (lambda v: qd.couple(v, STEPS, KEY), NOT_QUANTIZED),
    "couple(steps)": (lambda v: qd.couple(Q, v, KEY), NOT_STEPS),
    "couple(key)": (lambda v: qd.couple(Q, STEPS, v), KEYS),
    "couple(num_samples)": (lambda v: qd.couple(Q, STEPS, KEY, v), COUNT),
    "couple(x_T)": (lambda v: qd.couple(Q, STEPS, KEY, x_T=v), NOISE),
    "predict(run)": (lambda v: qd.predict(Q, STEPS, v), RUNS),
    "predict(q)": (lambda v: qd.predict(v, STEPS, RUN), NOT_QUANTIZED),
    "predict(batch_size)": (lambda v: qd.predict(Q, STEPS, RUN, batch_size=v), COUNT),
    "propagate(run)": (lambda v: qd.propagate(Q, STEPS, v), RUNS),
    "propagate(steps)": (lambda v: qd.propagate(Q, v, RUN), NOT_STEPS),
    "attribute(run)": (lambda v: qd.attribute(Q, STEPS, v), RUNS),
    "attribute(num_samples)": (lambda v: qd.attribute(Q, STEPS, RUN, num_samples=v), COUNT),
    "attribute(tolerance)": (lambda v: qd.attribute(Q, STEPS, RUN, tolerance=v), AT_LEAST_0),
    "attribute(max_nodes)": (lambda v: qd.attribute(Q, STEPS, RUN, max_nodes=v), (*COUNT, 16)),
    "attribute(functional)": (lambda v: qd.attribute(Q, STEPS, RUN, functional=v), FUNCTIONS),
    "bound(run)": (lambda v: qd.bound(Q, STEPS, v), RUNS),
    "bound(num_samples)": (lambda v: qd.bound(Q, STEPS, RUN, num_samples=v), COUNT),
    "bound(num_iterations)": (lambda v: qd.bound(Q, STEPS, RUN, num_iterations=v), FROM_2),
    "study(q)": (lambda v: qd.study(v, STEPS, KEY), NOT_QUANTIZED),
    "study(steps)": (lambda v: qd.study(Q, v, KEY), NOT_STEPS),
    "study(key)": (lambda v: qd.study(Q, STEPS, v), KEYS),
    "study(num_samples)": (lambda v: qd.study(Q, STEPS, KEY, v), COUNT),
    "study(num_ledger)": (lambda v: qd.study(Q, STEPS, KEY, num_ledger=v), COUNT),
    "study(num_bound)": (lambda v: qd.study(Q, STEPS, KEY, num_bound=v), COUNT),
    "report(study)": (qd.report, (None, "folder", RUN)),
    "plot_errors(study)": (qd.plot_errors, (None, RUN)),
    "plot_ledger(ledger)": (qd.plot_ledger, (None, RUN, np.zeros((4, 2)))),
    "plot_recipe(recipe)": (lambda v: qd.plot_recipe(v, SITES),
                            ("W8A8", None, qd.Recipe({"inn": bits(8)}))),
    "plot_sites(sites)": (qd.plot_sites, (None, ("in", "out"), DENOISER)),
    "load(path)": (qd.load, ("fashion_unett", None, 3)),
    "list_sites(fn)": (qd.list_sites, FUNCTIONS),
    "match(sites)": (lambda v: qd.sites.match(SITES, v), (("inn",), ("conv/*",))),
    "from_linen(module)": (lambda v: qd.from_linen(v), (None, net_fn)),
    "from_nnx(module)": (qd.from_nnx, (None, net_fn)),
    "from_equinox(module)": (qd.from_equinox, (None, 3)),
}  # fmt: skip
