"""Train the networks that the experiments analyse.

    python -m experiments.train --data DIR --steps 16000     UNet on Fashion-MNIST, hours on a CPU
    python -m experiments.train --data digits --steps 1000   8x8 digits, minutes on a CPU
    python -m experiments.train --data DIR --model dit --classes   class-conditional transformer
    python -m experiments.train --data mixture --model mlp   points in the plane, a minute on a CPU
    python -m experiments.train --data moving-digits --model video --prediction v   videos of digits

Latent diffusion: first an autoencoder, then a denoiser of its latents.

    python -m experiments.train --data DIR --model autoencoder --output runs/autoencoder
    python -m experiments.train --data DIR --latent runs/autoencoder/checkpoint --output runs/latent

A classifier, whose features and classes are for metrics of samples:

    python -m experiments.train --data DIR --model classifier --steps 3000 --batch 128

An interrupted run (Ctrl-C, a reboot) continues when the same command is given again.
"""

import dataclasses
import io
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.harness import command
from experiments.harness.command import option
from experiments.train import fitting
from qdiffjax import _files, results, sharding, training
from qdiffjax._checks import require
from qdiffjax._command import outcome
from qdiffjax.denoiser import PREDICTIONS
from qdiffjax.networks import configs, data, denoisers
from qdiffjax.networks.classifiers import load_classifier

DENOISERS = ("unet", "dit", "video", "mlp")
MODELS = (*DENOISERS, "autoencoder", "classifier")
# Options that only some models know.
OF_MODEL = {
    "channels": ("unet", "autoencoder", "classifier"), "blocks": ("unet",),
    "patch": ("dit", "video"), "width": DENOISERS[1:], "depth": DENOISERS[1:],
    "latent_channels": ("autoencoder",), "features": ("classifier",),
    "latent": ("unet", "dit"),
    **dict.fromkeys(("classes", "prediction", "schedule", "weighting"), DENOISERS),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how; the flags of the command line."""

    data: str = option(
        "", f"{', '.join(map(repr, data.WITHOUT_FILES))}, an .npz, an IDX file, or a folder; must "
        "be named.",
    )  # fmt: skip
    model: str = option("unet", "Network.", choices=MODELS)
    latent: str = option("", "Checkpoint of the autoencoder whose latents to model.")
    classes: bool = option(False, "Condition on the labels of the data.")
    prediction: str = option("eps", "What the network predicts.", choices=sorted(PREDICTIONS))
    schedule: str = option("linear", "Noise schedule.", choices=sorted(configs.SCHEDULES))
    weighting: str = option("simple", "Of the loss over time.", choices=sorted(fitting.WEIGHTINGS))
    steps: int = option(16_000, "Optimizer steps.", least=1)
    batch: int = option(64, "Images a step.", least=1)
    rate: float = option(training.TrainConfig.learning_rate, "Adam's rate.", above=0)
    channels: tuple[int, ...] = option(
        (32, 64), "UNet, autoencoder, classifier: widths.", least=1, repeats=True
    )
    side: int = option(0, "Average squares of pixels to images of so many a side; 0 keeps them.",
                       least=0)  # fmt: skip
    blocks: int = option(1, "UNet: residual blocks a level.", least=1)
    patch: int = option(4, "DiT, video: pixels a side.", least=1)
    width: int = option(96, "DiT, video: of tokens; mlp: of layers.", least=1)
    depth: int = option(4, "DiT, video, mlp: blocks.", least=1)
    latent_channels: int = option(4, "Autoencoder: of its latents.", least=1)
    features: int = option(64, "Classifier: of the layer before the classes.", least=1)
    dtype: str = option("float32", "Of the computation.", choices=["float32", "bfloat16"])
    devices: int = option(1, "Devices that share each batch.", least=1)
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse a command without data, and options of another model."""
        require(self.data, "--data", got="none", expected="what to train on",
                remedy="--data digits needs no file")  # fmt: skip
        for field in dataclasses.fields(self):
            models = OF_MODEL.get(field.name, MODELS)
            flag = f"--{field.name.replace('_', '-')}"
            require(self.model in models or getattr(self, field.name) == field.default,
                    got=f"{flag} with --model {self.model}",
                    expected=f"it with {' or '.join(models)}", remedy="leave it out")  # fmt: skip


def configure(config: Config, dataset: data.Dataset) -> configs.ModelConfig:
    """Describe the model that the command line asks for.

    Raises:
      ValueError: --classes or a classifier for data without labels.
    """
    needs_labels = config.classes or config.model == "classifier"
    require(not needs_labels or dataset.labels is not None,
            "--classes" if config.classes else "--model classifier",
            got=f"no labels in {config.data}", expected="labels",
            remedy="leave it out")  # fmt: skip
    images, num_classes = dataset.images, dataset.num_classes if config.classes else 0
    if config.model == "autoencoder":
        return fitting.autoencoder_config(images, config.channels, config.latent_channels)
    if config.model == "classifier":
        return fitting.classifier_config(images, config.channels, config.features,
                                         dataset.num_classes)  # fmt: skip
    if config.model == "mlp":
        model = fitting.mlp_config(images, config.width, config.depth, num_classes)
    elif config.model in ("dit", "video"):
        size = config.width, config.depth, config.patch
        model = fitting.transformer_config(config.model, images, *size, num_classes)
    else:
        model = fitting.model_config(images, config.channels, config.blocks, num_classes)
    return dataclasses.replace(model, prediction=config.prediction, schedule=config.schedule)


def prepare(config: Config, dataset: data.Dataset) -> tuple[data.Dataset, configs.ModelConfig]:
    """Encode the data for latent diffusion, and describe the model."""
    if config.latent:
        latents = fitting.encode(denoisers.load_codec(config.latent), dataset.images)
        print(f"latents of shape {latents.shape[1:]}, standard deviation {latents.std():.3f}")
        dataset = dataset._replace(images=latents)
    return dataset, configure(config, dataset)


def settings_of(config: Config, dataset: data.Dataset) -> tuple[training.TrainConfig, dict]:
    """Return how to train, and what else makes a run this one: the model and its data."""
    how = training.TrainConfig(
        num_steps=config.steps, batch_size=config.batch, learning_rate=config.rate,
        seed=config.seed, log_every=min(training.TrainConfig.log_every, config.steps),
    )  # fmt: skip
    known = ("steps", "batch", "rate", "seed", "devices")  # in `how`, or without a meaning
    what = {name: v for name, v in dataclasses.asdict(config).items() if name not in known}
    arrays = [a for a in dataset if a is not None]
    what["data"] = results.fingerprint(*arrays)
    sums = Path(config.latent) / _files.SUMS
    what["latent"] = config.latent and (_files.digest(sums) if sums.is_file() else config.latent)
    return how, what


def finish(config: Config, model, state, dataset, path) -> np.ndarray:
    """Write the checkpoint to `path` and return the images that show what it can do."""
    if config.model == "autoencoder":
        model = fitting.with_latent_scale(model, state.ema, dataset.images)
    if config.model == "classifier":
        test = data.load(config.data, "test", model.shape)
        score = fitting.accuracy(model, state.ema, test)
        print(f"accuracy {score:.4f} on {len(test.images)} images of the test split")
        model = dataclasses.replace(model, trained=model.trained | {"test_accuracy": score})
    if config.latent:
        shutil.copytree(config.latent, path / "autoencoder", dirs_exist_ok=True)
    denoisers.save(
        path, state.ema, model, dtype=np.float32 if config.model == "mlp" else jnp.bfloat16
    )
    if config.model == "autoencoder":
        return fitting.reconstructions(denoisers.load_codec(path), dataset.images[:32])
    if config.model == "classifier":
        return fitting.classified(load_classifier(path), dataset.images)
    denoiser = denoisers.load(path)
    num = 2000 if config.model == "mlp" else 64
    return fitting.sample_grid(denoiser, num=denoiser.config.num_classes**2 or num)


def train(config: Config, path: Path, words: str) -> None:
    """Train in the folder `path`, then write its checkpoint with samples and loss curve.

    Args:
      config: what to train.
      path: folder of the run.
      words: the command, which the checkpoint quotes.
    """
    state_path, checkpoint = path / "state", path / "checkpoint"
    require(
        (state_path / "run.json").is_file() or not (checkpoint / "config.json").is_file(),
        str(path), got="a checkpoint whose run is not there", expected="an empty folder, or one "
        "with the run that began there", remedy="choose another --output, or move it away",
    )  # fmt: skip
    mesh = sharding.make_mesh(config.devices) if config.devices != 1 else None
    raw = data.load(config.data)
    if config.side:
        shape = (config.side, config.side, raw.images.shape[-1])
        raw = raw._replace(images=data.shrunk(raw.images, shape))
    print(f"{len(raw.images)} images of shape {raw.images.shape[1:]} from {config.data}")
    dataset, model = prepare(config, raw)
    how, what = settings_of(config, raw)
    state = fitting.train(
        dataset.images, model, how, labels=dataset.labels,
        weight_fn=fitting.WEIGHTINGS[config.weighting], dtype=jnp.dtype(config.dtype),
        directory=state_path, about=what, mesh=mesh,
    )  # fmt: skip
    curve = np.asarray(state.losses)
    trained = {"command": words, "final_loss": float(np.mean(curve[-20:]))}
    model = dataclasses.replace(model, trained=trained | dataclasses.asdict(how))
    images = finish(config, model, state, dataset, checkpoint)
    losses = io.BytesIO()
    np.savez(losses, loss=curve, log_every=how.log_every)
    _files.write({checkpoint / "loss.npz": losses.getvalue()})
    fitting.draw(images, curve, how.log_every, checkpoint)
    print(f"checkpoint, samples.png and loss.png in {checkpoint}")


def main(argv=None) -> int:
    """Train, then write the checkpoint, its samples and its loss curve to --output."""
    prog = "python -m experiments.train"
    config, output = command.parse_config(
        Config, "runs/unet", argv, prog=prog, description=__doc__ or "",
        output_help="folder of the run",
    )  # fmt: skip
    words = " ".join([prog, *(sys.argv[1:] if argv is None else argv)])

    def work() -> None:
        command.check(config)
        with _files.writer(output) as path:
            train(config, path, words)

    return outcome(work, after_interrupt="; the same command continues")
