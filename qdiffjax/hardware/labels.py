"""What kind of number a cost is: beside every one that leaves this subpackage."""

import enum


class Kind(enum.StrEnum):
    """Where a cost comes from."""

    COUNTED = "counted"  # exact, from shapes and widths
    PREDICTED = "predicted"  # a model of a machine
    COMPILED = "counted by the compiler"  # of one compiled program, nothing was run
    MEASURED = "measured"  # on the machine that is named
