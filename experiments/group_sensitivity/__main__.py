"""Run the experiment: `python -m experiments.group_sensitivity`."""

import sys

from experiments.group_sensitivity.experiment import main

if __name__ == "__main__":
    sys.exit(main())
