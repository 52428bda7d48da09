"""What a recipe costs on a machine: bytes, operations, time, energy."""
