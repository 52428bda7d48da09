"""Run the experiment: `python -m experiments.number_formats`."""

import sys

from experiments.number_formats.experiment import main

if __name__ == "__main__":
    sys.exit(main())
