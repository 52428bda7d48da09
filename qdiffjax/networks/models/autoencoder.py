"""A small convolutional autoencoder for latent diffusion; Rombach et al. 2022, section 3.1."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax.networks.models.layers import GroupNorm, check_groups, check_sides, upsampled


class ConvBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Map x [b, h, w, c] to [b, h, w, channels]."""
        h = nn.silu(GroupNorm(8, self.dtype, name="norm_1")(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_1")(h)
        h = nn.silu(GroupNorm(8, self.dtype, name="norm_2")(h))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
        return x + h


class Encoder(nn.Module):
    """Halve the image once a level."""

    channels: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Map x [b, h, w, c] to [b, h/f, w/f, features], f = 2^levels."""
        h = nn.Conv(self.channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        for i, c in enumerate(self.channels):
            h = ConvBlock(c, self.dtype, name=f"block_{i}")(h)
            h = nn.Conv(c, (3, 3), (2, 2), dtype=self.dtype, name=f"pool_{i}")(h)
        h = nn.silu(GroupNorm(8, self.dtype, name="norm_out")(h))
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """Double the image once a level."""

    channels: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z):
        """Map z [b, h, w, d] to [b, h f, w f, features], f = 2^levels."""
        h = nn.Conv(self.channels[-1], (3, 3), dtype=self.dtype, name="conv_in")(z)
        for i, c in reversed(list(enumerate(self.channels))):
            h = upsampled(h)
            h = nn.Conv(c, (3, 3), dtype=self.dtype, name=f"pool_{i}")(h)
            h = ConvBlock(c, self.dtype, name=f"block_{i}")(h)
        h = nn.silu(GroupNorm(8, self.dtype, name="norm_out")(h))
        return nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv_out")(h)


class Autoencoder(nn.Module):
    """Encode images to the mean and log-variance of a Gaussian latent, and decode latents.

    Attributes:
      channels: width of each level, finest first, multiples of 8; each level halves the image.
      latent_channels: of the latent.
      image_channels: of the image.
      dtype: of the computation; parameters stay float32.
    """

    channels: tuple[int, ...] = (32, 64)
    latent_channels: int = 4
    image_channels: int = 1
    dtype: Any = jnp.float32

    def setup(self):
        """Create the two halves."""
        self.encoder = Encoder(self.channels, 2 * self.latent_channels, self.dtype)
        self.decoder = Decoder(self.channels, self.image_channels, self.dtype)

    def encode(self, x):
        """Map images [b, h, w, c] to (mean, log_var), each [b, h/f, w/f, latent_channels].

        The log-variance is clipped to [-30, 20], as in the authors' code.
        """
        self._check(x)
        mean, log_var = jnp.split(self.encoder(x.astype(self.dtype)).astype(x.dtype), 2, axis=-1)
        return mean, jnp.clip(log_var, -30.0, 20.0)

    def decode(self, z):
        """Map latents [b, h/f, w/f, latent_channels] to images [b, h, w, c]."""
        return self.decoder(z.astype(self.dtype)).astype(z.dtype)

    def __call__(self, x, key=None):
        """Return (x_hat, mean, log_var); x_hat decodes a draw with `key`, or the mean without."""
        mean, log_var = self.encode(x)
        z = mean
        if key is not None:
            z = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape, mean.dtype)
        return self.decode(z), mean, log_var

    def _check(self, x):
        check_groups(self.channels)
        factor = 2 ** len(self.channels)
        check_sides("Autoencoder", x, factor, f"{factor} = 2^levels")
        require(
            x.shape[3] == self.image_channels, "Autoencoder", got=f"{x.shape[3]} image channels",
            expected=f"{self.image_channels}", remedy="set image_channels",
        )  # fmt: skip
