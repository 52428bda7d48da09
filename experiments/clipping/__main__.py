"""Run the experiment: `python -m experiments.clipping`."""

import sys

from experiments.clipping.experiment import main

if __name__ == "__main__":
    sys.exit(main())
