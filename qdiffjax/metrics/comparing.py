"""All metrics that apply to a set of quantized samples, in one table."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from qdiffjax import _tables as tables
from qdiffjax import results
from qdiffjax._checks import check_callable, check_key, check_number, require
from qdiffjax._typing import Key
from qdiffjax.metrics import classes, frechet, images, kernels, manifolds, videos
from qdiffjax.metrics.records import NUM_GROUPS, Metric, alike, flat, numbers

PROTOCOL = "qdiffjax metrics 1"  # changes with any definition: two of them are not compared
PIXELS = "pixels"


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Metrics of quantized samples beside full-precision samples and data.

    Attributes:
      metrics: by name; "to float" are of pairs on common noise, "to independent" of another set of
        full-precision samples, "to data" of data.
      float_metrics: those of them that full-precision samples have as well.
      features: what the features are called.
      protocol: the definitions, see `PROTOCOL`.
    """

    metrics: Mapping[str, Metric]
    float_metrics: Mapping[str, Metric]
    features: str
    protocol: str = PROTOCOL

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each metric, as JSON has it."""
        both = (("quantized", self.metrics), ("float", self.float_metrics))
        return [{"samples": of, "name": name, **metric.to_dict()} for of, own in both
                for name, metric in own.items()]  # fmt: skip

    def save(self, folder) -> None:
        """Write config.json and summary.json, which are read without JAX."""
        about = {"protocol": self.protocol, "features": self.features}
        results.save(folder, about, {}, self.rows())

    def __repr__(self):
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def to_dataframe(self):
        """Return the metrics as a pandas data frame."""
        return tables.data_frame({key: [row[key] for row in self.rows()]
                                  for key in self.rows()[0]})  # fmt: skip

    def _table(self) -> tables.Table:
        rows = []
        for name, own in self.metrics.items():
            full = self.float_metrics.get(name)
            rows.append((name, *_written(own), full and tables.number(full.value),
                         own.floor and tables.number(own.floor.value), own.covers,
                         own.num_samples))  # fmt: skip
        columns = ("metric", "quantized", "95 % interval", "float", "floor", "interval of", "num")
        return tables.Table(f"Quantized samples, features: {self.features}; {self.protocol}",
                            columns, tuple(rows), width=120)  # fmt: skip


def _written(metric: Metric) -> tuple[str, str]:
    value, low, high = map(tables.number, (metric.value, metric.low, metric.high))
    return value, f"{low} .. {high}"


def side_by_side(comparisons: Mapping[str, Comparison]) -> tables.Table:
    """Return one table of comparisons of several recipes, a column for each.

    Raises:
      ValueError: they follow unlike protocols, or have unlike features.
    """
    require(comparisons, "comparisons", got="none", expected="one at least", remedy="pass some")
    kinds = {(c.protocol, c.features) for c in comparisons.values()}
    require(len(kinds) == 1, "comparisons", got=sorted(kinds), expected="one protocol and features",
            remedy="measure them anew with one version")  # fmt: skip
    names = dict.fromkeys(name for c in comparisons.values() for name in c.metrics)
    rows = [(name, *(" ".join(_written(c.metrics[name])) if name in c.metrics else None
                     for c in comparisons.values())) for name in names]  # fmt: skip
    return tables.Table(", ".join(kinds.pop()), ("metric", *comparisons), tuple(rows), width=160)


def compare(
    float_samples,
    quantized_samples,
    data=None,
    *,
    key: Key,
    independent=None,
    features_fn: Callable | None = None,
    features: str = "features_fn",
    probabilities_fn: Callable | None = None,
    labels=None,
    data_range: float = 2.0,
    num_groups: int = NUM_GROUPS,
) -> Comparison:
    """Return all metrics of quantized samples that apply to what is given.

    Of images PSNR, SSIM and spectra; of videos [num, frames, ...] PSNR and flicker; of features the
    Frechet distance, KID, MMD, precision and recall, density and coverage; of probabilities the
    inception score, flips of labels and agreement with the labels that are known. Distances to
    float samples are of pairs; their floor is that of independent ones.

    Args:
      float_samples: full-precision samples [num, *shape].
      quantized_samples: on the same noise [num, *shape].
      data: of the data [m, *shape], None for none.
      key: of the order in which samples are put in groups.
      independent: full-precision samples of other noise [num, *shape], for the noise floor.
      features_fn: samples [num, *shape] -> features [num, ...]; None takes the pixels. Of videos
        [num, frames, k] are of their frames, which have a temporal consistency; distances are of
        their mean over frames.
      features: what to call these.
      probabilities_fn: samples -> probabilities [num, classes] of a classifier.
      labels: classes that the samples were drawn for, integers [num], None for none.
      data_range: of a pixel, 2 in [-1, 1].
      num_groups: of the jackknife.

    Example:
      >>> import jax
      >>> from qdiffjax import metrics
      >>> x = jax.random.normal(jax.random.key(0), (200, 2))
      >>> found = metrics.compare(x, x + 0.1, key=jax.random.key(1)).metrics["Frechet to float"]
      >>> round(found.value, 4)  # |(0.1, 0.1)|^2, the covariances are equal
      0.02
    """
    check_key("key", key)
    check_number("data_range", data_range, above=0)
    for name, fn in (("features_fn", features_fn), ("probabilities_fn", probabilities_fn)):
        if fn is not None:
            check_callable(name, fn, "samples -> numbers")
    sets = {"float": float_samples, "quantized": quantized_samples, "independent": independent,
            "data": data}  # fmt: skip
    sets = {name: numbers(f"{name} samples", x) for name, x in sets.items()
            if x is not None or name in ("float", "quantized")}  # fmt: skip
    for name, x in sets.items():
        alike(sets["float"], x, paired=name in ("quantized", "independent"))
    sets, order = _shuffled(sets, key)
    found: dict[str, dict[str, Metric]] = {"quantized": {}, "float": {}}
    if sets["float"].ndim == 4:
        found["quantized"] |= _of_images(sets, data_range, num_groups)
    if sets["float"].ndim == 5 and sets["float"].shape[1] > 1:
        found["quantized"] |= _of_videos(sets, data_range)
        found["float"]["flicker"] = videos.flicker(sets["float"])
    seen = {name: np.asarray((features_fn or _pixels)(x)) for name, x in sets.items()}
    if sets["float"].ndim == 5 and _of_frames(seen["float"], sets["float"].shape[1]):
        for of in ("quantized", "float"):
            found[of]["temporal consistency"] = videos.temporal_consistency(seen[of])
        seen = {name: x.mean(1) if x.ndim == 3 else x for name, x in seen.items()}
    own = {name: flat("features", x) for name, x in seen.items()}
    _add_features(found, own, num_groups)
    if probabilities_fn is not None:
        _add_probabilities(found, {name: np.asarray(probabilities_fn(sets[name]))
                                   for name in ("float", "quantized")}, num_groups,
                           None if labels is None else np.asarray(labels)[order])  # fmt: skip
    return Comparison(found["quantized"], found["float"], features if features_fn else PIXELS)


def _pixels(x):
    return x


def _shuffled(sets: Mapping[str, np.ndarray], key: Key) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Put samples, which may come by class, in an order of chance, pairs in the same; and it."""
    orders = {len(x): np.asarray(jax.random.permutation(key, len(x))) for x in sets.values()}
    shuffled = {name: x[orders[len(x)]] for name, x in sets.items()}
    return shuffled, orders[len(sets["float"])]


def _of_images(sets, data_range: float, num_groups: int) -> dict[str, Metric]:
    x, x_hat = sets["float"], sets["quantized"]
    found = {"PSNR": images.psnr(x, x_hat, data_range=data_range)}
    scales = images.fitting_scales(x.shape)
    if scales:
        found["SSIM"] = images.ssim(x, x_hat, data_range=data_range)
        name = "MS-SSIM" if scales == len(images.SCALES) else f"MS-SSIM, {scales} scales"
        found[name] = images.ms_ssim(x, x_hat, data_range=data_range)
    found["spectra to float"] = _with_floor(
        sets, lambda a, b: images.spectral_distance(a, b, num_groups=num_groups)
    )
    return found


def _of_videos(sets, data_range: float) -> dict[str, Metric]:
    x, x_hat = sets["float"], sets["quantized"]
    return {"PSNR": images.psnr(x, x_hat, data_range=data_range), "flicker": videos.flicker(x_hat),
            "flicker of errors": videos.flicker_of_errors(x, x_hat)}  # fmt: skip


def _of_frames(features, frames: int) -> bool:
    """Return whether features [num, frames, ...] are of the frames of videos."""
    return frames > 1 and features.ndim > 2 and features.shape[1] == frames


def _with_floor(sets, distance: Callable, paired: Callable | None = None) -> Metric:
    """Return a distance of quantized to float samples beside that of independent sets."""
    found = (paired or distance)(sets["quantized"], sets["float"])
    if "independent" not in sets:
        return found
    return found.beside(distance(sets["independent"], sets["float"]))


def _add_features(found, sets, num_groups: int) -> None:
    distances: dict[str, Callable] = {
        "Frechet": _unpaired(frechet.frechet_distance),
        "Frechet, infinite samples,": _unpaired(frechet.frechet_of_infinite),
        "KID": kernels.kernel_inception_distance,
        "MMD^2": kernels.mean_discrepancy,
    }
    distances = {name: functools.partial(fn, num_groups=num_groups)
                 for name, fn in distances.items()}  # fmt: skip
    for name, fn in distances.items():
        found["quantized"][f"{name} to float"] = _with_floor(
            sets, fn, functools.partial(fn, paired=True)
        )
    for other in ("independent", "data"):
        if other not in sets:
            continue
        for of in ("quantized", "float"):
            for name, fn in distances.items():
                found[of][f"{name} to {other}"] = fn(sets[of], sets[other])
            for pair in (manifolds.precision_recall, manifolds.density_coverage):
                both = pair(sets[of], sets[other], num_groups=num_groups)
                found[of] |= {f"{n} in {other}": m for n, m in both._asdict().items()}


def _unpaired(distance: Callable) -> Callable:
    """Return a distance that is the same for pairs as one that is told."""
    return lambda a, b, paired=False, **options: distance(a, b, **options)


def _add_probabilities(found, p, num_groups: int, labels) -> None:
    if labels is not None:
        for of in ("quantized", "float"):
            found[of]["class agreement"] = classes.class_agreement(p[of], labels)
    for of in ("quantized", "float"):
        found[of]["inception score form"] = classes.inception_score(p[of], num_groups=num_groups)
    found["quantized"]["label flips"] = classes.label_flips(p["float"], p["quantized"])
