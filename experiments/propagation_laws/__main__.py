"""Run the experiment: `python -m experiments.propagation_laws`."""

import sys

from experiments.propagation_laws.experiment import main

if __name__ == "__main__":
    sys.exit(main())
