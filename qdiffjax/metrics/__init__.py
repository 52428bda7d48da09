"""Distances of samples, each with its uncertainty; features in, number out.

    metrics.compare(float_samples, quantized_samples, features_fn=..., key=...)     all that apply

records      a number with its interval, what the interval covers, and its noise floor
streaming    mean and covariance of features in bounded memory, from shards too
frechet      the Frechet distance of features, of finitely and of infinitely many samples
kernels      KID and MMD, unbiased, by blocks
manifolds    precision and recall, density and coverage
classes      inception score, label flips, agreement of classes
images       PSNR, SSIM, MS-SSIM, spectra
perceptual   the LPIPS form, agreement of two embeddings
videos       flicker and temporal consistency
paired       tests of paired values, adjusted for how many are looked at
features     functions from samples to features
comparing    all of these at once

Everything is computed in float64. Features, probabilities and samples are arrays with a leading
axis of samples. "FID" is the Frechet distance of Inception-v3's features; of any other features a
distance is called by its features.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
