"""Weights that others trained: files that are not shipped, whose tests skip without them."""

import os
from pathlib import Path

import numpy as np
import pytest


def trained_arrays(name, variable):
    """The arrays of a file that an environment variable names, or of shared/data/models beside."""
    beside = Path(__file__).parents[3] / "shared" / "data" / "models" / name
    path = Path(os.environ.get(variable, beside))
    if not path.is_file():
        pytest.skip(f"the trained weights are not here: no file {path.name} ({variable})")
    with np.load(path) as found:
        return dict(found)
