"""Run the experiment: `python -m experiments.error_bounds`."""

import sys

from experiments.error_bounds.experiment import main

if __name__ == "__main__":
    sys.exit(main())
