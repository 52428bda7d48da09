"""The command line of an experiment: flags from its Config, results into a folder, exit codes."""

import dataclasses
import functools
import inspect
import math
import operator
import runpy
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from experiments.harness import store
from qdiffjax import _files, results
from qdiffjax import _tables as tables
from qdiffjax._checks import require
from qdiffjax._command import Parser, outcome

NOTHING: Mapping[str, Any] = MappingProxyType({})
LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least"), "most": (operator.le, "at most"),
    "above": (operator.gt, "more than"), "below": (operator.lt, "less than"),
}  # fmt: skip
INT = 2**31  # what arrays count with
SEEDS = 2**32


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[str] | None = None,
    each: Callable[[Any], Any] | None = None,
    repeats: bool = False,
) -> Any:
    """Return a field of a Config: a flag, its help and its check in one place.

    Numbers must be finite, integers fit in 32 bits.

    Args:
      default: its type is the flag's; a tuple takes many values (an empty one texts), False is a
        switch.
      help: a sentence; choices and default are added.
      least, most: inclusive limits of every value.
      above, below: exclusive limits of every value.
      choices: the values there are.
      each: called with every value; raises ValueError for what cannot work.
      repeats: whether one of many values may come twice.
    """
    limits = {"least": least, "most": most, "above": above, "below": below}
    set_limits = {name: bound for name, bound in limits.items() if bound is not None}
    rules = {"help": help, "limits": set_limits, "choices": tuple(choices or ()), "each": each,
             "repeats": repeats}  # fmt: skip
    return dataclasses.field(default=default, metadata=rules)


def seed(help: str = "Seed of everything random.") -> Any:
    """Return the option of a seed: what a key of JAX tells apart."""
    return option(0, help, least=0, most=SEEDS - 1)


def check(config) -> None:
    """Raise ValueError for what the options of `config` refuse, or its own method `check`."""
    for field in dataclasses.fields(config):
        value, name, rules = getattr(config, field.name), field.name, field.metadata
        many = isinstance(value, tuple)
        for item in value if many else (value,):
            _check_item(name, item, rules)
        if many:
            require(
                value or not field.default,
                got=f"no {name}",
                expected="at least one",
                remedy="name one, or leave the flag out",
            )
            require(rules["repeats"] or len(set(value)) == len(value), got=f"{name} = {value}",
                    expected="each once",
                    remedy="delete the others")  # fmt: skip
    if hasattr(config, "check"):
        config.check()


def _check_item(name: str, value, rules: Mapping[str, Any]) -> None:
    if isinstance(value, float):
        require(
            math.isfinite(value),
            got=f"{name} = {value}",
            expected="a finite number",
            remedy="give a number",
        )
    if isinstance(value, int) and "most" not in rules["limits"]:
        require(
            -INT <= value < INT,
            got=f"{name} = {value}",
            expected="an integer of 32 bits",
            remedy="give a smaller one",
        )
    for limit, bound in rules["limits"].items():
        holds, words = LIMITS[limit]
        require(
            holds(value, bound),
            got=f"{name} = {value}",
            expected=f"{words} {bound}",
            remedy="see --help",
        )
    choices = rules["choices"]
    require(not choices or value in choices, got=f"{name} = {value!r}",
            expected=f"one of {', '.join(map(str, choices))}",
            remedy="name one of them")  # fmt: skip
    if rules["each"]:
        rules["each"](value)


class Experiment(NamedTuple):
    """What `main` runs; made by `experiment`.

    name: of the results; prog: the command; doc: for --help; config: the dataclass of options;
    measure: (config, progress=, keep=, kept=) -> (arrays, rows), or without the last two for what
    cannot be resumed; figures: {file stem: draw(config, arrays, rows)}, or a function of the
    results that returns it; table: rows -> lines and tables to print; quick: settings of a flag
    --quick, if there are any; notes: kept with the provenance.
    """

    name: str
    prog: str
    doc: str
    config: Any
    measure: Callable[..., tuple[dict, list]]
    figures: Mapping[str, Callable] | Callable
    table: Callable[[list], Iterable]
    quick: Mapping[str, Any]
    notes: Mapping[str, Any]

    @property
    def resumes(self) -> bool:
        """Whether `measure` takes keep and kept, by their names or among its **options."""
        return not {"kept", "options"}.isdisjoint(inspect.signature(self.measure).parameters)

    def run(self, config, **options) -> tuple[dict, list]:
        """Check the config, then return arrays and rows; touches no file."""
        check(config)
        return self.measure(config, **options)


def experiment(
    config,
    run: Callable[..., tuple[dict, list]],
    *,
    plots: ModuleType | None = None,
    table: Callable[[list], Iterable] = tables.lines,
    quick: Mapping[str, Any] = NOTHING,
    notes: Mapping[str, Any] = NOTHING,
) -> Experiment:
    """Make an experiment of a config and a function; the module of the config names it.

    `experiments.spectra.experiment` is "spectra", `experiments.bench.quant` is "bench_quant". The
    module of plots has FIGURES, and a `table` if none is given here; see `Experiment`.
    """
    module = sys.modules[config.__module__]
    assert module.__spec__ is not None  # also of a module that is run as __main__
    path = module.__spec__.name.removesuffix(".experiment")
    return Experiment(
        path.removeprefix("experiments.").replace(".", "_"), f"python -m {path}",
        module.__doc__ or "", config, run, getattr(plots, "FIGURES", NOTHING),
        getattr(plots, "table", table), quick, notes,
    )  # fmt: skip


def parse(experiment: Experiment, argv=None) -> tuple[Any, str]:
    """Return the config and the folder of the results; exits with code 2 on bad flags."""
    resumes = "; an interrupted run resumes there" if experiment.resumes else ""
    return parse_config(
        experiment.config, f"runs/{experiment.name}", argv, prog=experiment.prog,
        description=experiment.doc, output_help=f"folder of the results{resumes}",
        quick=experiment.quick,
    )  # fmt: skip


def parse_config(
    config, output: str, argv=None, *, prog: str, description: str, output_help: str,
    quick: Mapping[str, Any] = NOTHING,
) -> tuple[Any, str]:  # fmt: skip
    """Return a config from its flags, and the folder of --output, by default `output`."""
    parser = Parser(prog=prog, description=description)
    for field in dataclasses.fields(config):
        _add_flag(parser, field)
    parser.add_argument("--output", default=output, help=f"{output_help} (default: %(default)s)")
    if quick:
        parser.add_argument("--quick", action="store_true", help=f"small settings: {dict(quick)}")
    args = vars(parser.parse_args(argv))
    if args.pop("quick", False):  # gives way to the flags that are named
        parser.set_defaults(**quick)
        args = vars(parser.parse_args(argv))
        args.pop("quick")
    output = args.pop("output")
    if not output:
        parser.error("argument --output: expected a folder")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in args.items()}
    return config(**values), output


def _add_flag(parser: Parser, field: dataclasses.Field) -> None:
    default: Any = field.default
    flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
    if default is False:
        parser.add_argument(flag, action="store_true", help=text)
        return
    choices = field.metadata["choices"]
    named = f"{', '.join(map(str, choices))}; " if choices else ""
    kwargs: dict[str, Any] = {
        "help": f"{text} ({named}default: %(default)s)",
        "type": type(default),
    }
    if isinstance(default, tuple):
        kind = type(default[0]) if default else str
        kwargs |= {"nargs": "+", "metavar": "X", "type": kind}
        default = list(default)
    parser.add_argument(flag, default=default, **kwargs)


def main(experiment: Experiment, argv=None) -> int:
    """Run, print the table, write results and figures; exit code 2 for what cannot be run."""
    config, output = parse(experiment, argv)

    def work() -> None:
        check(config)
        with _files.writer(output) as folder:
            _run(experiment, config, folder)

    again = "; the same command resumes after the last part done" if experiment.resumes else ""
    return outcome(work, after_interrupt=again)


def _run(experiment: Experiment, config, folder: Path) -> None:
    import jax

    options: dict[str, Any] = {"progress": sys.stderr.isatty()}
    start = time.perf_counter()
    if experiment.resumes:
        options |= {"keep": functools.partial(results.save_part, folder),
                    "kept": functools.partial(results.load_part, folder)}  # fmt: skip
    arrays, rows = experiment.measure(config, **options)
    seconds = time.perf_counter() - start
    device = str(jax.devices()[0].device_kind)
    results.save(folder, dataclasses.asdict(config), arrays, rows, device=device, seconds=seconds,
               **experiment.notes)  # fmt: skip
    finished = store.load(folder)
    figures = experiment.figures
    for name, draw in (figures(*finished) if callable(figures) else figures).items():
        _files.write_figure(folder / f"{results.file_name(name)}.png", draw(*finished), dpi=150)
    tables.show(experiment.table(rows))
    print(f"{seconds:.0f} s; results in {folder}")


def forward(spec: ModuleSpec | None) -> None:
    """Run `experiments.bench.X` in place of `experiments.bench_X`, if that is run and not imported.

    Args:
      spec: `__spec__` of the module with the old name.
    """
    if spec is None or sys.modules["__main__"].__spec__ is not spec:
        return
    name = spec.name.replace("bench_", "bench.")
    print(f"{spec.name} is now {name}: python -m {name}", file=sys.stderr)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def by_part(done: dict[str, tuple[dict, Any]]) -> dict[str, Any]:
    """Return the arrays of `parts` under "<part>/<name>"."""
    return {f"{part}/{name}": value for part, (arrays, _) in done.items()
            for name, value in arrays.items()}  # fmt: skip


def parts(names, measure, mark: str, *, progress=False, keep=None, kept=None):
    """Return {name: (arrays, row)} of all parts, measuring those that no earlier run kept.

    Rows are as a reader will find them, NaN as None, whether they were kept or not.

    Args:
      names: of the parts.
      measure: name -> (arrays, row).
      mark: fingerprint of the run.
      progress: show a progress bar.
      keep: called as keep(name, mark, arrays, row) when a part is done.
      kept: kept(name, mark) -> (arrays, row) of an earlier run, or None.
    """
    from tqdm import tqdm

    from qdiffjax import compiling  # needs JAX

    done = {}
    with tqdm(list(names), disable=not progress, unit="part") as bar:
        for name in bar:
            bar.set_description(name)
            part = kept(name, mark) if kept else None
            if part is None:
                arrays, row = measure(name)
                compiling.forget_programs()
                part = arrays, results.plain(row)
                if keep:
                    keep(name, mark, *part)
            done[name] = part
    return done
