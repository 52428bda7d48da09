"""What every experiment does alike: help, refusals, resumption; and that documented values run.

Whatever `python -m` runs is found in the tree, so a new experiment is tested when it is written.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import command, store, subject
from qdiffjax import diffusion, results
from qdiffjax.denoiser import Denoiser
from tests import worlds

ROOT = Path(command.__file__).parents[1]


def found() -> dict[str, str]:
    """{command: module that holds its EXPERIMENT}, of the whole tree."""
    modules = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("experiments", *path.relative_to(ROOT).with_suffix("").parts)
        name = ".".join(parts).removesuffix(".__main__")
        if path.name == "__main__.py":
            modules[name] = name + ".experiment"
        elif "\nif __name__ ==" in path.read_text() and "EXPERIMENT" in path.read_text():
            modules[name] = name
    return modules


MODULES = found()
TRAIN = "experiments.train"  # a run and a checkpoint, no arrays and rows
NAMES = [name for name in MODULES if name != TRAIN]


def experiment(name):
    return importlib.import_module(MODULES[name]).EXPERIMENT


def config_of(name):
    module = importlib.import_module(MODULES[name])
    return module.Config if name == TRAIN else module.EXPERIMENT.config


def main(name):
    """The command, as a function of its flags."""
    if name == TRAIN:
        return importlib.import_module(MODULES[name]).main
    return functools.partial(command.main, experiment(name))


def flag(field):
    return "--" + field.name.replace("_", "-")


def outcome(run, argv, capsys):
    """(exit code, lines on stderr) of a command that is expected to refuse."""
    try:
        code = run([str(a) for a in argv])
    except SystemExit as done:
        code = done.code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, err.splitlines()


def test_all_are_found():
    assert {TRAIN, "experiments.error_bounds", "experiments.bench.quant"} <= set(MODULES)
    assert len(MODULES) > 25


@pytest.mark.parametrize("name", MODULES)
def test_help_says_the_command_and_explains_every_flag(name, capsys):
    with pytest.raises(SystemExit) as done:
        main(name)(["--help"])
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: python -m {name} ")
    for field in dataclasses.fields(config_of(name)):
        assert f"{flag(field)} " in text
        words = field.metadata["help"].split()
        assert text.replace(" ", "").count("".join(words).replace("%%", "%"))


# ------------------------------------------------------------------ the second stage: runs

DIT, UNET = worlds.TINY_DIT, worlds.TINY
CLASSES = dataclasses.replace(DIT, num_classes=10)
# The cheapest run with more than one part: (network, its flag, other flags).
MINIATURES = {
    "bench.site_latency": (
        DIT, "checkpoint", "--num-steps 2 --batch 2 --num-rounds 2 --recipe W8A8 W8"
    ),
    "allocate": (
        DIT, "checkpoint",
        "--budget-bits 4 4.5 --widths 4 5 --roundings sums nearest --num-steps 2 --num-noises 2 "
        "--num-samples 4 --num-recipes 2 --batch-size 2 --sites *attention* "
        "--tables budgets forecast baselines fewer chips shapes --num-scores 3 --search-runs 2 "
        "--chips v5e --shapes dit_s_2",
    ),
    "clipping": (DIT, "checkpoint", "--num-steps 2 --num-samples 8 --sites input output"),
    "coverage": (
        DIT, "checkpoint",
        "--num-steps 2 --num-toy-steps 2 --bits 8 4 --num-pool 100 --num-repetitions 20 "
        "--num-scores 20 --num-choice 20",
    ),
    "cures": (
        DIT, "checkpoint",
        "--num-steps 2 --num-samples 3 --num-chosen 2 --num-calibration 2 --num-seeds 1 "
        "--recipes W4A8 --cases rotation GPTQ",
    ),
    "divergence_vs_bits": (
        DIT, "checkpoint",
        "--num-steps 3 --num-samples 32 --num-chosen 16 --num-kl-samples 4 --num-fan-samples 2 "
        "--num-resamples 4 --bits 8 3 --sites *attention*",
    ),
    "dynamic": (
        DIT, "checkpoint",
        "--bits 6 8 --num-steps 2 --num-fit 8 --num-test 8 --share 0.5 --num-samples 8 "
        "--num-oracle 8 --num-forecast 8 --num-rungs 3 --num-rounds 1 --sites *attention*",
    ),
    "error_bounds": (
        DIT, "checkpoint",
        "--num-steps 3 --num-samples 4 --weight-bits 8 4 --sites input output",
    ),
    "evaluate": (
        DIT, "checkpoint",
        "--num-steps 2 --num-samples 8 --num-groups 4 --recipe W8A8 W4A4",
    ),
    "faults": (
        DIT, "checkpoint",
        "--num-fixed 2 --num-recipes 5 --num-calibrations 2 --num-steps 2 --num-samples 2 "
        "--mean-bits 6 --sites *attention* --fixed-on fashion_dit",
    ),
    "feedback": (
        DIT, "checkpoint",
        "--num-steps 2 --bits 4 --num-samples 4 --num-site-samples 2 --num-site-steps 2 "
        "--num-probes 2 --sites input *attention*",
    ),
    "first_order_failure": (
        UNET, "checkpoint", "--num-steps 3 --num-samples 4 --widths W8 W3 --sites conv_in*"
    ),
    "group_sensitivity": (DIT, "checkpoint", "--num-steps 2 --num-samples 2 --bits 8 3"),
    "hardware_cost": (DIT, "networks", "dit_s_2 --batches 1 --measured-batch 2 --num-rounds 2"),
    "ledger_check": (
        DIT, "checkpoint",
        "--num-steps 2 --num-samples 2 --num-cells 2 --ablations W8 A8 --attributions W8A8 "
        "--num-exact 1 --sites input patchify* output",
    ),
    "prediction_check": (
        DIT, "checkpoints", "--num-steps 2 --num-samples 8 --widths W4A4 --input-steps 2"
    ),
    "propagation_laws": (
        UNET, "checkpoint",
        "--num-steps 2 3 4 --middle 4 --bits 8 6 4 --samplers dpmpp-2m --num-samples 3 "
        "--num-checked 2 --num-draws 2 --sites conv_in*",
    ),
    "random_recipes": (
        DIT, "checkpoint",
        "--num-recipes 4 --num-steps 2 --num-samples 4 --num-predicted 2 --num-seeds 1 "
        "--num-alone 1 --sites *attention*",
    ),
    "schedules": (
        DIT, "checkpoint",
        "--samplers ddim ddpm --bits 4 --num-steps 4 --num-samples 4 --num-forecast 2 "
        "--num-probes 2 --sites *attention*",
    ),
    "shaping": (
        DIT, "checkpoint",
        "--num-steps 2 --weight-bits 4 --num-samples 4 --num-seeds 1 --num-predicted 2 "
        "--sites *attention*",
    ),
    "shaping_forecast": (
        DIT, "checkpoint",
        "--num-steps 2 3 --weight-bits 4 --num-samples 4 --num-forecast 1 --num-seeds 1 "
        "--num-phases 4 --num-draws 4 "
        "--sites *attention*",
    ),
    "spectra": (
        DIT, "checkpoint",
        "--num-steps 2 --num-samples 2 --num-gain-samples 3 --num-values 12 --num-shown 2 "
        "--num-nodes 4 --num-probes 2 --num-starts 2 --sites *attention*",
    ),
    "table1": (
        DIT, "checkpoint",
        "--num-steps 3 --train-steps 2 --num-samples 40 --num-groups 2 --num-calibration 2 "
        "--num-noises 2 --recipes W4A8 --techniques dynamic timestep-adaptive",
    ),
    "training_aware": (
        DIT, "checkpoint",
        "--num-steps 2 --train-steps 2 --num-runs 1 --num-samples 8 --num-groups 2 "
        "--num-calibration 2 --num-seeds 1 --recipes W4A4 --ways nearest training",
    ),
}  # fmt: skip
TIMES = {"bench.kernels", "bench.tpu_aot"}  # no two of its runs have the same arrays
TIMED = ("seconds", "measured/roofline", "measured/call")  # arrays of the clock
RESUMING = [name for name in NAMES if experiment(name).resumes]


def miniature(name, folder):
    network, field, flags = MINIATURES[name]
    path = folder / "net"
    if not path.exists():
        worlds.save_tiny(path, network)
    return [f"--{field}", str(path), *flags.split()]


def quietly(run, argv):
    with contextlib.redirect_stdout(io.StringIO()):
        return run(argv)


def test_every_experiment_that_resumes_has_a_miniature():
    assert {name.removeprefix("experiments.") for name in RESUMING} == set(MINIATURES) | TIMES


@pytest.mark.slow
@pytest.mark.parametrize("name", MINIATURES)
def test_interrupted_after_its_first_part_a_run_resumes_to_the_same_arrays(
    name, tmp_path, monkeypatch
):
    run, flags, saved = main(f"experiments.{name}"), miniature(name, tmp_path), []
    save_part = results.save_part
    whole, halves = tmp_path / "whole", tmp_path / "halves"

    def interrupted(folder, part, *rest):
        save_part(folder, part, *rest)
        saved.append(part)
        raise KeyboardInterrupt

    def recorded(folder, part, *rest):
        save_part(folder, part, *rest)
        saved.append(part)

    monkeypatch.setattr(results, "save_part", interrupted)
    assert quietly(run, [*flags, "--output", str(halves)]) == 130
    (first,) = saved
    monkeypatch.setattr(results, "save_part", recorded)
    assert quietly(run, [*flags, "--output", str(halves)]) == 0
    assert len(saved) > 1
    assert saved.count(first) == 1
    assert quietly(run, [*flags, "--output", str(whole)]) == 0
    expected, arrays = store.load(whole)[1], store.load(halves)[1]
    assert arrays.keys() == expected.keys()
    for key in [key for key in expected if not any(word in key for word in TIMED)]:
        np.testing.assert_array_equal(arrays[key], expected[key], err_msg=key)


def small_network(params, x, t):
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ params["in"])
    return (hidden @ params["out"]).reshape(x.shape)


WEIGHTS = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32) / 4
SMALL = Denoiser(  # so that a run of every sampler costs its compilation, and that little
    small_network, {"in": jnp.asarray(WEIGHTS[0]), "out": jnp.asarray(WEIGHTS[1])},
    diffusion.linear(50), (4, 4, 1),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [*(("--sampler", name) for name in subject.SAMPLERS), ("--num-steps", "1")],
    ids="=".join,
)  # fmt: skip
def test_a_documented_value_of_error_bounds_runs(flags, tmp_path):
    flags = ("--num-steps", "3", *flags)
    argv = ["--model", f"{__name__}:SMALL", "--num-samples", "4", "--weight-bits", "8", *flags]
    assert quietly(main("experiments.error_bounds"), [*argv, "--output", str(tmp_path)]) == 0
    _, arrays, (row,) = store.load(tmp_path)
    assert row["bounds_hold"]
    assert np.sum(arrays["W8A8/ledger"]) == pytest.approx(row["measured_rmse"] ** 2, rel=1e-2)
    assert row["fan_relative_residual"] < 1e-4
    np.testing.assert_allclose(arrays["W8A8/error_rms"][-1], row["measured_rmse"], rtol=1e-6)
    assert arrays["W8A8/samples_hat"].shape == arrays["samples"].shape == (4, 4, 4, 1)
