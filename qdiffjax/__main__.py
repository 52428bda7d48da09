"""The console command: a study of one network in the terminal and on disk.

qdiffjax report --model package.module:make     your own network
qdiffjax report --model fashion_dit             a checkpoint
qdiffjax sites --model package.module:make      where it multiplies
"""

import argparse
import os
import sys
from collections.abc import Sequence

SAMPLERS = {"ddim": "ddim", "ddpm": "ddpm", "dpmpp-2m": "dpmpp_2m", "heun": "edm_heun"}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    main_parser = argparse.ArgumentParser(
        prog="qdiffjax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = main_parser.add_subparsers(dest="command", required=True)
    model = argparse.ArgumentParser(add_help=False)
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
    report.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    report.add_argument(
        "--output", default="", help="folder of each recipe's arrays, summary and figures"
    )
    return main_parser


def count(text: str) -> int:
    """Return a number of at least 1; what argparse shows on an error is this function's name."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 2 for what cannot work."""
    args = parser().parse_args(arguments)
    sys.path.insert(0, os.getcwd())  # where the user's own modules are
    try:
        return {"sites": _sites, "report": _report}[args.command](args)
    except (ValueError, OSError, ImportError, TypeError) as error:
        print(f"qdiffjax: {error}", file=sys.stderr)
        return 2


def _sites(args) -> int:
    import qdiffjax as qd

    print(qd.load(args.model).sites())
    return 0


def _report(args) -> int:
    import jax

    import qdiffjax as qd
    from qdiffjax import results
    from qdiffjax.precision import parse_shorthand

    for name in args.recipes:
        parse_shorthand(name)  # before any work
    if args.output:
        results.check_writable(args.output)
    denoiser = qd.load(args.model)
    steps = getattr(qd, SAMPLERS[args.sampler])(denoiser.schedule, args.num_steps)
    calibration = qd.calibrate(denoiser, steps, jax.random.key(args.seed))
    for name in args.recipes:
        q = qd.quantize(calibration, name)
        study = qd.study(q, steps, jax.random.key(args.seed + 1), args.num_samples, name=name)
        print(qd.report(study, os.path.join(args.output, name) if args.output else None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
