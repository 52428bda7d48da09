"""Everything that needs Flax, optax or Orbax: networks, checkpoints, training, data."""
