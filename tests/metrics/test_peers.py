"""Metrics of samples beside independent implementations, on features and images of our own.

Runs where the peers are installed (extra `peers`; torchmetrics 1.9.0, torch-fidelity 0.4.0,
scikit-image 0.26.0, pytorch-msssim 1.0.0, POT 0.9.7, prdc 0.2), and skips elsewhere. All is in
float64; docs/metrics.md has what was measured. Where a default of theirs is another definition they
are asked for ours:

- KID: theirs are means over random subsets; here one subset of all samples.
- Inception score: theirs are means over ten splits; here one.
- PSNR of torchmetrics is of all images together unless it is told `dim`.
- SSIM of scikit-image has a uniform window unless it is told the Gaussian one; that of torchmetrics
  is averaged over a reflected border too, and so is the last scale of its MS-SSIM.
- MS-SSIM: their powers sum to 1.0001 unless they are told others.
- Precision, recall, density and coverage of prdc have open balls, ours closed ones: the same
  unless distances tie.
- POT's `emd2` is a linear program over all plans, ours an assignment: the same for sets of one
  size with equal weights.
"""

import numpy as np
import pytest
from scipy import ndimage

from qdiffjax import metrics
from qdiffjax.analysis import divergences

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(400, 12)), 1.1 * RNG.normal(size=(400, 12)) + 0.2
LOGITS = 2 * RNG.normal(size=(300, 10))
IMAGES = ndimage.gaussian_filter(RNG.normal(size=(3, 48, 40, 3)), (0, 2, 2, 0))
NOISY = IMAGES + 0.05 * RNG.normal(size=IMAGES.shape)
ROUNDING = 1e-12
FLOAT32 = 1e-7  # where a peer's last operation is in float32


def difference(ours, theirs):
    """Largest relative difference."""
    ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))


def softmax(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def feature_module(torch):
    """A network that returns what it is given, of a known width, as torchmetrics wants it."""

    class Same(torch.nn.Module):
        num_features = FEATURES[0].shape[1]

        def forward(self, x):
            return x

    return Same()


def updated(metric, x, y):
    import torch

    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    return metric.compute()


# ------------------------------------------------------------------ sets of features


def torchmetrics_frechet(x, y):
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")
    metric = fid.FrechetInceptionDistance(feature_module(torch), antialias=False)
    return float(updated(metric, x, y))


def fidelity_frechet(x, y):
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    sides = [{"mu": a.mean(0), "sigma": np.cov(a, rowvar=False)} for a in (x, y)]
    return fid.fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]


@pytest.mark.parametrize("peer", [torchmetrics_frechet, fidelity_frechet])
def test_frechet(peer):
    assert difference(metrics.frechet_distance(*FEATURES).value, peer(*FEATURES)) < ROUNDING


def torchmetrics_kid(x, y):
    torch = pytest.importorskip("torch")
    kid = pytest.importorskip("torchmetrics.image.kid")
    metric = kid.KernelInceptionDistance(feature_module(torch), subsets=1, subset_size=len(x))
    return float(updated(metric, x, y)[0])


def fidelity_kid(x, y):
    torch = pytest.importorskip("torch")
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    found = kid.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=1, kid_subset_size=len(x),
        verbose=False,
    )  # fmt: skip
    return found["kernel_inception_distance_mean"]


@pytest.mark.parametrize("peer", [torchmetrics_kid, fidelity_kid])
def test_kid(peer):
    ours = metrics.kernel_inception_distance(*FEATURES).value
    assert difference(ours, peer(*FEATURES)) < ROUNDING


def gaussian_mmd(x, y, sigma, kind):
    """MMD^2 of one Gaussian kernel as torch-fidelity has it; "u-statistic" leaves out x_i, y_i."""
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    tables = (kid.kernel_rbf(a, b, kid_kernel_rbf_sigma=sigma) for a, b in ((x, x), (x, y), (y, y)))
    return kid.mmd2(*tables, mmd_est=kind)


@pytest.mark.parametrize(("paired", "kind"), [(False, "unbiased"), (True, "u-statistic")])
def test_mmd_of_gaussian_kernels(paired, kind):
    """The mean of three, whose bandwidths are 1/4, 1 and 4 times the median distance."""
    sizes = float(divergences.median_distance(*FEATURES)) * np.array([0.25, 1, 4])
    theirs = np.mean([gaussian_mmd(*FEATURES, sigma, kind) for sigma in sizes])
    ours = metrics.mean_discrepancy(*FEATURES, paired=paired).value
    assert difference(ours, theirs) < ROUNDING
    if paired:
        alone = divergences.mmd_squared(*FEATURES, divergences.rbf_mixture(sizes[:1]))
        assert difference(alone, gaussian_mmd(*FEATURES, sizes[0], kind)) < ROUNDING


def torchmetrics_score(logits):
    torch = pytest.importorskip("torch")
    inception = pytest.importorskip("torchmetrics.image.inception")
    metric = inception.InceptionScore(feature_module(torch), splits=1)
    metric.update(torch.from_numpy(logits))
    return float(metric.compute()[0])


def fidelity_score(logits):
    torch = pytest.importorskip("torch")
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    found = isc.isc_features_to_metric(torch.from_numpy(logits), splits=1, shuffle=False)
    return found["inception_score_mean"]


@pytest.mark.parametrize("peer", [torchmetrics_score, fidelity_score])
def test_inception_score(peer):
    ours = metrics.inception_score(softmax(LOGITS)).value
    assert difference(ours, peer(LOGITS)) < ROUNDING


def test_precision_and_recall_of_torch_fidelity():
    torch = pytest.importorskip("torch")
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    found = prc.prc_features_to_metric(*map(torch.from_numpy, FEATURES), prc_neighborhood=3,
                                       verbose=False)  # fmt: skip
    ours = metrics.precision_recall(*FEATURES, num_neighbours=3)
    values = ours.precision.value, ours.recall.value
    assert difference(values, [found["precision"], found["recall"]]) < FLOAT32


def test_precision_recall_density_and_coverage_of_prdc():
    prdc = pytest.importorskip("prdc")
    x, reference = FEATURES
    found = prdc.compute_prdc(real_features=reference, fake_features=x, nearest_k=5)
    ours = {**metrics.precision_recall(x, reference, num_neighbours=5)._asdict(),
            **metrics.density_coverage(x, reference, num_neighbours=5)._asdict()}  # fmt: skip
    for name, metric in ours.items():
        assert difference(metric.value, found[name]) < ROUNDING, name


# ------------------------------------------------------------------ pairs of images


def as_torch(torch, images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def torchmetrics_image(name, **kwargs):
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("torchmetrics.functional.image")

    def peer(x, y):
        return float(getattr(image, name)(as_torch(torch, y), as_torch(torch, x), **kwargs))

    return peer


def skimage_mean(name, **kwargs):
    skimage = pytest.importorskip("skimage.metrics")
    return lambda x, y: np.mean(
        [getattr(skimage, name)(a, b, data_range=2, **kwargs) for a, b in zip(x, y, strict=True)]
    )


PSNR, SSIM = "peak_signal_noise_ratio", "structural_similarity"


@pytest.mark.parametrize(
    ("peer", "limit"),
    [(lambda: torchmetrics_image(PSNR, data_range=2.0, dim=(1, 2, 3)), FLOAT32),
     (lambda: skimage_mean(PSNR), ROUNDING)],
    ids=["torchmetrics", "scikit-image"],
)  # fmt: skip
def test_psnr(peer, limit):
    ours = metrics.psnr(IMAGES, NOISY, data_range=2).value
    assert difference(ours, peer()(IMAGES, NOISY)) < limit


def test_ssim_of_scikit_image():
    peer = skimage_mean(SSIM, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                        use_sample_covariance=False)  # fmt: skip
    ours = metrics.ssim(IMAGES, NOISY, data_range=2).value
    assert difference(ours, peer(IMAGES, NOISY)) < ROUNDING


def test_ssim_of_torchmetrics_where_its_window_fits():
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("torchmetrics.functional.image")
    whole, maps = image.structural_similarity_index_measure(
        as_torch(torch, NOISY), as_torch(torch, IMAGES), data_range=2.0, return_full_image=True
    )
    ours = metrics.ssim(IMAGES, NOISY, data_range=2).value
    assert difference(ours, maps[..., 5:-5, 5:-5].mean()) < ROUNDING
    assert 1e-3 < difference(ours, whole) < 1e-2  # the reflected border


def large_images(channels):
    rng = np.random.default_rng(1)
    x = ndimage.gaussian_filter(rng.normal(size=(2, 192, 208, channels)), (0, 3, 3, 0))
    return x, x + 0.05 * rng.normal(size=x.shape)


@pytest.mark.parametrize("num", [1, 3, 5])
def test_ms_ssim(num):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("pytorch_msssim")
    powers = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:num])
    x, y = large_images(3)
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = torch.from_numpy(window / window.sum()).repeat(3, 1, 1, 1)
    theirs = peer.ms_ssim(as_torch(torch, x), as_torch(torch, y), data_range=2.0, win=window,
                          weights=torch.from_numpy(powers / powers.sum()))  # fmt: skip
    ours = metrics.ms_ssim(x, y, data_range=2, num_scales=num).value
    assert difference(ours, theirs) < ROUNDING


def test_ms_ssim_of_torchmetrics_has_a_reflected_border_at_the_last_scale():
    x, y = large_images(1)
    peer = torchmetrics_image(f"multiscale_{SSIM}_index_measure", data_range=2.0)
    ours = metrics.ms_ssim(x, y, data_range=2).value
    assert 1e-6 < difference(ours, peer(x, y)) < 1e-3


# ------------------------------------------------------------------ transport


def test_w2_of_point_sets():
    ot = pytest.importorskip("ot")
    x, y = (a[:150] for a in FEATURES)
    theirs = ot.emd2([], [], ot.dist(x, y, metric="sqeuclidean"))
    assert difference(divergences.assignment_w2_squared(x, y), theirs) < ROUNDING


def test_w2_of_gaussians():
    gaussian = pytest.importorskip("ot").gaussian
    sides = [part for a in FEATURES for part in (a.mean(0), np.cov(a, rowvar=False))]
    theirs = gaussian.bures_wasserstein_distance(sides[0], sides[2], sides[1], sides[3])
    assert difference(divergences.gaussian_w2(*sides), theirs) < ROUNDING


def test_w1_and_w2_on_the_line():
    ot = pytest.importorskip("ot")
    x, y = FEATURES
    for p, ours in ((1, divergences.w1_1d), (2, divergences.w2_squared_1d)):
        assert difference(ours(x, y), ot.wasserstein_1d(x, y, p=p)) < ROUNDING


def test_sliced_w2():
    ot = pytest.importorskip("ot")
    directions = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))[0]
    theirs = ot.sliced_wasserstein_distance(*FEATURES, projections=directions.T, p=2) ** 2
    ours = divergences.sliced_w2_squared(*FEATURES, directions)
    assert difference(ours, theirs) < ROUNDING
