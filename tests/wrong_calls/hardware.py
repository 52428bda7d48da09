"""Wrong calls of costs, chips, energy and measurements; and of networks and sharding."""

import numpy as np

from qdiffjax import hardware, networks, sharding
from qdiffjax.precision import Recipe, SiteBits
from tests.wrong_calls import COUNT, COUNT_FROM_0, FUNCTIONS, NAN, POSITIVE
from tests.wrong_calls.front_door import SITES

H100 = hardware.find_chip("H100")
COUNTS = hardware.count(SITES)
WIDTHS = hardware.uniform(8, 8)
BITS = (99, 0, -1, 2.5, NAN, "8")
FULL = (8, 33, 0, NAN, "x")
OPEN_SHARE = (0.0, 1.0, -0.1, NAN, "x")
ROWS = {
    "uniform(weight)": (lambda v: hardware.uniform(v, 8), BITS),
    "uniform(activation)": (lambda v: hardware.uniform(8, v), BITS),
    "uniform(full)": (lambda v: hardware.uniform(8, 8, full=v), FULL),
    "widths(recipe)": (lambda v: hardware.widths(COUNTS, v),
                       (Recipe({"inn": SiteBits(8, 8)}), "W8A8", None)),
    "widths(full)": (lambda v: hardware.widths(COUNTS, Recipe({}), full=v), FULL),
    "count(sites)": (hardware.count, (None, ("in",), 3)),
    "model_bytes(other)": (lambda v: hardware.model_bytes(COUNTS, WIDTHS, v), COUNT_FROM_0),
    "other_elements(params)": (lambda v: hardware.other_elements(v, COUNTS), ({}, np.zeros(2))),
    "multiplied_as(bits)": (lambda v: hardware.multiplied_as(H100, v),
                            (-1, 99, 2.5, NAN, "8")),
    "multiplied_as(full)": (lambda v: hardware.multiplied_as(H100, 8, full=v), FULL),
    "multiplied_as(family)": (lambda v: hardware.multiplied_as(H100, 8, family=v),
                              (("int9",), ("fp8",))),
    "multiplied_as(chip)": (lambda v: hardware.multiplied_as(v, 8), ("H100", None)),
    "rate_table(chip)": (hardware.rate_table, ("H100", None)),
    "predict_times(chip)": (lambda v: hardware.predict_times(COUNTS, WIDTHS, v), ("H100", None)),
    "Chip(rates)": (lambda v: hardware.Chip("x", v, 1.0, 1.0),
                    ({}, {"int8": 1.0}, {"f32": 0.0}, {"f32": NAN}, {"f32": -1.0, "bf16": 1.0})),
    "Chip(bandwidth)": (lambda v: hardware.Chip("x", {"f32": 1.0}, v, 1.0), POSITIVE),
    "Chip(capacity)": (lambda v: hardware.Chip("x", {"f32": 1.0}, 1.0, v), (0.0, -1.0, NAN, "x")),
    "find_chip(device_kind)": (hardware.find_chip, (None, 3)),
    "measure(fn)": (lambda v: hardware.measure(v), FUNCTIONS),
    "measure(num_rounds)": (lambda v: hardware.measure(lambda: 1, num_rounds=v), COUNT),
    "measure(num_warmup)": (lambda v: hardware.measure(lambda: 1, num_warmup=v), COUNT_FROM_0),
    "measure(confidence)": (lambda v: hardware.measure(lambda: 1, confidence=v), OPEN_SHARE),
    "median_interval(values)": (hardware.median_interval, ((), (1.0, NAN), "x")),
    "median_interval(confidence)": (lambda v: hardware.median_interval((1.0, 2.0), v), OPEN_SHARE),
    "measured_energy(seconds)": (lambda v: hardware.measured_energy(
        lambda: 1, seconds=v, read_watts=lambda: 1.0), POSITIVE),
    "measured_energy(interval)": (lambda v: hardware.measured_energy(
        lambda: 1, interval=v, read_watts=lambda: 1.0), POSITIVE),
    "compiled_cost(fn)": (hardware.compiled_cost, FUNCTIONS),
    "make_mesh(num_batch)": (sharding.make_mesh, COUNT),
    "make_mesh(num_weights)": (lambda v: sharding.make_mesh(1, v), COUNT),
    "sweep(batch_size)": (lambda v: sharding.sweep(lambda x: x, batch_size=v), COUNT),
    "sweep(fn)": (sharding.sweep, FUNCTIONS),
    "find_checkpoint(path)": (networks.find_checkpoint, ("fashion_unett", "", None, 3)),
    "ModelConfig(shape)": (lambda v: networks.ModelConfig(v), ((0, 1), (2.5,), (), (-1, 2))),
    "ModelConfig(network)": (lambda v: networks.ModelConfig((2, 2, 1), v), ("unett", None)),
    "ModelConfig(prediction)": (
        lambda v: networks.ModelConfig((2, 2, 1), prediction=v), ("epsilon", None)),
    "ModelConfig(schedule)": (
        lambda v: networks.ModelConfig((2, 2, 1), schedule=v), ("linearr", None)),
    "ModelConfig(num_train_steps)": (
        lambda v: networks.ModelConfig((2, 2, 1), num_train_steps=v), COUNT),
    "ModelConfig(num_classes)": (
        lambda v: networks.ModelConfig((2, 2, 1), num_classes=v), COUNT_FROM_0),
    "ModelConfig(latent_scale)": (
        lambda v: networks.ModelConfig((2, 2, 1), latent_scale=v), POSITIVE),
}  # fmt: skip
