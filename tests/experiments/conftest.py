"""What the tests of experiments share: they compile much and compute little."""

import functools

import pytest

from experiments.harness import networks
from qdiffjax import compiling
from qdiffjax.networks.models.dit import DiT
from tests.worlds import quick_jit


@pytest.fixture(scope="module", autouse=True)
def _experiments_compile_fast(compile_fast):
    """Every miniature run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "compiled", quick_jit)
        yield


@pytest.fixture
def tiny_dit_xl(monkeypatch, standard_promotion):
    """Make "dit_xl_2" a small DiT on small latents."""
    small = functools.partial(DiT, patch=2, width=32, depth=1, num_heads=2)
    monkeypatch.setitem(networks.SIZES, "dit_xl_2", small)
    monkeypatch.setattr(networks, "NUM_CLASSES", 10)
    monkeypatch.setattr(networks, "LATENT", (8, 8, 4))
