"""Run the experiment: `python -m experiments.bench.sampler`."""

import sys

from experiments.bench.sampler.experiment import main

if __name__ == "__main__":
    sys.exit(main())
