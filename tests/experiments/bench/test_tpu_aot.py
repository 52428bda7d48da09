"""The benchmark of kernels by the TPU compiler: what needs no compiler."""

import math

import jax
import pytest

from experiments.bench.products import Product
from experiments.bench.tpu_aot import costs, experiment, scans
from experiments.harness import command, store
from qdiffjax.hardware.ahead import tpu
from qdiffjax.quant import IntFormat


def test_shapes_are_products_and_convolutions():
    assert costs.shape_of("4x5x6") == Product((4, 5), (5, 6))
    conv = costs.shape_of("2x8x9x5x6")
    assert conv == Product((2, 8, 9, 5), (3, 3, 5, 6))
    assert conv.outputs == 2 * 8 * 9 * 6
    assert conv.flops == 2 * 2 * 8 * 9 * 9 * 5 * 6
    with pytest.raises(ValueError, match="expected MxKxN"):
        costs.shape_of("4x5")


def test_no_schedule_is_faster_than_the_matrix_units_or_memory():
    way = costs.WAYS["W8A8 static"]
    large, thin = costs.shape_of("4096x4096x4096"), costs.shape_of("4096x8x8")
    assert costs.floor(large, None, "v5e") == 4096**3 / 4 / 128**2
    assert costs.floor(large, way, "v5e") == costs.floor(large, None, "v5e") / 2
    clock = 197e12 / (2 * 4 * 128**2)
    assert math.isclose(
        costs.floor(thin, way, "v5e"), (2 * 4096 * 16 + 64) / 819e9 * clock, rel_tol=1e-12
    )


def test_networks_of_shapes_are_lowered_where_channels_are_many():
    with jax.numpy_dtype_promotion("standard"):  # as users have it; norms of bfloat16 need it
        unet, dit = scans.unet((32, 64), 8, 2).denoiser, scans.dit(64, 1, 8, 2).denoiser
    assert "down_1_block_0/conv_1/kernel" in unet.site_inputs
    assert "block_0/mlp/up/kernel" in dit.site_inputs
    assert not {"conv_in/kernel", "conv_out/kernel"} & set(unet.site_inputs)
    assert not {"patchify/kernel", "head/out/kernel"} & set(dit.site_inputs)
    quantized = [*unet.site_inputs.values(), *dit.site_inputs.values()]
    assert all(q.weight.format == IntFormat(8) for q in quantized)


def test_a_step_is_what_runs_as_often_as_the_loop():
    runs = (("copy", 1, 7.0, 9.0), ("dot_general", 5, 10.0, 8.0), ("add", 10, 1.0, 2.0))
    ops = tuple(tpu.Op(name, name, "schedule", *numbers) for name, *numbers in runs)
    cost = tpu.TpuCost(7.0 + 5 * 10 + 10 * 1, 0.0, ops, 0.0, 0.0, {}, "", "", "")
    expected = {"step": 10 + 2 * 1, "issued": 8 + 2 * 2, "products": 10, "outside": 7}
    assert scans.by_step(cost, 5) == expected
    with pytest.raises(RuntimeError, match="no loop of 50"):
        scans.by_step(cost, 50)


def test_reasons_are_the_compilers_last_words_on_the_kernel():
    error = "exit code 1\nMosaic failed to compile TPU kernel: Unsupported matmul\nmore\n"
    assert costs.reason(error) == "Mosaic failed to compile TPU kernel: Unsupported matmul"


@pytest.mark.skipif(not tpu.missing(), reason="libtpu is installed")
def test_without_the_compiler_it_says_so(capsys):
    assert command.main(experiment.EXPERIMENT, []) == 2
    assert "pip install 'qdiffjax[aot]'" in capsys.readouterr().err


def test_saved_results_hold_the_target_on_v5e():
    _, _, rows = store.load("bench_tpu_aot")
    codes = [r for r in rows if r["how"] in ("W8A8 static", "W8A8 dynamic") and "ratio" in r]
    assert len(codes) >= 12
    assert all(r["ratio"] <= 0.6 for r in codes)


def test_saved_convolutions_take_the_same_share_of_instructions():
    _, _, rows = store.load("bench_tpu_aot")
    convs = [r for r in rows if r["part"].count("x") == 4 and r["how"].startswith("W8A8")]
    ours = [r for r in convs if not r["how"].endswith("XLA")]
    assert len(ours) >= 6
    assert all(r["ratio_issued"] <= 0.6 for r in ours)


def test_the_saved_step_of_a_unet_has_fewer_instructions_in_codes_on_v5e():
    _, _, rows = store.load("bench_tpu_aot")
    steps = {r["how"]: r for r in rows if r["part"].startswith("unet-v5e-")}
    assert steps["kernels"]["issued"] < steps["bf16"]["issued"]
    assert steps["kernels"]["memory"]["argument"] < 0.55 * steps["bf16"]["memory"]["argument"]
