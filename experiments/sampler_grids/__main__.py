"""Run the experiment: `python -m experiments.sampler_grids`."""

import sys

from experiments.sampler_grids.experiment import main

if __name__ == "__main__":
    sys.exit(main())
