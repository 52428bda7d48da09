"""Run the experiment: `python -m experiments.bench.tpu_aot`."""

import sys

from experiments.bench.tpu_aot.experiment import main

if __name__ == "__main__":
    sys.exit(main())
