"""The command line of an experiment: flags from its Config, results into a folder, exit codes."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.harness import store

NOTHING: Mapping[str, Any] = MappingProxyType({})


def print_lines(rows: list[dict[str, Any]]) -> None:
    """Print a row a line: texts as they are, numbers after their names."""
    for row in rows:
        cells = (value if isinstance(value, str) else f"{name} {_short(value)}"
                 for name, value in row.items())  # fmt: skip
        print("  ".join(cells))


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Experiment(NamedTuple):
    """What `main` runs.

    name: of the module; doc: for --help; config: its dataclass of defaults; help: a text for
    every field; check: config -> None, raises ValueError; run: (config, progress=, keep=, kept=)
    -> (arrays, rows); write: folder -> None, figures from what was saved; print_rows: rows;
    quick: settings of a flag --quick, if there are any; notes: kept with the provenance; resumes:
    whether `run` takes keep and kept.
    """

    name: str
    doc: str
    config: Any
    help: dict[str, str]
    check: Callable[[Any], None]
    run: Callable[..., tuple[dict, list]]
    write: Callable[[Path], None] | None = None
    print_rows: Callable[[list], None] = print_lines
    quick: Mapping[str, Any] = NOTHING
    notes: Mapping[str, Any] = NOTHING
    resumes: bool = True


def parse(experiment: Experiment, argv=None) -> tuple[Any, str]:
    """Return the config and the folder of the results; argparse exits with code 2 on bad flags."""
    parser = flags(experiment.name, experiment.doc, experiment.config, experiment.help)
    resumes = "; an interrupted run resumes there" if experiment.resumes else ""
    parser.add_argument("--output", default=f"runs/{experiment.name}",
                        help=f"folder of the results{resumes} (default: %(default)s)")  # fmt: skip
    if experiment.quick:
        parser.add_argument(
            "--quick", action="store_true", help=f"small settings: {dict(experiment.quick)}"
        )
    args = vars(parser.parse_args(argv))
    if args.pop("quick", False):  # gives way to what is said
        parser.set_defaults(**experiment.quick)
        args = vars(parser.parse_args(argv))
        args.pop("quick")
    output = args.pop("output")
    return configured(experiment.config, args), output


def flags(name: str, doc: str | None, config, help: dict[str, str]) -> argparse.ArgumentParser:
    """A parser with a flag for every field of the dataclass `config`, many values for a tuple.

    An empty tuple takes texts, False is a switch. `help` explains every field; its default is
    added.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}", description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for field in dataclasses.fields(config):
        default: Any = field.default
        flag, text = "--" + field.name.replace("_", "-"), help[field.name]
        if default is False:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        options: dict[str, Any] = {"help": f"{text} (default: %(default)s)"}
        kind = type(default)
        if isinstance(default, tuple):
            kind = type(default[0]) if default else str
            options, default = options | {"nargs": "+", "metavar": "X"}, list(default)
        parser.add_argument(flag, type=kind, default=default, **options)
    return parser


def configured(config, args: dict[str, Any]):
    """Make the dataclass `config` from parsed flags, whose many values are lists."""
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()})


def by_part(found: dict[str, tuple[dict, Any]]) -> dict[str, Any]:
    """Arrays of `parts` under "<part>/<name>"."""
    return {f"{part}/{name}": value for part, (arrays, _) in found.items()
            for name, value in arrays.items()}  # fmt: skip


def main(experiment: Experiment, argv=None) -> int:
    """Run, print the table, write results and figures; exit code 2 for what cannot be run."""
    import jax

    config, output = parse(experiment, argv)
    start = time.perf_counter()
    try:
        experiment.check(config)
        folder = store.check_writable(output)
        arrays, rows = experiment.run(config, **_options(experiment, folder))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command resumes after the last part done" if experiment.resumes else ""
        print(f"interrupted{again}", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start
    device = str(jax.devices()[0].device_kind)
    store.save(folder, dataclasses.asdict(config), arrays, rows, device=device, seconds=seconds,
               **experiment.notes)  # fmt: skip
    if experiment.write:
        experiment.write(folder)
    experiment.print_rows(rows)
    print(f"{seconds:.0f} s; results in {folder}")
    return 0


def _options(experiment: Experiment, folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"progress": sys.stderr.isatty()}
    if experiment.resumes:
        options["keep"] = lambda *part: store.save_part(folder, *part)
        options["kept"] = lambda name, mark: store.load_part(folder, name, mark)
    return options


def parts(names, measure, mark: str, *, progress=False, keep=None, kept=None):
    """Return {name: (arrays, row)} of all parts, measuring those that no earlier run kept.

    Args:
      names: of the parts.
      measure: name -> (arrays, row).
      mark: fingerprint of the run.
      progress: show a progress bar.
      keep: called as keep(name, mark, arrays, row) when a part is done.
      kept: kept(name, mark) -> (arrays, row) of an earlier run, or None.
    """
    from tqdm import tqdm

    found = {}
    with tqdm(list(names), disable=not progress, unit="part") as bar:
        for name in bar:
            bar.set_description(name)
            part = kept(name, mark) if kept else None
            if part is None:
                part = measure(name)
                if keep:
                    keep(name, mark, *part)
            found[name] = part
    return found
