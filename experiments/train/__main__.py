"""Run the experiment: `python -m experiments.train`."""

from experiments.train.experiment import main

raise SystemExit(main())
