"""Train the UNet denoiser that the experiments analyse.

    python -m experiments.train --data DIR --steps 16000     Fashion-MNIST, hours on a CPU
    python -m experiments.train --data digits --steps 1000   8x8 digits, minutes on a CPU

An interrupted run (Ctrl-C, a reboot) continues when the same command is given again.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from qdiffjax import checkpoints, data, diffusion, training
from qdiffjax.diffusion import losses


def model_config(images, channels, num_blocks) -> checkpoints.ModelConfig:
    """A UNet that fits `images` [n, h, w, c]: pixels folded 2x2 from 16 pixels on."""
    attention = (False,) * (len(channels) - 1) + (True,)
    patch = 2 if images.shape[1] >= 16 else 1
    return checkpoints.ModelConfig(
        tuple(images.shape[1:]), tuple(channels), num_blocks, attention, patch
    )


def train(images, config: checkpoints.ModelConfig, settings: training.TrainConfig, **kwargs):
    """Train and return the final `training.TrainState`; keyword arguments are those of `fit`."""
    network = checkpoints.build(config)
    schedule = diffusion.linear(config.num_train_steps)
    params = checkpoints.init_params(config, jax.random.key(settings.seed))

    def loss_fn(params, key, x_0):
        return losses.eps_loss(network.apply, params, key, x_0, schedule)

    return training.fit(loss_fn, params, images, settings, **kwargs)


def sample_grid(denoiser: checkpoints.Denoiser, *, num=64, num_steps=100, seed=0):
    """DDIM samples [num, h, w, c] of a trained denoiser."""
    x_T = jax.random.normal(jax.random.key(seed), (num, *denoiser.config.shape))
    steps = diffusion.ddim(denoiser.schedule, num_steps)
    call_fn = diffusion.bind(denoiser.eps_fn, denoiser.params)
    return np.asarray(jax.jit(lambda x: diffusion.sample(call_fn, x, steps).x_0)(x_T))


def draw(images, curve, log_every, path):
    """Write samples.png and loss.png into the folder `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    side = int(np.sqrt(len(images)))
    rows = [np.concatenate(list(images[i * side : (i + 1) * side]), axis=1) for i in range(side)]
    grid = data.to_uint8(np.concatenate(rows, axis=0).squeeze())
    plt.imsave(path / "samples.png", np.kron(grid, np.ones((2, 2), np.uint8)), cmap="gray")
    fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    ax.plot(log_every * np.arange(1, len(curve) + 1), curve, lw=0.8)
    ax.set(xlabel="training step", ylabel="mean squared error of eps", yscale="log")
    fig.savefig(path / "loss.png", dpi=110)
    plt.close(fig)


def parse(argv=None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    default = training.TrainConfig()
    parser.add_argument("--data", required=True, help="'digits', an .npz, an IDX file, or a folder")
    parser.add_argument("--output", default="runs/unet", help="folder of the run (%(default)s)")
    parser.add_argument("--steps", type=int, default=16_000, help="optimizer steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (%(default)s)")
    parser.add_argument("--rate", type=float, default=default.learning_rate, help="Adam's rate")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64], help="UNet widths")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks a level")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Train, then write the checkpoint, its samples and its loss curve to --output."""
    args = parse(argv)
    path = Path(args.output)
    try:
        images = data.load_images(args.data)
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = training.TrainConfig(
        num_steps=args.steps, batch_size=args.batch, learning_rate=args.rate, seed=args.seed
    )
    config = model_config(images, args.channels, args.blocks)
    print(f"{len(images)} images of shape {images.shape[1:]} from {args.data}; run in {path}")
    state = train(images, config, settings, directory=path / "state")
    curve = np.asarray(state.losses)
    command = " ".join(["python -m experiments.train", *(argv or sys.argv[1:])])
    trained = {"command": command, "final_loss": float(np.mean(curve[-20:]))}
    trained |= dataclasses.asdict(settings)
    config = dataclasses.replace(config, trained=trained)
    checkpoints.save(path / "checkpoint", state.ema, config)
    np.savez(path / "checkpoint" / "loss.npz", loss=curve, log_every=settings.log_every)
    images = sample_grid(checkpoints.load(path / "checkpoint"))
    draw(images, curve, settings.log_every, path / "checkpoint")
    print(f"checkpoint, samples.png and loss.png in {path / 'checkpoint'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
