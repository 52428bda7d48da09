"""Run the experiment: `python -m experiments.divergence_vs_bits`."""

import sys

from experiments.divergence_vs_bits.experiment import main

if __name__ == "__main__":
    sys.exit(main())
