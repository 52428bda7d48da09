"""Run the experiment: `python -m experiments.hardware_cost`."""

import sys

from experiments.hardware_cost.experiment import main

if __name__ == "__main__":
    sys.exit(main())
