"""The ways that are compared: cures after training, training, and both."""

from collections.abc import Callable

from qdiffjax import strategies
from qdiffjax.strategies import Cure

NEAREST, CURED = "nearest", "rotation, GPTQ"
UNIFORM, GAINS = "training", "training by gains"
PROPAGATED, WHOLE = "training of the propagated error", "training of the whole run"
LOW_RANK, HYBRID, BOTH = "training of rank 4", "hybrid", "rotation, GPTQ, training by gains"
SENSITIVE = ("*attention*",)  # what the hybrid trains; the rest stays as GPTQ left it


def ways(num_steps: int, rate: float, num_runs: int) -> dict[str, Callable[..., list[Cure]]]:
    """Return {name: key -> cures}; the first is the front door's default.

    Args:
      num_steps: optimizer steps of a full training; the hybrid has a fifth of them.
      rate: of Adam, see `strategies.qat`.
      num_runs: sampling runs of a step.
    """

    def trained(objective=None, num=num_steps, **options) -> Cure:
        objective = objective or strategies.distillation(num_samples=num_runs)
        return strategies.qat(num, objective=objective, learning_rate=rate, progress=False,
                              **options)  # fmt: skip

    def cured(key) -> list[Cure]:
        return [strategies.rotation(key), strategies.gptq()]

    gains = strategies.distillation("gains", num_samples=num_runs)
    short = max(1, num_steps // 5)
    return {
        NEAREST: lambda key: [],
        CURED: cured,
        UNIFORM: lambda key: [trained()],
        GAINS: lambda key: [trained(gains)],
        PROPAGATED: lambda key: [trained(strategies.propagated(num_samples=num_runs))],
        WHOLE: lambda key: [trained(strategies.whole_run(num_samples=num_runs))],
        LOW_RANK: lambda key: [trained(gains, rank=4)],
        HYBRID: lambda key: [*cured(key), trained(gains, short, sites=SENSITIVE)],
        BOTH: lambda key: [*cured(key), trained(gains)],
    }
