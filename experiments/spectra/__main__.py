"""Run the experiment: `python -m experiments.spectra`."""

import sys

from experiments.spectra.experiment import main

if __name__ == "__main__":
    sys.exit(main())
