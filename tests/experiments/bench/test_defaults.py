"""The committed comparison of defaults: errors of ours beside those of its peer."""

import io
from pathlib import Path

import numpy as np

from experiments.bench import defaults
from experiments.harness import command
from qdiffjax import _tables as tables
from qdiffjax import results

FOLDER = Path(command.__file__).parents[1] / "results" / "bench_defaults"


def committed():
    _, arrays, rows = results.load(FOLDER)
    return arrays, rows


# The last convolution of the UNet at 8 bits, which the default leaves in full precision.
LOST = {("fashion_unet", "ours dynamic, every layer", "qwix dynamic, every layer")}


def test_the_error_of_the_default_is_no_larger_than_that_of_its_peer():
    _, rows = committed()
    pairs = defaults.beside(rows)
    assert len(pairs) == 12  # for each network: four forms of qwix, two of them its own
    lost = {(ours["checkpoint"], ours["name"], theirs["name"])
            for ours, theirs in pairs if ours["error"] > theirs["error"]}  # fmt: skip
    assert lost == LOST


def test_rows_are_what_the_arrays_say():
    arrays, rows = committed()
    for row in rows:
        part = f"{row['checkpoint']}/"
        index = list(arrays[part + "names"]).index(row["name"])
        errors, seconds = arrays[part + "errors"][index], arrays[part + "seconds"]
        np.testing.assert_allclose(row["error"], np.sqrt(np.mean(errors**2)), rtol=1e-6)
        ratios = seconds[:, index] / seconds[:, 0]
        np.testing.assert_allclose(row["over_float"], np.median(ratios), rtol=1e-6)


def test_what_is_missing_is_said():
    row = {"checkpoint": "a", "name": "qwix static, layers", "missing": "No module named 'qwix'"}
    tables.show(defaults.EXPERIMENT.table([row]), text := io.StringIO())
    assert "a, qwix static, layers: No module named 'qwix'" in text.getvalue()
