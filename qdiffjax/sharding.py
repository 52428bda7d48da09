"""Many devices, one program: arrays are placed, and the same functions run on them unchanged.

    split, from_local     samples or configurations, a part to each device
    replicate             what all devices need
    shard_params          weights too large for one device, a part to each
    sweep                 one function of a configuration, for many of them
    initialize            several hosts; then the devices of all of them are one mesh

JAX computes where its arguments lie: a sampler, an analysis or a loss under `jax.jit` needs no word
about devices. A mesh is a table of devices, those that share samples out by those that share
weights out: [8, 1] for a network that each can hold, [1, 8] for one that only all can, which then
compute each product together. One device is a mesh of one.

Sums that run over devices, and products whose rows are fewer on each, add in another order than on
one device, so results agree to rounding; `sweep` gives each configuration to one device, whose
program does not depend on how many there are.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qdiffjax._checks import FUNCTION, check_count, checked, optional, require

BATCH, WEIGHTS = "batch", "weights"  # axes of a mesh
MIN_ELEMENTS = 2**14  # of a parameter that is worth splitting


def initialize(
    address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of this run; call it before anything else of JAX.

    Args:
      address: host:port of process 0.
      num_processes: how many there are; 1 is no cluster, and nothing happens.
      process_id: which one this is, from 0. All None: as a TPU pod or a job scheduler says.

    Raises:
      ValueError: some of the three and not the others, or an id that does not exist.
      RuntimeError: JAX was used before, or the others cannot be reached.
    """
    if num_processes == 1:
        return
    require(
        len({a is None for a in (address, num_processes, process_id)}) == 1,
        got=f"address={address}, num_processes={num_processes}, process_id={process_id}",
        expected="all three, or none of them",
        remedy="none is for a TPU pod or a job scheduler",
    )
    if num_processes is not None:
        require(process_id in range(num_processes), "process_id", got=process_id,
                expected=f"0 ... {num_processes - 1}", remedy="count from 0")  # fmt: skip
    try:
        jax.distributed.initialize(address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"the processes did not meet: {error} Call `initialize` once, before any array is "
            "made, in every process, with the address of process 0."
        ) from error


@checked(num_batch=optional(check_count), num_weights=check_count)
def make_mesh(num_batch: int | None = None, num_weights: int = 1) -> Mesh:
    """A table [num_batch, num_weights] of the first devices of all processes.

    Args:
      num_batch: devices that share samples or configurations out; None takes all there are.
      num_weights: devices that share the weights out.

    Raises:
      ValueError: there are fewer.
    """
    devices = jax.devices()
    num_batch = len(devices) // num_weights if num_batch is None else num_batch
    num = num_batch * num_weights
    require(
        1 <= num <= len(devices), got=f"{num_batch} x {num_weights} devices",
        expected=f"1 ... {len(devices)}, all there are",
        remedy="a CPU shows more with XLA_FLAGS=--xla_force_host_platform_device_count=8",
    )  # fmt: skip
    return Mesh(np.array(devices[:num]).reshape(num_batch, num_weights), (BATCH, WEIGHTS))


def over_batch(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is shared out."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def split(tree, mesh: Mesh):
    """Share the leading axis of every array out over the devices; every process has all of it.

    Raises:
      ValueError: an array whose leading axis the devices do not divide.
    """
    num = mesh.shape[BATCH]
    for leaf in jax.tree.leaves(tree):
        require(
            np.ndim(leaf) and np.shape(leaf)[0] % num == 0,
            got=f"an array of shape {np.shape(leaf)} for {num} devices",
            expected=f"a leading axis divisible by {num}",
            remedy="change the batch, or use fewer devices",
        )
    return jax.device_put(tree, over_batch(mesh))


def replicate(tree, mesh: Mesh):
    """Give every device a copy."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def from_local(tree, mesh: Mesh):
    """Make global arrays of the parts [n / processes, ...] that each process holds, in order."""
    sharding = over_batch(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), tree)


def gather(tree, mesh: Mesh):
    """Return whole NumPy arrays, in every process."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(np.asarray, jax.jit(lambda t: t, out_shardings=everywhere)(tree))


def param_shardings(params, mesh: Mesh, *, min_elements: int = MIN_ELEMENTS):
    """Where each parameter lies: split along its longest axis that `num_weights` divides.

    The last of equal axes; a parameter without such an axis, or with fewer than `min_elements`
    elements, is copied to every device.

    Args:
      params: arrays or shapes.
      mesh: the devices.
      min_elements: smallest parameter to split.

    Returns:
      Shardings, in the structure of `params`.
    """
    num = mesh.shape[WEIGHTS]

    def place(leaf):
        shape = np.shape(leaf)
        fitting = [axis for axis, n in enumerate(shape) if n and n % num == 0]
        if not fitting or math.prod(shape) < min_elements:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(fitting, key=lambda a: (shape[a], a))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, WEIGHTS))

    return jax.tree.map(place, params)


def shard_params(params, mesh: Mesh, *, min_elements: int = MIN_ELEMENTS):
    """Share the weights out, so that each device holds about 1 / num_weights of them."""
    return jax.device_put(params, param_shardings(params, mesh, min_elements=min_elements))


@checked(fn=FUNCTION, batch_size=optional(check_count))
def sweep(
    fn: Callable[..., Any], mesh: Mesh | None = None, *, batch_size: int | None = None
) -> Callable[..., Any]:
    """Return g(configs, *shared) -> fn(config, *shared) of every configuration, leading axis n.

    A device takes its share of the configurations one after another (or `batch_size` at once), in
    one compiled program, so memory does not grow with n. Call g under `jax.jit`. The numbers do not
    depend on the number of devices.

    Args:
      fn: of one configuration, any pytree of arrays (bits, scales, keys), and of what all share.
      mesh: devices, all of which take configurations; None is one. They need not divide n: the
        last configuration is then repeated.
      batch_size: configurations that a device runs at once.
    """

    def local(configs, *shared):
        return jax.lax.map(lambda config: fn(config, *shared), configs, batch_size=batch_size)

    if mesh is None:
        return local
    everywhere, shares = PartitionSpec(), PartitionSpec(mesh.axis_names)

    def swept(configs, *shared):
        num = _length(configs)
        padded = jax.tree.map(lambda a: _extended(a, -num % mesh.size), configs)
        specs = (shares, *[everywhere] * len(shared))
        # Values that vary by device may meet constants in the loops of `fn`: nothing to check.
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=shares, check_vma=False)
        return jax.tree.map(lambda a: a[:num], run(padded, *shared))

    return swept


def _length(configs) -> int:
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(configs)}
    require(len(lengths) == 1 and 0 not in lengths, "configs",
            got=f"leading axes {sorted(lengths)}",
            expected="one length of at least 1", remedy="stack what is swept")  # fmt: skip
    return lengths.pop()


def _extended(array, num: int):
    """The array with its last entry `num` times more."""
    return jnp.concatenate([array, *[array[-1:]] * num]) if num else jnp.asarray(array)
