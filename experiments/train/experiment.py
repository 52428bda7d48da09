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
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.train import fitting
from qdiffjax import sharding
from qdiffjax._checks import require
from qdiffjax.denoiser import PREDICTIONS
from qdiffjax.networks import configs, data, denoisers, training

# Options of argparse for every flag.
FLAGS: dict[str, dict[str, Any]] = {
    "data": {"required": True, "help": "'digits', an .npz, an IDX file, or a folder"},
    "output": {"default": "runs/unet", "help": "folder of the run (%(default)s)"},
    "model": {"choices": ["unet", "dit", "autoencoder"], "default": "unet", "help": "%(default)s"},
    "latent": {"help": "checkpoint of the autoencoder whose latents to model"},
    "classes": {"action": "store_true", "help": "condition on the labels of the data"},
    "prediction": {
        "choices": sorted(PREDICTIONS), "default": "eps", "help": "%(default)s"
    },
    "schedule": {
        "choices": sorted(configs.SCHEDULES), "default": "linear", "help": "%(default)s"
    },
    "weighting": {
        "choices": sorted(fitting.WEIGHTINGS), "default": "simple", "help": "%(default)s"
    },
    "steps": {"type": int, "default": 16_000, "help": "optimizer steps (%(default)s)"},
    "batch": {"type": int, "default": 64, "help": "images a step (%(default)s)"},
    "rate": {
        "type": float, "default": training.TrainConfig.learning_rate,
        "help": "Adam's rate (%(default)s)",
    },
    "channels": {
        "type": int, "nargs": "+", "default": [32, 64], "help": "UNet, autoencoder: widths"
    },
    "blocks": {"type": int, "default": 1, "help": "UNet: residual blocks a level (%(default)s)"},
    "patch": {"type": int, "default": 4, "help": "DiT: pixels a side (%(default)s)"},
    "width": {"type": int, "default": 96, "help": "DiT: of its tokens (%(default)s)"},
    "depth": {"type": int, "default": 4, "help": "DiT: blocks (%(default)s)"},
    "latent-channels": {"type": int, "default": 4, "help": "autoencoder (%(default)s)"},
    "dtype": {
        "choices": ["float32", "bfloat16"], "default": "float32", "help": "of the computation"
    },
    "devices": {"type": int, "default": 1, "help": "devices that share each batch (%(default)s)"},
    "seed": {"type": int, "default": 0, "help": "of everything random (%(default)s)"},
}  # fmt: skip


def parse(argv=None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for name, options in FLAGS.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args(argv)


def configure(args, dataset: data.Dataset) -> configs.ModelConfig:
    """Describe the model that the command line asks for.

    Raises:
      ValueError: --classes for data without labels or for an autoencoder.
    """
    is_autoencoder, has_labels = args.model == "autoencoder", dataset.labels is not None
    require(
        not args.classes or (has_labels and not is_autoencoder),
        got=f"--classes with --model {args.model} and {'good' if has_labels else 'no'} labels in "
        f"{args.data}",
        expected="a denoiser and labels", remedy="leave it out",
    )  # fmt: skip
    images, num_classes = dataset.images, dataset.num_classes if args.classes else 0
    if is_autoencoder:
        return fitting.autoencoder_config(images, args.channels, args.latent_channels)
    if args.model == "dit":
        config = fitting.dit_config(images, args.width, args.depth, args.patch, num_classes)
    else:
        config = fitting.model_config(images, args.channels, args.blocks, num_classes)
    return dataclasses.replace(config, prediction=args.prediction, schedule=args.schedule)


def prepare(args) -> tuple[data.Dataset, configs.ModelConfig]:
    """Load the data, encode it for latent diffusion, and describe the model."""
    dataset = data.load(args.data)
    print(f"{len(dataset.images)} images of shape {dataset.images.shape[1:]} from {args.data}")
    if args.latent:
        latents = fitting.encode(denoisers.load_codec(args.latent), dataset.images)
        print(f"latents of shape {latents.shape[1:]}, standard deviation {latents.std():.3f}")
        dataset = dataset._replace(images=latents)
    return dataset, configure(args, dataset)


def finish(args, config, state, dataset, path) -> np.ndarray:
    """Write the checkpoint to `path` and return the images that show what it can do."""
    if args.model == "autoencoder":
        config = fitting.with_latent_scale(config, state.ema, dataset.images)
    denoisers.save(path, state.ema, config, dtype=jnp.bfloat16)
    if args.model == "autoencoder":
        return fitting.reconstructions(denoisers.load_codec(path), dataset.images[:32])
    if args.latent:
        shutil.copytree(args.latent, path / "autoencoder", dirs_exist_ok=True)
    denoiser = denoisers.load(path)
    return fitting.sample_grid(denoiser, num=denoiser.config.num_classes**2 or 64)


def main(argv=None) -> int:
    """Train, then write the checkpoint, its samples and its loss curve to --output."""
    args = parse(argv)
    path = Path(args.output)
    try:
        mesh = sharding.make_mesh(args.devices) if args.devices != 1 else None
        path.mkdir(parents=True, exist_ok=True)
        dataset, config = prepare(args)
        settings = training.TrainConfig(
            num_steps=args.steps, batch_size=args.batch, learning_rate=args.rate, seed=args.seed,
            log_every=min(training.TrainConfig.log_every, args.steps),
        )  # fmt: skip
        state = fitting.train(
            dataset.images, config, settings, labels=dataset.labels,
            weight_fn=fitting.WEIGHTINGS[args.weighting], dtype=jnp.dtype(args.dtype),
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
    fitting.draw(images, curve, settings.log_every, path / "checkpoint")
    print(f"checkpoint, samples.png and loss.png in {path / 'checkpoint'}")
    return 0
