"""Run the experiment: `python -m experiments.first_order_failure`."""

import sys

from experiments.first_order_failure.experiment import main

if __name__ == "__main__":
    sys.exit(main())
