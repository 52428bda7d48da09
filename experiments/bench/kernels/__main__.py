"""Run the experiment: `python -m experiments.bench.kernels`."""

import sys

from experiments.bench.kernels.experiment import main

if __name__ == "__main__":
    sys.exit(main())
