"""Run the experiment: `python -m experiments.train`."""

import sys

from experiments.train.experiment import main

if __name__ == "__main__":
    sys.exit(main())
