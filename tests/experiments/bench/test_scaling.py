"""Memory of a sampler as compiled, and what the benchmark of many devices refuses."""

import functools
import io

import pytest

from experiments.bench import scaling
from experiments.harness import command, networks
from qdiffjax import _tables as tables
from qdiffjax.networks.models.dit import DiT

CONFIG = scaling.Config(devices=(1,), sides=(8,), steps=(2, 5))


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(DiT, patch=2, width=16, depth=1, num_heads=2)
        patch.setitem(networks.SIZES, "dit_xl_2", small)
        return scaling.memory(CONFIG)


def test_memory_of_a_sampler_does_not_grow_with_its_steps(rows):
    few, many = rows[:2]
    assert (few["steps"], many["steps"]) == (2, 5)
    assert many["temporaries"] == few["temporaries"] > 0
    # At most five numbers of a step are its data: two times, three coefficients.
    assert 0 < many["arguments"] - few["arguments"] <= 3 * 5 * 8


def test_states_that_are_kept_are_the_results_of_every_step(rows):
    state = 8 * 8 * 4 * 4  # bytes of a float32 latent
    assert rows[-1]["keeps_trajectory"]
    assert rows[-1]["outputs"] == (5 + 1) * state
    assert rows[0]["outputs"] == state
    assert rows[2]["batch"] == 1


def test_tables_say_what_is_kept_and_whether_bits_differ(rows):
    sweep = {"part": "sweep", "devices": 8, "best": 0.2, "speedup": 1.9, "speedup_median": 1.8,
             "same_bits": False}  # fmt: skip
    tables.show(scaling.table([sweep, *rows]), text := io.StringIO())
    last = text.getvalue().rstrip().splitlines()[-1].split()
    assert last[:8] == ["1", "x", "1", "8", "x", "8", "1", "5"]
    assert last[8] == "all"
    assert "OTHER BITS" in text.getvalue()


def test_recipes_that_the_devices_do_not_divide_are_refused(tmp_path, capsys):
    argv = ["--num-recipes", "6", "--devices", "1", "4", "--output", str(tmp_path)]
    assert command.main(scaling.EXPERIMENT, argv) == 2
    assert "divide the recipes" in capsys.readouterr().err
