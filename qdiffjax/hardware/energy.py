"""Joules: a stated model of each operation, and a meter where the machine has one."""

import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from qdiffjax._checks import FUNCTION, POSITIVE, checked
from qdiffjax.hardware import costs
from qdiffjax.hardware.chips import FLOAT, INTEGER
from qdiffjax.labels import Kind

PICO = 1e-12
SIGNIFICAND = {8: 4, 16: 8, 32: 24}  # bits of e4m3, bfloat16, float32, the hidden one included


class EnergyModel(NamedTuple):
    """Picojoules of an operation.

        integer multiplication   integer[0] b_w b_a + integer[1]
        float multiplication     float_[0] m^2 + float_[1],  m bits of significand
        additions                add_integer (int32), add_float (float32)
        memory                   memory, a byte

    A multiplier is an array of adders, hence the squares.
    """

    integer: tuple[float, float]
    float_: tuple[float, float]
    add_integer: float
    add_float: float
    memory: float
    source: str


def _line(x_0, y_0, x_1, y_1) -> tuple[float, float]:
    slope = (y_1 - y_0) / (x_1 - x_0)
    return slope, y_0 - slope * x_0


# Horowitz 2014 (ISSCC, "Computing's energy problem"), figure 1.1.9: 45 nm, 0.9 V. Multiplications:
# int8 0.2, int32 3.1, float16 1.1, float32 3.7 pJ; additions: int32 0.1, float32 0.9 pJ; DRAM 1.3
# to 2.6 nJ for 64 bits, of which we take the lower. Other widths lie on the line through his two
# points (float16 has 11 bits of significand): bfloat16 and 8-bit floats are interpolated, not his.
HOROWITZ = EnergyModel(
    _line(8 * 8, 0.2, 32 * 32, 3.1), _line(11**2, 1.1, 24**2, 3.7), 0.1, 0.9, 1300 / 8,
    "Horowitz 2014, 45 nm, DRAM at 1.3 nJ for 64 bits",
)  # fmt: skip
# The same arithmetic beside stacked memory: 3.92 pJ a bit of HBM2, O'Connor et al. 2017 (MICRO).
HBM = HOROWITZ._replace(
    memory=3.92 * 8, source="Horowitz 2014, 45 nm, with HBM2 of O'Connor et al. 2017"
)


class Energy(NamedTuple):
    """Joules of one call, by site [..., S]; predicted."""

    compute: Any
    memory: Any

    @property
    def kind(self) -> Kind:
        """A model of a machine."""
        return Kind.PREDICTED

    @property
    def total(self):
        """Joules of all sites [...]."""
        return (self.compute + self.memory).sum(-1)


def predict_energy(
    counts: costs.Counts, w: costs.Widths, model: EnergyModel = HOROWITZ, *, family=INTEGER
) -> Energy:
    """Return the joules of every product at its widths.

        E_l(b) = MACs_l (E_mul(b_w, b_a) + E_add) + traffic_l(b) E_memory

    Codes of more than 8 bits, or beside a real operand, multiply in full precision. An ideal
    machine: multipliers of just the widths asked for, every operand fetched from memory once, and
    nothing spent on control, caches or leakage. Ratios mean more than joules.

    Args:
      counts: of the network.
      w: widths [..., S].
      model: picojoules of operations.
      family: of the codes, `chips.INTEGER` or `chips.FLOAT`.
    """
    moved = costs.traffic(counts, w)
    wide = costs.operand_bits(counts, w)
    full = _float_mac(model, SIGNIFICAND[w.full])
    if family == FLOAT:
        codes = _float_mac(model, SIGNIFICAND[8])
    else:
        products = costs.bit_products(counts, w)
        codes = model.integer[0] * products + (model.integer[1] + model.add_integer)
    mac = costs.numpy_of(wide).where((wide <= 8) & (wide < w.full), codes, full)
    macs = costs.like(counts.macs, moved)
    return Energy(macs * mac * PICO, moved * (model.memory * PICO))


def _float_mac(model: EnergyModel, significand: int) -> float:
    return model.float_[0] * significand**2 + model.float_[1] + model.add_float


class MeasuredEnergy(NamedTuple):
    """Joules that the device drew during `seconds`, over `calls` calls; measured."""

    joules: float
    seconds: float
    calls: int
    source: str

    @property
    def kind(self) -> Kind:
        """Run here."""
        return Kind.MEASURED

    @property
    def per_call(self) -> float:
        """Joules of one call, idle power included."""
        return self.joules / self.calls


@checked(fn=FUNCTION, seconds=POSITIVE, interval=POSITIVE)
def measured_energy(
    fn: Callable,
    *args,
    seconds: float = 2.0,
    interval: float = 0.02,
    read_watts: Callable[[], float] | None = None,
) -> MeasuredEnergy:
    """Call fn(*args) over and over for at least `seconds`, integrating the power that is read.

    Args:
      fn: called once before, to compile.
      args: of fn.
      seconds: to run; a meter averages over tens of milliseconds, so seconds, not calls.
      interval: between two readings.
      read_watts: power now; None asks NVIDIA's driver, of the first GPU.

    Raises:
      RuntimeError: nothing here reports power.
    """
    source = "read_watts" if read_watts else "nvidia-smi power.draw"
    read_watts = read_watts or nvidia_watts
    jax.block_until_ready(fn(*args))
    times, watts, done = [time.perf_counter()], [read_watts()], threading.Event()

    def watch():
        while not done.wait(interval):
            watts.append(read_watts())
            times.append(time.perf_counter())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    calls = 0
    try:
        while time.perf_counter() - times[0] < seconds or not calls:
            jax.block_until_ready(fn(*args))
            calls += 1
        stop = time.perf_counter()
    finally:
        done.set()
        watcher.join()
    watts.append(read_watts())
    times.append(max(stop, times[-1]))
    return MeasuredEnergy(integral(times, watts), times[-1] - times[0], calls, source)


def integral(times, watts) -> float:
    """Return the joules under a line through (seconds, watts): the trapezoidal rule."""
    t, p = np.asarray(times, np.float64), np.asarray(watts, np.float64)
    return float(np.sum((p[1:] + p[:-1]) / 2 * np.diff(t)))


def nvidia_watts(index: int = 0) -> float:
    """Return the power that a GPU draws now, watts, by nvidia-smi.

    Raises:
      RuntimeError: no such tool, or it does not know.
    """
    command = ["nvidia-smi", f"--id={index}", "--query-gpu=power.draw",
               "--format=csv,noheader,nounits"]  # fmt: skip
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return float(run.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise RuntimeError(
            f"no power is reported here ({error}); pass read_watts, or use `predict_energy`."
        ) from error
