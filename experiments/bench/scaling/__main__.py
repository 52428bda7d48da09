"""Run the experiment: `python -m experiments.bench.scaling`."""

import sys

from experiments.bench.scaling.experiment import main

if __name__ == "__main__":
    sys.exit(main())
