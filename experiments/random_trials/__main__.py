"""Run the experiment: `python -m experiments.random_trials`."""

import sys

from experiments.random_trials.experiment import main

if __name__ == "__main__":
    sys.exit(main())
