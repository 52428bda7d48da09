"""Train the networks that the experiments analyse.

    python -m experiments.train --data DIR --steps 16000     UNet on Fashion-MNIST, hours on a CPU
    python -m experiments.train --data digits --steps 1000   8x8 digits, minutes on a CPU
    python -m experiments.train --data DIR --model dit --classes   class-conditional transformer

Latent diffusion: first an autoencoder, then a denoiser of its latents.

    python -m experiments.train --data DIR --model autoencoder --output runs/autoencoder
    python -m experiments.train --data DIR --latent runs/autoencoder/checkpoint --output runs/latent

An interrupted run (Ctrl-C, a reboot) continues when the same command is given again.
"""

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.train.measure import (
    WEIGHTINGS,
    autoencoder_config,
    dit_config,
    draw,
    encode,
    model_config,
    reconstructions,
    sample_grid,
    train,
    with_latent_scale,
)
from qdiffjax.networks import configs, data, denoisers, training

__all__ = ["main", "model_config", "sample_grid", "train"]


def parse(argv=None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    default = training.TrainConfig()
    add = parser.add_argument
    add("--data", required=True, help="'digits', an .npz, an IDX file, or a folder")
    add("--output", default="runs/unet", help="folder of the run (%(default)s)")
    add("--model", choices=["unet", "dit", "autoencoder"], default="unet", help="%(default)s")
    add("--latent", help="checkpoint of the autoencoder whose latents to model")
    add("--classes", action="store_true", help="condition on the labels of the data")
    add("--prediction", choices=sorted(configs.PREDICTIONS), default="eps", help="%(default)s")
    add("--schedule", choices=sorted(configs.SCHEDULES), default="linear", help="%(default)s")
    add("--weighting", choices=sorted(WEIGHTINGS), default="simple", help="%(default)s")
    add("--steps", type=int, default=16_000, help="optimizer steps (%(default)s)")
    add("--batch", type=int, default=64, help="images a step (%(default)s)")
    add("--rate", type=float, default=default.learning_rate, help="Adam's rate (%(default)s)")
    add("--channels", type=int, nargs="+", default=[32, 64], help="UNet, autoencoder: widths")
    add("--blocks", type=int, default=1, help="UNet: residual blocks a level (%(default)s)")
    add("--patch", type=int, default=4, help="DiT: pixels a side (%(default)s)")
    add("--width", type=int, default=96, help="DiT: of its tokens (%(default)s)")
    add("--depth", type=int, default=4, help="DiT: blocks (%(default)s)")
    add("--latent-channels", type=int, default=4, help="autoencoder (%(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the computation")
    add("--devices", type=int, default=1, help="devices that share each batch (%(default)s)")
    add("--seed", type=int, default=0, help="of everything random (%(default)s)")
    return parser.parse_args(argv)


def configure(args, dataset: data.Dataset) -> configs.ModelConfig:
    """The model that the command line asks for.

    Raises:
      ValueError: --classes for data without labels or for an autoencoder.
    """
    if args.classes and (dataset.labels is None or args.model == "autoencoder"):
        raise ValueError(
            f"got --classes with --model {args.model} and "
            f"{'no' if dataset.labels is None else 'good'} labels in {args.data}, expected a "
            "denoiser and labels; leave it out."
        )
    if args.model == "autoencoder":
        return autoencoder_config(dataset.images, args.channels, args.latent_channels)
    num_classes = dataset.num_classes if args.classes else 0
    if args.model == "dit":
        config = dit_config(dataset.images, args.width, args.depth, args.patch, num_classes)
    else:
        config = model_config(dataset.images, args.channels, args.blocks, num_classes)
    return dataclasses.replace(config, prediction=args.prediction, schedule=args.schedule)


def make_mesh(num_devices: int) -> Mesh | None:
    """The first `num_devices` devices in a row; None for one.

    Raises:
      ValueError: there are fewer.
    """
    found = jax.devices()
    if not 1 <= num_devices <= len(found):
        raise ValueError(f"got --devices {num_devices}, expected 1 ... {len(found)}, all there are")
    return Mesh(np.array(found[:num_devices]), ("batch",)) if num_devices > 1 else None


def prepare(args) -> tuple[data.Dataset, configs.ModelConfig]:
    """Load the data, encode it for latent diffusion, and describe the model; raises as they do."""
    dataset = data.load(args.data)
    print(f"{len(dataset.images)} images of shape {dataset.images.shape[1:]} from {args.data}")
    if args.latent:
        latents = encode(denoisers.load_codec(args.latent), dataset.images)
        print(f"latents of shape {latents.shape[1:]}, standard deviation {latents.std():.3f}")
        dataset = dataset._replace(images=latents)
    return dataset, configure(args, dataset)


def finish(args, config, state, dataset, path) -> np.ndarray:
    """Write the checkpoint to `path` and return the images that show what it can do."""
    if args.model == "autoencoder":
        config = with_latent_scale(config, state.ema, dataset.images)
    denoisers.save(path, state.ema, config, dtype=jnp.bfloat16)
    if args.model == "autoencoder":
        return reconstructions(denoisers.load_codec(path), dataset.images[:32])
    if args.latent:
        shutil.copytree(args.latent, path / "autoencoder", dirs_exist_ok=True)
    denoiser = denoisers.load(path)
    return sample_grid(denoiser, num=denoiser.config.num_classes**2 or 64)


def main(argv=None) -> int:
    """Train, then write the checkpoint, its samples and its loss curve to --output."""
    args = parse(argv)
    path = Path(args.output)
    try:
        mesh = make_mesh(args.devices)
        path.mkdir(parents=True, exist_ok=True)
        dataset, config = prepare(args)
        settings = training.TrainConfig(
            num_steps=args.steps, batch_size=args.batch, learning_rate=args.rate, seed=args.seed,
            log_every=min(training.TrainConfig.log_every, args.steps),
        )  # fmt: skip
        state = train(
            dataset.images, config, settings, labels=dataset.labels,
            weight_fn=WEIGHTINGS[args.weighting], dtype=jnp.dtype(args.dtype),
            directory=path / "state", mesh=mesh,
        )  # fmt: skip
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    curve = np.asarray(state.losses)
    command = " ".join(["python -m experiments.train", *(argv or sys.argv[1:])])
    trained = {"command": command, "final_loss": float(np.mean(curve[-20:]))}
    trained |= dataclasses.asdict(settings)
    images = finish(
        args, dataclasses.replace(config, trained=trained), state, dataset, path / "checkpoint"
    )
    np.savez(path / "checkpoint" / "loss.npz", loss=curve, log_every=settings.log_every)
    draw(images, curve, settings.log_every, path / "checkpoint")
    print(f"checkpoint, samples.png and loss.png in {path / 'checkpoint'}")
    return 0
