"""DiT-XL/2's benchmark: ways that run the same network, in fewer bytes."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import dit_xl
from experiments.harness import command, networks
from qdiffjax.sites import list_sites


@pytest.mark.slow
def test_codes_of_8_bits_stay_near_bfloat16_and_take_half_the_arguments(tiny_dit_xl):
    config = dit_xl.Config(batch=16, num_steps=2, num_rounds=1, ways=("bf16", "W8A8 dynamic"))
    arrays, (base, ours) = dit_xl.EXPERIMENT.run(config)
    assert arrays["seconds"].shape == (1, 2)
    assert base["distance"] == 0
    assert base["over_bf16"] == 1
    assert 0 < ours["distance"] < 0.1
    assert ours["arguments_over_bf16"] < 0.75
    assert ours["argument_bits"] < base["argument_bits"]


def test_only_layers_that_see_many_tokens_round_their_activations(tiny_dit_xl):
    network = networks.load("dit_xl_2", dit_xl.BF16)
    params = networks.random_params(network)
    x = jnp.zeros((16, 8, 8, 4), jnp.float32)
    sites = list_sites(network.eps_fn, params, x, jnp.float32(0))
    way = dit_xl.WAYS["W8A8 dynamic"]
    q = dit_xl.quantized(network._replace(params=params), sites, way, x)
    rounded = {name for name, i in q.site_inputs.items() if any(i.activations)}
    assert any("mlp/up" in name for name in rounded)
    assert not any("modulation" in name or "condition" in name for name in rounded)
    assert any("modulation" in name for name in q.site_inputs)
    assert not any("head/out" in name for name in q.site_inputs)
    assert sum(a.size for a in jax.tree.leaves(q.params)) < sum(
        a.size for a in jax.tree.leaves(params)
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [(["--ways", "W4A16"], "expected bf16 and others"), (["--ways", "W3"], "expected one of bf16"),
     (["--network", "none"], "expected one of dit_s_2"), (["--batch", "0"], "at least 1")],
)  # fmt: skip
def test_what_cannot_run_is_refused(flags, text, tmp_path, capsys):
    assert command.main(dit_xl.EXPERIMENT, [*flags, "--output", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err
