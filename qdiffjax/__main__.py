"""The console command: a study of one network in the terminal and on disk.

qdiffjax report --model package.module:make     your own network
qdiffjax report --model fashion_dit             a checkpoint
qdiffjax sites --model package.module:make      where it multiplies
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from qdiffjax._command import Parser, outcome

SAMPLERS = {"ddim": "ddim", "ddpm": "ddpm", "dpmpp-2m": "dpmpp_2m", "heun": "edm_heun"}


def parser() -> Parser:
    """Return the command line."""
    main_parser = Parser(prog="qdiffjax", description=__doc__)
    commands = main_parser.add_subparsers(dest="command", required=True)
    model = Parser(add_help=False)
    model.add_argument(
        "--model", default="fashion_unet",
        help="package.module:make, which returns a qdiffjax.Denoiser or is one; or a checkpoint "
        "(default: %(default)s)",
    )  # fmt: skip
    commands.add_parser("sites", parents=[model], help="list where a network multiplies")
    report = commands.add_parser(
        "report", parents=[model], help="measure, predict, attribute and bound its error"
    )
    report.add_argument("--recipes", nargs="+", default=["W8A8", "W4A8"], metavar="W8A8",
                        help="widths, one study for each (default: W8A8 W4A8)")  # fmt: skip
    report.add_argument(
        "--sampler", choices=sorted(SAMPLERS), default="ddim", help="(default: ddim)"
    )
    report.add_argument("--num-steps", type=count, default=20, help="(default: %(default)s)")
    report.add_argument("--num-samples", type=count, default=32, help="(default: %(default)s)")
    report.add_argument("--seed", type=seed, default=0, help="(default: %(default)s)")
    report.add_argument(
        "--output", default="", help="folder of each recipe's arrays, summary and figures"
    )
    return main_parser


def count(text: str) -> int:
    """Return a number of at least 1; what argparse shows on an error is this function's name."""
    return _between(int(text), 1, 2**31)


def seed(text: str) -> int:
    """Return a number that a key of JAX tells from all others."""
    return _between(int(text), 0, 2**32)


def _between(value: int, least: int, end: int) -> int:
    if not least <= value < end:
        raise argparse.ArgumentTypeError(f"got {value}, expected {least} to {end - 1}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 2 for what cannot work."""
    args = parser().parse_args(arguments)
    sys.path.insert(0, os.getcwd())  # where the user's own modules are
    return outcome(lambda: {"sites": _sites, "report": _report}[args.command](args))


def _sites(args) -> None:
    import qdiffjax as qd

    print(qd.load(args.model).sites())


def _report(args) -> None:
    import jax

    import qdiffjax as qd
    from qdiffjax import _files, results
    from qdiffjax._checks import require
    from qdiffjax.precision import parse_recipe

    for name in args.recipes:
        parse_recipe(name)  # before any work
    names = [name.strip().upper() for name in args.recipes]
    require(
        len(set(names)) == len(names),
        "recipes",
        got=names,
        expected="each once",
        remedy="delete the others",
    )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_files.writer(args.output)) if args.output else None
        denoiser = qd.load(args.model)
        steps = getattr(qd, SAMPLERS[args.sampler])(denoiser.schedule, args.num_steps)
        calibration = qd.calibrate(denoiser, steps, jax.random.key(args.seed))
        for name in args.recipes:
            q = qd.quantize(calibration, name)
            key = jax.random.key(args.seed + 1)
            study = qd.study(q, steps, key, args.num_samples, name=name)
            print(qd.report(study, folder and folder / results.file_name(name)))


if __name__ == "__main__":
    sys.exit(main())
