"""What simulating quantization costs: a fake-quantized W8A8 sampler against the float one.

    python -m experiments.bench_fake_quant

Both run in turn on the same noise, after compilation; the ratio of each pair of runs is taken, so
that it holds when the machine's speed drifts.
"""

import argparse
import sys
import time

import jax
import numpy as np

from experiments import store, subject
from qdiffjax import diffusion
from qdiffjax.program import full_call, quantized_call


def run(checkpoint: str, num_steps: int, num_samples: int, num_pairs: int):
    """Return seconds [num_pairs, 2] of (float, quantized) runs."""
    study = subject.prepare(checkpoint, lambda s: diffusion.ddim(s, num_steps), ("*",), 0)
    steps = diffusion.ddim(study.denoiser.schedule, num_steps)
    x_T = subject.noise(study.denoiser, num_samples, 0)
    q = study.quantized(8, 8)
    fns = [
        jax.jit(lambda q, x, call=call: diffusion.sample(call(q), x, steps).x_0)
        for call in (full_call, quantized_call)
    ]
    seconds = np.zeros((num_pairs + 1, 2))
    for row in seconds:  # the first pair compiles
        for i, fn in enumerate(fns):
            start = time.perf_counter()
            jax.block_until_ready(fn(q, x_T))
            row[i] = time.perf_counter() - start
    return seconds[1:]


def main(argv=None) -> int:
    """Run, print the ratio, write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench_fake_quant", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--checkpoint", default="fashion_unet", help="folder or shipped name")
    parser.add_argument("--num-steps", type=int, default=20, help="sampler steps")
    parser.add_argument("--num-samples", type=int, default=64, help="samples of a run")
    parser.add_argument("--num-pairs", type=int, default=10, help="pairs of runs")
    parser.add_argument("--output", default="runs/bench_fake_quant", help="folder of the results")
    args = vars(parser.parse_args(argv))
    folder = args.pop("output")
    try:
        store.check_writable(folder)
        if min(args["num_steps"], args["num_samples"], args["num_pairs"]) < 1:
            raise ValueError("steps, samples and pairs must be at least 1.")
        seconds = run(**args)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    ratios = seconds[:, 1] / seconds[:, 0]
    row = {
        "float_seconds": np.median(seconds[:, 0]), "quantized_seconds": np.median(seconds[:, 1]),
        "ratio": np.median(ratios), "ratio_min": ratios.min(), "ratio_max": ratios.max(),
    }  # fmt: skip
    device = str(jax.devices()[0].device_kind)
    store.save(folder, args, {"seconds": seconds}, [row], device=device)
    print("  ".join(f"{name} {value:.3g}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
