"""A denoiser is one function whatever its network predicts, takes and returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import ledger
from qdiffjax.denoiser import Denoiser, edm_preconditioning
from qdiffjax.diffusion import gaussian
from qdiffjax.sites import list_sites, rules, transform
from tests.laws import gaussian_law
from tests.tolerances import assert_close
from tests.worlds import normal

KEY = jax.random.key(3)
PROCESSES = {
    "vp": (diffusion.VP(), 0.4), "ve": (diffusion.VE(), 0.3), "edm": (diffusion.EDM(), 1.7),
    "flow": (diffusion.Flow(), 0.6), "discrete": (diffusion.linear(), 300.0),
}  # fmt: skip
EVERY_PROCESS = pytest.mark.parametrize("name", PROCESSES)

# ------------------------------------------------------------------ one law, every prediction

MEAN, COV = normal(0, 2), np.array([[0.5, 0.2], [0.2, 0.3]])
X = 2 * normal(1, 4, 2)


def posterior_mean(x, alpha, sigma):
    """E[x_0 | x_t] of N(MEAN, COV), by conditioning a joint Gaussian."""
    gain = alpha * COV @ np.linalg.inv(alpha**2 * COV + sigma**2 * np.eye(2))
    return MEAN[None] + (x - alpha * MEAN[None]) @ gain.T


def predicted(word, process):
    """The exact denoiser's word for what is in x, as a network."""

    def net_fn(params, x, t):
        alpha, sigma = (float(a) for a in process.exact(t))
        x_0 = posterior_mean(x, alpha, sigma)
        eps = (x - alpha * x_0) / sigma
        return {
            "eps": eps, "x_0": x_0, "v": alpha * eps - sigma * x_0, "score": -eps / sigma,
            "flow": eps - x_0,
        }[word]  # fmt: skip

    return net_fn


@pytest.mark.slow
@EVERY_PROCESS
@pytest.mark.parametrize("word", ["eps", "x_0", "v", "score", "flow"])
def test_networks_that_predict_different_things_of_one_law_have_one_eps(name, word):
    process, t = PROCESSES[name]
    exact = gaussian.eps_fn_for(process)(gaussian_law(MEAN, COV), X, t)
    net_fn = predicted(word, process)  # of a concrete time
    denoiser = Denoiser(lambda params, x, _: net_fn(params, x, t), {}, process, (2,), word)
    assert_close(denoiser.eps_fn({}, X, jnp.float64(t)), exact, factor=2**14)


def raw_edm_fn(params, u, noise, d=0.5):
    """F(u; c_noise) with D = c_skip x + c_out F the exact posterior mean; Karras et al., eq. 7."""
    s = jnp.exp(4 * noise)
    total = jnp.sqrt(s**2 + d**2)
    x = u * total
    precise = jnp.linalg.inv(COV + s**2 * jnp.eye(2))
    x_0 = MEAN[None] + (x - MEAN[None]) @ (COV @ precise).T
    return (x_0 - d**2 / total**2 * x) / (s * d / total)


@pytest.mark.slow
@EVERY_PROCESS
def test_a_raw_network_in_edms_preconditioning_is_the_same_denoiser_on_every_process(name):
    process, t = PROCESSES[name]
    exact = gaussian.eps_fn_for(process)(gaussian_law(MEAN, COV), X, t)
    denoiser = Denoiser(raw_edm_fn, {}, process, (2,), edm_preconditioning(0.5))
    assert_close(denoiser.eps_fn({}, X, jnp.float64(t)), exact, factor=2**14)


# ------------------------------------------------------------------ times, results, conditions

PARAMS = {"in": normal(2, 2, 6), "label": normal(3, 3, 6), "out": normal(4, 6, 2)}
LABELS, T = jnp.array([2, 0, 1, 1]), jnp.float64(20.0)
SCHEDULE = diffusion.linear(40, 1e-3, 0.2)


def net_fn(params, x, t, label=None, scale=1.0):
    """A network of one time, and of a label for each sample."""
    h = x @ params["in"] + jnp.sin(t / 9)
    return jnp.tanh(h if label is None else h + params["label"][label]) @ params["out"] * scale


def each_fn(params, x, t, *condition):
    """The same of one time for each sample, which it first asks for after a product."""
    h = x @ params["in"]
    h = h + jnp.sin(t / 9)[:, None]
    return jnp.tanh(h if not condition else h + params["label"][condition[0]]) @ params["out"]


def denoise(fn, **fields):
    return Denoiser(fn, PARAMS, SCHEDULE, (2,), **fields)


def eps_of(denoiser, *cond):
    return jax.jit(denoiser.eps_fn)(denoiser.params, X, T, *cond)


def test_a_network_of_one_time_for_each_sample_is_its_twin_of_one_time():
    assert_close(eps_of(denoise(each_fn)), eps_of(denoise(net_fn)))
    assert_close(eps_of(denoise(each_fn), LABELS), eps_of(denoise(net_fn), LABELS))


@pytest.mark.slow
def test_times_of_each_sample_reach_the_network_as_they_are():
    times = jnp.array([1.0, 10.0, 20.0, 40.0])
    found = denoise(each_fn, prediction="v").eps_fn(PARAMS, X, times)
    for i in range(4):
        one = denoise(net_fn, prediction="v").eps_fn(PARAMS, X[i : i + 1], times[i])
        assert_close(found[i], one[0])


def test_what_was_tried_at_the_wrong_time_leaves_no_sites():
    sites = list_sites(denoise(each_fn).eps_fn, PARAMS, X, T)
    assert [s.name for s in sites] == ["input", "in", "out", "output"]


def test_the_errors_of_the_network_itself_are_shown_whichever_time_it_takes():
    def broken(params, x, t):
        return each_fn(params, x, t) @ params["missing"]

    with pytest.raises((IndexError, ValueError)) as caught:
        denoise(broken).eps_fn(PARAMS, X, T)
    assert "fails too: KeyError: 'missing'" in "".join(caught.value.__notes__)
    with pytest.raises(KeyError, match="missing"):
        denoise(lambda params, x, t: x @ params["missing"]).eps_fn(PARAMS, X, T)
    with pytest.raises(KeyError, match="missing"):
        denoise(broken).eps_fn(PARAMS, X, jnp.full(4, T))


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda out: (out, None), 0),
        (lambda out: {"sigma": None, "eps": out}, "eps"),
        (lambda out: jnp.concatenate([out, 3 * out], axis=-1), lambda out: out[..., :2]),
    ],
    ids=["tuple", "dict", "channels"],
)
def test_a_result_of_several_parts_is_read_where_output_says(wrap, output):
    wrapped = denoise(lambda *args: wrap(net_fn(*args)), output=output)
    assert_close(eps_of(wrapped), eps_of(denoise(net_fn)))


@pytest.mark.parametrize(
    ("wrap", "output", "message"),
    [
        (lambda out: (out, out), None, "got a tuple of 2, expected one array.*output="),
        (lambda out: {"eps": out}, None, r"got a dict of \['eps'\]"),
        (lambda out: {"eps": out}, "x", r"got 'x' of a dict of \['eps'\]"),
        (lambda out: (out, out), 2, "got 2 of a tuple of 2"),
        (lambda out: jnp.tile(out, (1, 2)), None, r"got an array \[4, 4\] for x \[4, 2\]"),
    ],
)
def test_a_result_that_is_no_prediction_is_refused(wrap, output, message):
    with pytest.raises(ValueError, match=message):
        denoise(lambda *args: wrap(net_fn(*args)), output=output).eps_fn(PARAMS, X, T)


def test_conditions_are_one_argument_several_or_named():
    expected = net_fn(PARAMS, X, T, LABELS, normal(5, 4, 1))
    one = denoise(lambda params, x, t, c: net_fn(params, x, t, c["l"], c["s"]))
    cond = {"l": LABELS, "s": normal(5, 4, 1)}
    assert_close(one.eps_fn(PARAMS, X, T, (cond,)), expected)
    assert_close(denoise(net_fn).eps_fn(PARAMS, X, T, (LABELS, cond["s"])), expected)
    named = {"label": LABELS, "scale": cond["s"]}
    assert_close(denoise(net_fn).eps_fn(PARAMS, X, T, named), expected)


# ------------------------------------------------------------------ draws


@pytest.mark.slow
def test_a_sample_and_its_condition_do_not_depend_on_how_many_are_drawn():
    denoiser = denoise(net_fn, cond=(LABELS[:3], normal(5, 3, 1)))
    few, many = denoiser.draw(KEY, 2), denoiser.draw(KEY, 5)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:2]), few, many)
    np.testing.assert_array_equal(many.cond[0], [2, 0, 1, 2, 0])
    assert not np.allclose(many.x_T[0], many.x_T[1])
    assert denoise(net_fn).draw(KEY, 2).cond is None


@pytest.mark.parametrize(
    ("process", "t", "std"),
    [(diffusion.VE(), 1.0, 50.0), (diffusion.EDM(), 80.0, 80.0), (diffusion.VP(), 1.0, 1.0),
     (SCHEDULE, 40, 1.0), (diffusion.Flow(), 1.0, 1.0), (diffusion.Flow(), 0.75, 0.75)],
)  # fmt: skip
def test_noise_has_the_standard_deviation_of_the_process_at_its_end(process, t, std):
    denoiser = Denoiser(net_fn, PARAMS, process, (2,))
    unit, scaled = denoiser.draw(KEY, 3).x_T, denoiser.draw(KEY, 3, t).x_T
    assert_close(scaled, np.float32(std) * unit)
    wide = Denoiser(net_fn, PARAMS, process, (4000,)).draw(KEY, 4, t).x_T
    assert float(np.std(wide)) == pytest.approx(std, rel=0.03)


def test_conditions_that_are_drawn_are_not_the_noise():
    """In JAX fold_in(key, i) is split(key)[i]: the noise of sample i, had they one key."""
    drawn = denoise(
        net_fn, cond=lambda key, num: jax.random.normal(jax.random.split(key)[0], (num, 2))
    )
    x_T, cond = drawn.draw(KEY, 3)
    assert cond.shape == (3, 2)
    assert not np.any(np.isclose(x_T, cond.astype(x_T.dtype)))
    np.testing.assert_array_equal(cond, drawn.draw_cond(KEY, 3))


# ------------------------------------------------------------------ guidance

W, NULL = 2.5, 0


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("fn", [net_fn, each_fn])
def test_guidance_is_the_combination_of_two_calls(prediction, fn):
    denoiser = denoise(fn, prediction=prediction)
    without, with_cond = (eps_of(denoiser, c) for c in (jnp.zeros_like(LABELS), LABELS))
    expected = (1 - W) * without + W * with_cond
    assert_close(eps_of(denoiser.guided(W, NULL), LABELS), expected, factor=64)
    in_time = denoiser.guided(lambda t: jnp.where(t > 10, W, 1.0), NULL)
    assert_close(eps_of(in_time, LABELS), expected, factor=64)


def test_guidance_takes_conditions_of_every_structure():
    scale = normal(5, 4, 1)
    named = denoise(net_fn).guided(W, {"label": 0, "scale": 1.0})
    several = denoise(net_fn).guided(W, (0, 1.0))
    expected = (1 - W) * net_fn(PARAMS, X, T, LABELS * 0) + W * net_fn(PARAMS, X, T, LABELS, scale)
    assert_close(eps_of(named, {"label": LABELS, "scale": scale}), expected, factor=64)
    assert_close(eps_of(several, (LABELS, scale)), expected, factor=64)


def weights_to(step, params=PARAMS):
    return {k: precision.SiteQuant(step * jnp.round(params[k] / step)) for k in ("in", "out")}


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_quantized_guided_network_is_the_combination_of_quantized_branches(prediction):
    denoiser = denoise(net_fn, prediction=prediction)
    rounded = PARAMS | {k: q.weight for k, q in weights_to(0.25).items()}
    without, with_cond = (
        denoiser.eps_fn(rounded, X, T, c) for c in (jnp.zeros_like(LABELS), LABELS)
    )
    q = precision.Quantized(denoiser.guided(W, NULL).conditioned(LABELS), weights_to(0.25))
    found = jax.jit(precision.quantized_call(q))(X, T, None)[0]
    assert_close(found, (1 - W) * without + W * with_cond, factor=64)


def test_the_ledger_of_a_guided_network_sums_to_the_change_of_its_own_batched_run():
    steps = diffusion.ddim(SCHEDULE, 4)
    guided = denoise(net_fn, prediction="v").guided(W, NULL).conditioned(LABELS)
    q = precision.Quantized(guided, weights_to(0.125))

    @jax.jit
    def run(q):
        calls = precision.full_call(q), precision.quantized_call(q)
        x_0, x_hat_0 = (diffusion.sample(call, X, steps).x_0 for call in calls)
        return ledger.total(ledger.attribution(q, X, steps, num_nodes=4)), x_0, x_hat_0

    total, x_0, x_hat_0 = run(q)
    np.testing.assert_allclose(total, np.mean((x_hat_0 - x_0) ** 2, axis=1), rtol=1e-6)


def test_guidance_without_conditions_is_refused():
    with pytest.raises(ValueError, match="guided: got no conditions"):
        denoise(net_fn).guided(W, NULL).eps_fn(PARAMS, X, T)


# ------------------------------------------------------------------ edges


def edges_of(denoiser, *cond):
    """What the sites `input` and `output` see."""
    seen = transform(denoiser.eps_fn, rules.collect_operands)
    operands = jax.jit(seen)(denoiser.params, X, T, *cond)[1]
    assert set(operands) == {"input", "in", "out", "output"}
    return operands["input"][0], operands["output"][0]


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v", "score", "flow"])
def test_edges_are_what_the_network_takes_and_gives_not_eps(prediction):
    first, last = edges_of(denoise(net_fn, prediction=prediction))
    assert_close(first, X)
    assert_close(last, net_fn(PARAMS, X, T))


def test_edges_are_inside_preconditioning():
    denoiser = Denoiser(net_fn, PARAMS, diffusion.EDM(), (2,), edm_preconditioning(0.5))
    first, last = edges_of(denoiser)
    scaled = X / np.sqrt(20.0**2 + 0.5**2)
    assert_close(first, scaled)
    assert_close(last, net_fn(PARAMS, scaled, np.log(20.0) / 4))


@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_edges_are_inside_guidance_those_of_both_branches(prediction):
    first, last = edges_of(denoise(net_fn, prediction=prediction).guided(W, NULL), LABELS)
    assert_close(first, np.concatenate([X, X]))
    both = [net_fn(PARAMS, X, T, c) for c in (jnp.zeros_like(LABELS), LABELS)]
    assert_close(last, np.concatenate(both))


def test_rounding_the_edges_rounds_the_network_alone():
    """With a flow network: the x of the conversion to eps is not the rounded one."""
    step = jnp.full((1, 1), 0.125)

    def rounding(site, op, operands, inputs):
        is_edge = site.kind in ("input", "output")
        return (step * jnp.round(operands[0] / step) if is_edge else op(*operands)), None

    denoiser = denoise(net_fn, prediction="flow")
    found = jax.jit(transform(denoiser.eps_fn, rounding))(PARAMS, X, T)[0]
    out = step * jnp.round(net_fn(PARAMS, step * jnp.round(X / step), T) / step)
    alpha, sigma = SCHEDULE.exact(20)
    assert_close(found, (alpha * out + X) / (alpha + sigma))


# ------------------------------------------------------------------ a pytree


def test_other_parameters_and_conditions_compile_nothing():
    compiled = []

    @jax.jit
    def run(q, x):
        compiled.append(None)
        return precision.quantized_call(q)(x, T, None)[0]

    made = denoise(net_fn, prediction="v", cond=LABELS)
    doubled = jax.tree.map(lambda a: 2 * a, made)
    again = denoise(net_fn, prediction="v", cond=LABELS[::-1])
    results = [run(precision.Quantized(d, weights_to(s)), X)
               for d, s in ((made, 0.25), (again, 0.5), (doubled, 0.25))]  # fmt: skip
    assert len(compiled) == 1
    assert len({float(jnp.sum(r)) for r in results}) == 3
    np.testing.assert_array_equal(doubled.cond, 2 * LABELS)
    assert (doubled.prediction, doubled.shape, doubled.net_fn) == ("v", (2,), net_fn)


def test_denoisers_that_differ_in_data_alone_share_one_function():
    one = denoise(net_fn, prediction="v", cond=LABELS).guided(W, NULL)
    other = Denoiser(net_fn, {}, diffusion.linear(40, 1e-3, 0.2), (2,), "v").guided(W, NULL)
    assert one.eps_fn is other.eps_fn is one.conditioned(lambda key, num: None).eps_fn
    assert one.eps_fn is not denoise(net_fn, prediction="x_0").eps_fn
    assert one.eps_fn is not denoise(net_fn, prediction="v").guided(3.0, NULL).eps_fn
    edm = [Denoiser(net_fn, {}, diffusion.EDM(), (2,), edm_preconditioning(s)) for s in (1, 1, 2)]
    assert edm[0].eps_fn is edm[1].eps_fn is not edm[2].eps_fn


class Callable:
    """A network that is a bound method, a new object each time it is named."""

    def apply(self, params, x, t):
        return net_fn(params, x, t)


def test_a_bound_method_is_one_network():
    module = Callable()
    assert denoise(module.apply).eps_fn is denoise(module.apply).eps_fn


def test_a_denoiser_without_data_is_a_tree_too():
    drawn = denoise(net_fn, cond=lambda key, num: LABELS[:num])
    back = jax.tree.unflatten(*reversed(jax.tree.flatten(drawn)))
    assert back.cond is drawn.cond
    assert jax.tree.map(lambda a: None, drawn).params == dict.fromkeys(PARAMS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: denoise(net_fn, prediction="noise"), "prediction: got 'noise'"),
        (lambda: denoise(net_fn, cond=(LABELS, LABELS[:2])), "cond: got leading axes"),
        (lambda: denoise(net_fn, cond=jnp.float64(1)), "leading axis of samples"),
        (lambda: Denoiser(net_fn, {}, SCHEDULE, (0, 2)), "shape: got"),
        (lambda: Denoiser(net_fn, {}, SCHEDULE).draw(KEY, 2), "no shape"),
        (lambda: Denoiser(net_fn, {}, None, (2,), "v").eps_fn, "no schedule"),
        (lambda: denoise(net_fn, cond=lambda key, num: LABELS).draw(KEY, 2), "leading axis of 2"),
        (lambda: denoise(net_fn, cond=lambda key, num: LABELS).draw_cond(None, 4), "no key"),
    ],
)
def test_what_makes_no_denoiser_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
