"""Run the experiment: `python -m experiments.certificates`."""

import sys

from experiments.certificates.experiment import main

if __name__ == "__main__":
    sys.exit(main())
