"""Prove that a refactoring changes no number: run a miniature of every experiment at two commits.

    python compare_commits.py run --checkout BEFORE --output A
    python compare_commits.py run --checkout AFTER --output B --networks A
    python compare_commits.py diff A B                           one line per experiment

    python compare_commits.py run ... --float64                  so that 1e-9 is meaningful
    python compare_commits.py jaxprs --checkout BEFORE --output A.json --networks A
    python compare_commits.py diff A.json B.json                 which compiled functions differ

Only the command line of the experiments, their files (arrays.npz, summary.json, config.json) and
the word `parts` for the folder of finished parts are relied on, so both layouts can be compared.

`run` trains four tiny networks with `experiments.train`, runs every experiment on them, and
interrupts and resumes those that can be resumed. `--networks A` takes the networks of an earlier
run for the experiments, so that one changed bit of the training does not change everything else;
the training is compared all the same.

`--float64` enables 64-bit numbers, reads the parameters of checkpoints as float64, and reads
`jnp.float32` and `np.float32` in the checkout's own files as float64, except in comparisons, while
they are imported; nothing is written there. What must stay in float32 says why in `CASES`.

`jaxprs` records every function that is compiled, as its jaxpr without names and source lines,
with constants by shape, dtype and hash; and how many programs a second width compiles.
"""

import argparse
import ast
import collections
import difflib
import functools
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FLAGS_OF_TRAINING = "--data digits --steps 40 --batch 16 --rate 3e-3 "
REAL_NUMBERS = "computes in the formats of real hardware"
COUNTS = "counts and times, and has no number that float64 makes finer"
TRAINING = "checkpoints are stored in fixed formats, and all other experiments read them"


class Case(NamedTuple):
    """A miniature of an experiment.

    flags: {unet} and the like become the folders of networks; float32: why it never runs in
    float64; needs: a module without which it is skipped; is_resumed: whether it is interrupted and
    resumed too.
    """

    module: str
    flags: str
    float32: str = ""
    needs: str = ""
    is_resumed: bool = False


# The networks come first, since the others read them.
CASES = {
    "train_unet": Case("train", FLAGS_OF_TRAINING + "--channels 8", TRAINING),
    "train_dit": Case(
        "train",
        FLAGS_OF_TRAINING + "--model dit --classes --width 8 --depth 1 --patch 4",
        TRAINING,
    ),
    "train_autoencoder": Case(
        "train",
        FLAGS_OF_TRAINING + "--model autoencoder --channels 8 --latent-channels 2",
        TRAINING,
    ),
    "train_latent": Case(
        "train",
        FLAGS_OF_TRAINING + "--model dit --width 8 --depth 1 --patch 2 --latent {autoencoder} "
        "--prediction v --schedule cosine",
        TRAINING,
    ),
    "error_bounds": Case(
        "error_bounds",
        "--checkpoint {dit} --num-steps 4 --num-samples 4 --num-bound-samples 2 "
        "--num-fan-samples 2 --weight-bits 8 4",
        is_resumed=True,
    ),
    "error_bounds_unet": Case(
        "error_bounds",
        "--checkpoint {unet} --sampler ddim-half --num-steps 3 --num-samples 4 "
        "--num-bound-samples 2 --num-fan-samples 2 --weight-bits 6 --sites input conv_* output",
    ),
    "ledger_check": Case(
        "ledger_check",
        "--checkpoint {dit} --num-steps 3 --num-samples 2 --num-cells 4 --ablations W8 W6A6 "
        "--attributions W6A6 --sites *attention* *mlp*",
    ),
    "prediction_check": Case(
        "prediction_check",
        "--checkpoints {dit} {latent} --num-steps 3 --num-samples 8 --widths W4A4 --input-steps 2",
    ),
    "propagation_laws": Case(
        "propagation_laws",
        "--checkpoint {dit} --num-steps 2 3 4 --middle 4 --bits 8 6 4 --samplers dpmpp-2m "
        "--num-samples 3 --num-checked 2 --num-draws 2 --sites *query*",
    ),
    "divergence_vs_bits": Case(
        "divergence_vs_bits",
        "--checkpoint {dit} --num-steps 3 --num-samples 32 --num-chosen 16 --num-kl-samples 4 "
        "--num-fan-samples 2 --num-resamples 4 --bits 8 3 --sites *attention*",
    ),
    "certificates": Case(
        "certificates",
        "--bits 8 --times 300 --grids 2 --num-inputs 64 --num-keys 1 --num-steps 2 "
        "--num-samples 3 --width 3 --train-steps 40 --radii 0.01",
    ),
    "clipping": Case(
        "clipping",
        "--checkpoint {dit} --num-steps 2 --num-samples 64 --widen 100 "
        "--sites input patchify* output",
    ),
    "first_order_failure": Case(
        "first_order_failure",
        "--checkpoint {unet} --num-steps 3 --num-samples 4 --widths W8 A8 W3 --sites conv_*",
        is_resumed=True,
    ),
    "group_sensitivity": Case(
        "group_sensitivity",
        "--checkpoint {unet} --num-steps 2 --num-samples 2 --bits 8 3",
        is_resumed=True,
    ),
    "hardware_cost": Case(
        "hardware_cost",
        "--networks {dit} dit_s_2 --batches 1 --measured-batch 2 --num-rounds 2",
        COUNTS,
    ),
    "likelihood": Case(
        "likelihood",
        "--checkpoints {dit} --data digits --num-images 5 --num-steps 4 --batch 3",
    ),
    "number_formats": Case(
        "number_formats",
        "--checkpoint {dit} --num-steps 2 --steps 1 --num-samples 2 --num-random 16384 "
        "--num-elements 512",
    ),
    "random_trials": Case(
        "random_trials",
        "--num-network 12 --num-data 12 --num-multistep 12 --num-gaussian 24 --chunk 12 "
        "--num-samples 3",
    ),
    "sampler_grids": Case("sampler_grids", "--checkpoints {unet} {latent} --nfe 8 --num-samples 4"),
    "spectra": Case(
        "spectra",
        "--checkpoint {dit} --num-steps 2 --num-samples 2 --num-gain-samples 3 --num-values 12 "
        "--num-shown 2 --num-nodes 4 --num-probes 2 --num-starts 2 --sites *attention*",
    ),
    "bench_convolutions": Case("bench_convolutions", "--num-rounds 1", COUNTS),
    "bench_dit_xl": Case(
        "bench_dit_xl",
        "--network dit_s_2 --batch 2 --num-steps 1 --num-rounds 1 --ways bf16 'W8A8 dynamic'",
        REAL_NUMBERS,
    ),
    "bench_fake_quant": Case(
        "bench_fake_quant",
        "--checkpoint {unet} --num-steps 2 --num-samples 2 --num-pairs 1",
        COUNTS,
    ),
    "bench_gpu_aot": Case("bench_gpu_aot", "", REAL_NUMBERS, "jax_cuda12_plugin"),
    "bench_kernels": Case("bench_kernels", "--quick", REAL_NUMBERS),
    "bench_networks": Case(
        "bench_networks", "--checkpoint {unet} --batch 2 --num-steps 2 --num-rounds 1", COUNTS
    ),
    "bench_quant": Case("bench_quant", "--size 32 --num-rounds 1", COUNTS),
    "bench_roofline": Case(
        "bench_roofline",
        "--network dit_s_2 --batch 1 --side 32 --megabytes 1 --num-rounds 1 --seconds 0.1",
        COUNTS,
    ),
    "bench_sampler": Case(
        "bench_sampler",
        "--checkpoints {dit} --batch 2 --num-steps 2 --num-rounds 1 --num-orders 2",
        REAL_NUMBERS,
    ),
    "bench_scaling": Case(
        "bench_scaling",
        "--checkpoint {dit} --num-recipes 2 --num-samples 2 --num-steps 2 --num-rounds 1 "
        "--devices 1 2 --network dit_s_2 --sides 8 --steps 2 3",
        COUNTS,
    ),
    "bench_tpu_aot": Case("bench_tpu_aot", "", REAL_NUMBERS, "libtpu"),
}
NETWORKS = [name for name in CASES if name.startswith("train_")]
# Timed columns and arrays, by the last word of their names; "" holds for every experiment.
TIMED = {
    "": r".*seconds|ms|us|us_alone|best_gflops|tflops|gbs|(cpu_)?over_(copy|float|xla|ours|bf16|"
    r"cublaslt)(_min|_max)?|\w+_in_runs|\w+_over_brute_force|.*_per_second",
    "bench_fake_quant": r"ratio(_min|_max)?",
    "bench_kernels": r"roofline_us",
    "bench_roofline": r"rate|median|low|high|here|held_peak|joules|watts|energy_source",
    "bench_scaling": r"best|median|speedup(_median)?",
    "hardware_cost": r"call(_best|_low|_high)?|products_alone|rate|bandwidth|roofline|coverage",
}
# Predicted seconds, which nobody timed.
NOT_TIMED = {"hardware_cost": r".*/seconds(/\w+)?"}
TIMED_ARRAYS = {"bench_kernels": r".*", "hardware_cost": r"measured/.*"}
# Small because two nearly equal numbers are subtracted, and already relative: compared by
# themselves, not with their own size.
RESIDUALS = {"": r".*residual|.*defects?|.*relative_error", "first_order_failure": r"measured"}
# Ratios of errors that are themselves a few units of rounding: least tolerance. Sums in another
# order (XLA's optimizations on and off) move them by 1e-7, all others by 4e-10 at most.
ROUGH = {"random_trials": r"ratio_\w+|radius of the remainder|first order \+ remainder"}
ROUGH_TOLERANCE = 1e-6
COMPILED = "/jax/core/compile/backend_compile_duration"


# Running


def environment(checkout: Path, *, float64: bool = False) -> dict[str, str]:
    """Return the variables of a run: the checkout first, one CPU, quick compilation."""
    return os.environ | {
        "PYTHONPATH": str(checkout),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(float64)),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1"),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "MPLBACKEND": "Agg",
    }


def check_imports(checkout: Path) -> None:
    """Refuse a checkout whose packages are not the ones that Python imports there."""
    code = "import experiments, qdiffjax; print(experiments.__file__); print(qdiffjax.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=checkout, env=environment(checkout),
                           capture_output=True, text=True)  # fmt: skip
    for line in found.stdout.split() or [found.stderr]:
        if not Path(line).is_relative_to(checkout):
            raise SystemExit(f"got packages from {line}, expected those of {checkout}")


def command(case: Case, flags: list[str], *, float64: bool) -> list[str]:
    """Return the command line of a case; in float64 it goes through `drive`."""
    module = f"experiments.{case.module}"
    if float64:
        return [sys.executable, str(Path(__file__).resolve()), "drive", "--float64", module, *flags]
    return [sys.executable, "-m", module, *flags]


def start(case: Case, folder: Path, networks: dict[str, str], checkout: Path, float64: bool):
    """Start a case whose results go to `folder`; its output goes to files there."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [flag.format(**networks) for flag in shlex.split(case.flags)]
    argv = command(case, [*flags, "--output", str(folder)], float64=float64)
    with open(folder / "stdout.txt", "w") as out, open(folder / "stderr.txt", "w") as err:
        return subprocess.Popen(argv, cwd=checkout, env=environment(checkout, float64=float64),
                                stdin=subprocess.DEVNULL, stdout=out, stderr=err)  # fmt: skip


def wait(process: subprocess.Popen, limit: float) -> int:
    """Return the exit code, -9 of what did not end in time."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def last_line(folder: Path) -> str:
    """Return the last line that a case wrote to its standard error."""
    lines = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def clear(folder: Path) -> None:
    """Remove what an earlier run left, which would be resumed."""
    if (folder / "stdout.txt").exists():
        shutil.rmtree(folder)


def run_case(name: str, folder: Path, networks, checkout: Path, float64: bool, limit: float):
    """Run a case, keep how it ended in run.json, and return the exit code."""
    case = CASES[name]
    begun = time.perf_counter()
    code = wait(start(case, folder, networks, checkout, float64), limit)
    seconds = time.perf_counter() - begun
    if not code and name in NETWORKS:
        save_parameters(folder, checkout)
    note = {"exit": code, "seconds": round(seconds, 1), "float64": float64, "networks": networks,
            "error": last_line(folder) if code else ""}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(note, indent=1))
    print(f"{folder.name:28s} exit {code}  {seconds:6.1f} s  {note['error']}", flush=True)
    return code


def resume_case(name: str, folder: Path, networks, checkout: Path, float64: bool, limit: float):
    """Run a case, interrupt it when its first part is on disk, and run it again."""
    clear(folder)
    process = start(CASES[name], folder, networks, checkout, float64)
    begun = time.perf_counter()
    while process.poll() is None and time.perf_counter() - begun < limit:
        if next(folder.glob("parts/**/*.npz"), None):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.01)
    code = wait(process, limit)
    kept = len(list(folder.glob("parts/**/*.npz")))
    is_whole = (folder / "arrays.npz").exists()
    print(f"{folder.name:28s} interrupted with exit {code} after {kept} part(s)"
          f"{', TOO LATE: it had ended' if is_whole else ''}", flush=True)  # fmt: skip
    run_case(name, folder, networks, checkout, float64, limit)
    note = json.loads((folder / "run.json").read_text())
    note |= {"interrupted_exit": code, "kept_parts": kept, "was_whole": is_whole}
    (folder / "run.json").write_text(json.dumps(note, indent=1))


def save_parameters(folder: Path, checkout: Path) -> None:
    """Write the parameters and the loss curve of a trained network to arrays.npz."""
    code = (
        "import sys, numpy as np, jax, orbax.checkpoint as ocp\n"
        "tree = ocp.StandardCheckpointer().restore(sys.argv[1] + '/checkpoint/params')\n"
        "found = jax.tree_util.tree_leaves_with_path(tree)\n"
        "arrays = {jax.tree_util.keystr(k): np.asarray(v, np.float32) for k, v in found}\n"
        "loss = np.load(sys.argv[1] + '/checkpoint/loss.npz')['loss']\n"
        "np.savez(sys.argv[1] + '/arrays.npz', loss=loss, **arrays)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.resolve())], check=True,
                   env=environment(checkout), stderr=subprocess.DEVNULL)  # fmt: skip


def network_folders(output: Path) -> dict[str, str]:
    """Return {unet: folder of its checkpoint} and so on, of a run in `output`."""
    return {name.removeprefix("train_"): str(output.resolve() / name / "checkpoint")
            for name in NETWORKS}  # fmt: skip


def run(args) -> int:
    """Run the cases that are asked for; return how many failed."""
    checkout, output = Path(args.checkout).resolve(), Path(args.output).resolve()
    check_imports(checkout)
    # A job in the background may have been told to ignore interrupts, and would pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    networks = network_folders(Path(args.networks or output))
    begun, num_failed = time.perf_counter(), 0
    for name in args.only or CASES:
        case = CASES[name]
        if case.needs and not importlib.util.find_spec(case.needs):
            print(f"{name:28s} skipped: {case.needs} is not installed")
            continue
        if args.float64 and case.float32 and (name not in NETWORKS or args.networks):
            print(f"{name:28s} skipped, compare it in float32: {case.float32}")
            continue
        float64 = args.float64 and not case.float32
        own = network_folders(output) if name in NETWORKS else networks
        clear(output / name)
        common = own, checkout, float64, args.limit
        num_failed += bool(run_case(name, output / name, *common))
        if case.is_resumed:
            resume_case(name, output / f"{name}_resumed", *common)
    print(f"{time.perf_counter() - begun:.0f} s in all, {num_failed} failed")
    return num_failed


# Inside the process of an experiment


class Float64(ast.NodeTransformer):
    """Reads jnp.float32 and np.float32 as float64, but not where dtypes are compared."""

    def visit_Compare(self, node: ast.Compare) -> ast.Compare:
        """Leave a comparison as it is."""
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Put float64 in the place of float32."""
        self.generic_visit(node)
        if node.attr == "float32" and ast.unparse(node.value) in ("jnp", "np", "jax.numpy"):
            node.attr = "float64"
        return node


class Float64Loader(importlib.machinery.SourceFileLoader):
    """Loads a module through `Float64`, without any cache of bytecode."""

    def get_code(self, fullname: str):
        """Compile the transformed source."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        return compile(ast.fix_missing_locations(Float64().visit(tree)), path, "exec")


def use_float64(checkout: Path) -> None:
    """Import the checkout's modules through `Float64`, and restore checkpoints as float64."""
    import jax
    import orbax.checkpoint as ocp

    def hook(path):
        place = Path(path or ".").resolve()
        if not place.is_relative_to(checkout) or "site-packages" in place.parts:
            raise ImportError
        return importlib.machinery.FileFinder(path, (Float64Loader, [".py"]))

    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()
    restore = ocp.StandardCheckpointer.restore

    def restored(self, *args, **kwargs):
        widen = lambda a: a.astype("float64") if a.dtype == np.float32 else a  # noqa: E731
        return jax.tree.map(widen, restore(self, *args, **kwargs))

    ocp.StandardCheckpointer.restore = restored


def drive(args) -> int:
    """Run a module as `python -m` does, in float64 or with its compilations recorded."""
    checkout = Path.cwd().resolve()
    sys.path[0] = str(checkout)
    if args.float64:
        use_float64(checkout)
    record = Recorder() if args.record else None
    sys.argv = [args.module, *args.flags]
    try:
        runpy.run_module(args.module, run_name="__main__", alter_sys=True)
    finally:
        if record:
            Path(args.record).write_text(json.dumps(record.found()))
    return 0


# Compiled functions


class Recorder:
    """Keeps the normal form of every jaxpr that is compiled, and counts compilations."""

    def __init__(self):
        import jax
        from jax._src.interpreters import mlir

        self.functions: dict[str, dict[str, Any]] = {}
        self.num_compiled = 0
        lower = mlir.lower_jaxpr_to_module

        def lowered(name, jaxpr, **kwargs):
            self.add(jaxpr)
            return lower(name, jaxpr, **kwargs)

        mlir.lower_jaxpr_to_module = lowered  # type: ignore[assignment]
        jax.monitoring.register_event_duration_secs_listener(self.count)

    def count(self, event: str, duration_secs: float, **kwargs) -> None:
        """Count the events that are compilations."""
        self.num_compiled += event == COMPILED

    def add(self, closed) -> None:
        """Keep a jaxpr as it is written, and with nested jits written out."""
        text, flat = NormalForm().text(closed), NormalForm(is_flat=True).text(closed)
        entry = self.functions.setdefault(
            short_hash(text.encode()),
            {"count": 0, "lines": text.count("\n"), "text": text, "flat": flat,
             "flat_hash": short_hash(flat.encode())},
        )  # fmt: skip
        entry["count"] += 1

    def found(self) -> dict[str, Any]:
        """Return what was recorded, as JSON-like values."""
        return {"num_compiled": self.num_compiled, "functions": self.functions}


def short_hash(data: bytes) -> str:
    """Return the first half of a SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:32]


class NormalForm:
    """Writes a jaxpr without names of functions, source lines or addresses.

    Variables are numbered in the order of their appearance, afresh in each nested jaxpr; nested
    ones are written once, below, and called by their hash. With `is_flat`, nested jits are written
    where they are called.
    """

    DROPPED = frozenset({"name", "jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "debug_info",
                         "name_and_src_info", "debug", "metadata", "ctx_mesh"})  # fmt: skip

    def __init__(self, *, is_flat: bool = False):
        self.is_flat = is_flat
        self.bodies: dict[str, str] = {}
        self.known: dict[int, tuple[Any, str]] = {}

    def text(self, closed) -> str:
        """Return the jaxpr and all that it calls."""
        main = self.body(closed)
        return main + "".join(f"\n{h}:\n{body}" for h, body in self.bodies.items())

    def call(self, jaxpr) -> str:
        """Return the name of a nested jaxpr, and keep its body."""
        if id(jaxpr) not in self.known:
            body = self.body(jaxpr)
            name = f"jaxpr_{short_hash(body.encode())}"
            self.bodies.setdefault(name, body)
            self.known[id(jaxpr)] = jaxpr, name  # kept alive, so that its id stays its own
        return self.known[id(jaxpr)][1]

    def body(self, jaxpr) -> str:
        """Return the lines of one jaxpr, closed or not."""
        inner, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
        names: dict[Any, str] = {}
        for var, value in zip(inner.constvars, [*consts] or [None] * len(inner.constvars),
                              strict=True):  # fmt: skip
            names[var] = "open constant" if value is None else self.value(value)
        head = " ".join(f"{self.new(v, names)}:{v.aval}" for v in inner.invars)
        lines: list[str] = []
        self.write(inner, names, lines)
        tail = " ".join(self.read(v, names) for v in inner.outvars)
        return "\n".join([f"in {head}", *lines, f"out {tail}", ""])

    def write(self, inner, names, lines) -> None:
        """Append a line for each equation."""
        for eqn in inner.eqns:
            operands = [self.read(v, names) for v in eqn.invars]
            if self.is_flat and eqn.primitive.name in ("jit", "pjit"):
                nested = eqn.params["jaxpr"]
                local = dict(zip(nested.jaxpr.invars, operands, strict=True))
                local |= {v: self.value(c) for v, c in
                          zip(nested.jaxpr.constvars, nested.consts, strict=True)}  # fmt: skip
                local[None] = names.setdefault(None, [0])  # numbers go on
                self.write(nested.jaxpr, local, lines)
                for var, out in zip(eqn.outvars, nested.jaxpr.outvars, strict=True):
                    names[var] = self.read(out, local)
                continue
            left = " ".join(f"{self.new(v, names)}:{v.aval}" for v in eqn.outvars)
            params = " ".join(f"{k}={self.value(v)}" for k, v in sorted(eqn.params.items())
                              if k not in self.DROPPED)  # fmt: skip
            lines.append(f"{left} = {eqn.primitive.name}[{params}] {' '.join(operands)}")

    def new(self, var, names) -> str:
        """Number a variable."""
        counter = names.setdefault(None, [0])
        counter[0] += 1
        names[var] = f"v{counter[0]}"
        return names[var]

    def read(self, var, names) -> str:
        """Return the name of a variable, or the value of a literal."""
        return f"{self.value(var.val)}:{var.aval}" if hasattr(var, "val") else names[var]

    def value(self, value) -> str:
        """Return a text of a parameter or constant that holds no name and no address."""
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            return self.call(value)
        if isinstance(value, (tuple, list)):
            return f"({' '.join(map(self.value, value))})"
        if isinstance(value, dict):
            return f"{{{' '.join(f'{k}:{self.value(v)}' for k, v in value.items())}}}"
        if isinstance(value, np.integer):  # an axis, say, which may be an int as well
            return str(int(value))
        if hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, type):
            return self.array(value)
        if callable(value) and not isinstance(value, type):
            return "function"
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value)).replace("\n", " ")

    def array(self, value) -> str:
        """Return dtype, shape and hash of an array; a number as it is."""
        import jax

        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        try:
            plain = np.asarray(value)
        except TypeError:  # a shape without values
            return repr(value)
        if plain.ndim == 0:
            return f"{plain.dtype}({plain.item()!r})"
        return f"{plain.dtype}{list(plain.shape)}#{short_hash(plain.tobytes())}"


def jaxprs(args) -> int:
    """Record what the main job compiles, with two widths and with one, and count the difference."""
    checkout, output = Path(args.checkout).resolve(), Path(args.output).resolve()
    check_imports(checkout)
    work = output.with_suffix(".work")
    networks = network_folders(Path(args.networks) if args.networks else work)
    if not args.networks:
        for name in NETWORKS:
            clear(work / name)
            run_case(name, work / name, networks, checkout, False, args.limit)
    two = CASES[args.case]
    found = record_case(two, work / "two", networks, checkout, args.limit)
    if args.case == "error_bounds":
        one = two._replace(flags=two.flags.replace("--weight-bits 8 4", "--weight-bits 8"))
        first = record_case(one, work / "one", networks, checkout, args.limit)
        found["num_compiled_for_one_width"] = first["num_compiled"]
        found["only_for_two_widths"] = only_in(found, first)
    output.write_text(json.dumps(found, indent=1))
    print(f"{sum(f['count'] for f in found['functions'].values())} functions lowered, "
          f"{len(found['functions'])} distinct, {found['num_compiled']} compiled, "
          f"{found.get('num_compiled_for_one_width', 'not counted')} for one width")  # fmt: skip
    return 0


def record_case(case: Case, folder: Path, networks, checkout: Path, limit: float):
    """Run a case from nothing with its compilations recorded."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [flag.format(**networks) for flag in shlex.split(case.flags)]
    fresh = folder / f"results_{time.time_ns()}"  # an old one would be resumed
    argv = [sys.executable, str(Path(__file__).resolve()), "drive", "--record",
            str(folder / "record.json"), f"experiments.{case.module}", *flags,
            "--output", str(fresh)]  # fmt: skip
    done = subprocess.run(argv, cwd=checkout, env=environment(checkout), timeout=limit,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{case.module} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads((folder / "record.json").read_text())


def only_in(found, other) -> dict[str, int]:
    """Return {hash: how many more times it was lowered} of what one record has more of."""
    a, b = (collections.Counter({h: f["count"] for h, f in r["functions"].items()})
            for r in (found, other))  # fmt: skip
    return dict(a - b)


# Comparing


def is_named(name: str, patterns: dict[str, str], module: str) -> bool:
    """Whether the last word of a name fits the patterns of this experiment."""
    last = name.rsplit("/", 1)[-1]
    return any(re.fullmatch(patterns[key], last) for key in ("", module) if key in patterns)


def is_timed(name: str, module: str, *, is_array: bool) -> bool:
    """Whether a column or array depends on the clock."""
    if is_array and re.fullmatch(TIMED_ARRAYS.get(module, r"(?!)"), name):
        return True
    if re.fullmatch(NOT_TIMED.get(module, r"(?!)"), name):
        return False
    return is_named(name, TIMED, module)


def leaves(value, name: str = ""):
    """Yield (name, leaf) of nested lists and dicts."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{name}/{key}")
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, name)
    else:
        yield name, value


def columns(rows) -> dict[str, np.ndarray]:
    """Return every column of the rows of a summary; None is NaN among numbers."""
    found: dict[str, list] = collections.defaultdict(list)
    for name, value in leaves(rows):
        found[f"column{name}"].append(value)
    return {name: column(values) for name, values in found.items()}


def column(values: list) -> np.ndarray:
    """Return an array of numbers if all are, else of texts."""
    if all(v is None or isinstance(v, (int, float)) for v in values):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    return np.array([json.dumps(v) for v in values])


def load(folder: Path) -> dict[str, np.ndarray]:
    """Read the arrays and columns of a case, with folders of networks by their names."""
    networks = json.loads((folder / "run.json").read_text())["networks"]

    def short(text: str) -> str:
        for name, path in networks.items():
            text = text.replace(path, f"{{{name}}}")
        return text.replace(str(folder.resolve()), "{output}")

    found: dict[str, np.ndarray] = {}
    if (folder / "arrays.npz").exists():
        with np.load(folder / "arrays.npz") as data:
            found = {short(name): data[name] for name in data}
    if (folder / "summary.json").exists():
        found |= columns(json.loads(short((folder / "summary.json").read_text())))
    if (folder / "config.json").exists():
        config = json.loads(short((folder / "config.json").read_text()))
        config.pop("provenance", None)
        found |= {f"config{name}": column([v]) for name, v in leaves(config)}
    return found


def difference(a: np.ndarray, b: np.ndarray, least: float = 0.0) -> float:
    """Return the largest difference relative to the largest |a|, or to `least` if that is larger.

    Infinite where shapes, kinds, texts, integers or infinities differ.
    """
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return np.inf
    if a.dtype.kind not in "fc":
        return 0.0 if np.array_equal(a, b) else np.inf
    if a.dtype != b.dtype or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    is_finite = np.isfinite(a)
    if not np.array_equal(a[~is_finite], b[~is_finite], equal_nan=True):
        return np.inf
    a, b = a[is_finite].astype(np.float64), b[is_finite].astype(np.float64)
    gap = np.max(np.abs(a - b), initial=0.0)
    size = max(np.max(np.abs(a), initial=0.0), least)
    return float(gap / size) if gap else 0.0


def is_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same to the bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def compare_folders(name: str, a: Path, b: Path, tolerance: float) -> tuple[bool, str]:
    """Return whether two results agree, and a line that says how well."""
    notes = [json.loads((folder / "run.json").read_text()) for folder in (a, b)]
    codes = [note["exit"] for note in notes]
    if any(codes):
        return codes[0] == codes[1], f"exit codes {codes[0]}, {codes[1]}: {notes[1]['error']}"
    if notes[0]["float64"] != notes[1]["float64"]:
        return False, "one in float64, one in float32"
    module, left, right = CASES[name].module, load(a), load(b)
    shared = [k for k in left if k in right]
    timed = [k for k in shared if is_timed(k, module, is_array=not k.startswith("column"))]
    kept = [k for k in shared if k not in timed]
    text = f"{len(kept)} arrays and columns, {len(timed)} timed left out"
    gaps = {k: difference(left[k], right[k], float(is_named(k, RESIDUALS, module))) for k in kept}
    least = {k: ROUGH_TOLERANCE if is_named(k, ROUGH, module) else 0.0 for k in kept}
    worst = max(gaps, key=lambda k: gaps[k], default="")
    lost, new = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
    if lost or new:
        text += "".join(f"; {what} {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}"
                        for what, keys in (("MISSING", lost), ("NEW", new)) if keys)  # fmt: skip
    if all(is_same(left[k], right[k]) for k in kept):
        return not lost, f"identical to the bit: {text}"
    over = sorted((k for k in kept if gaps[k] > max(tolerance, least[k])), key=lambda k: -gaps[k])
    size = "float64" if notes[0]["float64"] else "float32"
    much = f" ({', '.join(f'{k} {gaps[k]:.1e}' for k in over[1:6])})" if over[1:] else ""
    return not lost and not over, (
        f"{size}, max relative difference {gaps[worst]:.1e} in {worst}, "
        f"{len(over)} over {tolerance:.0e}{much}: {text}"
    )


def compare_runs(a: Path, b: Path, tolerance: float) -> int:
    """Print a line for each experiment that both runs have; return how many differ."""
    results = []
    for name in CASES:
        have = [(folder / name / "run.json").exists() for folder in (a, b)]
        if all(have):
            results.append((name, *compare_folders(name, a / name, b / name, tolerance)))
        elif any(have):
            print(f"absent {name:24s} not compared: no results in {b if have[0] else a}")
        if CASES[name].is_resumed and (b / f"{name}_resumed").exists():
            results.append((f"{name}, resumed", *compare_resumed(name, b, tolerance)))
    for name, is_good, text in results:
        print(f"{'same  ' if is_good else 'DIFFER'} {name:28s} {text}")
    num_differing = sum(not is_good for _, is_good, _ in results)
    print(f"{num_differing} of {len(results)} comparisons differ")
    return num_differing or not results


def compare_resumed(name: str, output: Path, tolerance: float) -> tuple[bool, str]:
    """Compare an interrupted and resumed run with the uninterrupted one of the same commit."""
    folder = output / f"{name}_resumed"
    if not ((folder / "run.json").exists() and (output / name / "run.json").exists()):
        return False, "not run to the end"
    note = json.loads((folder / "run.json").read_text())
    was_interrupted = note.get("interrupted_exit") == 130 and not note.get("was_whole")
    is_good, text = compare_folders(name, output / name, folder, tolerance)
    how = f"interrupted with exit {note.get('interrupted_exit')} after {note.get('kept_parts')}"
    return is_good and was_interrupted, f"{how} part(s), then {text}"


def compare_jaxprs(a: Path, b: Path, tolerance: float) -> int:
    """Print which compiled functions differ, and write their texts beside the second record."""
    left, right = (json.loads(path.read_text()) for path in (a, b))
    lost, new = only_in(left, right), only_in(right, left)
    names = ("num_compiled", "num_compiled_for_one_width")
    for path, record in ((a, left), (b, right)):
        counts = " and ".join(str(record.get(n)) for n in names)
        print(f"{path.name}: {len(record['functions'])} distinct functions; compilations: {counts} "
              "(two widths and one)")  # fmt: skip
    gone = collections.Counter(left["functions"][h]["flat_hash"] for h in lost)
    came = collections.Counter(right["functions"][h]["flat_hash"] for h in new)
    num_nested = sum((gone & came).values())
    lost = {h: n for h, n in lost.items() if left["functions"][h]["flat_hash"] in gone - came}
    new = {h: n for h, n in new.items() if right["functions"][h]["flat_hash"] in came - gone}
    print(f"{num_nested} differ in nested jits alone, which is no difference")
    bags = [[equations(left["functions"][h]["flat"]) for h in lost],
            [equations(right["functions"][h]["flat"]) for h in new]]  # fmt: skip
    print(f"{len(lost)} missing, {len(new)} new; ~ where one on the other side has the same "
          "equations on variables of another order")  # fmt: skip
    for sign, found, record, others in (("-", lost, left, bags[1]), ("+", new, right, bags[0])):
        for h, count in sorted(found.items(), key=lambda p: -record["functions"][p[0]]["lines"]):
            entry = record["functions"][h]
            like = "~" if equations(entry["flat"]) in others else " "
            print(f"{sign}{like} {h[:12]}  {count} times, {entry['lines']} lines")
    if lost or new:
        write_differences(b.with_suffix(".differences"), left, lost, right, new)
    return len(lost) + len(new)


def write_differences(folder: Path, left, lost, right, new) -> None:
    """Write each function that differs, and its difference from the most similar other one."""
    folder.mkdir(exist_ok=True)
    others = [right["functions"][h]["flat"] for h in new]
    for h in lost:
        text = left["functions"][h]["flat"]
        (folder / f"missing_{h[:12]}.txt").write_text(text)
        if others:
            near = min(others, key=functools.partial(distance, equations(text)))
            lines = difflib.unified_diff(text.splitlines(), near.splitlines(), "missing", "new",
                                         lineterm="", n=2)  # fmt: skip
            (folder / f"difference_{h[:12]}.txt").write_text("\n".join(lines))
    for h in new:
        (folder / f"new_{h[:12]}.txt").write_text(right["functions"][h]["flat"])
    print(f"texts and differences in {folder}")


def equations(text: str) -> collections.Counter:
    """Count the equations of a text, whatever variables they are about."""
    lines = re.sub(r"\bv\d+|jaxpr_[0-9a-f]+", "", text).splitlines()
    return collections.Counter(
        " ".join(sorted(line.split())) if line.startswith(("in ", "out ")) else line
        for line in lines
    )


def distance(bag: collections.Counter, text: str) -> int:
    """Count the equations that one text has and the other has not."""
    other = equations(text)
    return (bag - other).total() + (other - bag).total()


def diff(args) -> int:
    """Compare two folders of `run` or two files of `jaxprs`; exit code 1 if they differ."""
    a, b = Path(args.before), Path(args.after)
    compare = compare_jaxprs if b.is_file() else compare_runs
    return int(compare(a, b, args.tolerance) > 0)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    whole = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = whole.add_subparsers(required=True, metavar="run | diff | jaxprs")
    for name, fn in (("run", run), ("jaxprs", jaxprs)):
        mode = modes.add_parser(name, help=fn.__doc__)
        mode.set_defaults(fn=fn)
        mode.add_argument("--checkout", required=True, help="folder of the commit")
        mode.add_argument("--output", required=True, help="folder (run) or file (jaxprs) to write")
        mode.add_argument("--networks", help="output of an earlier run, whose networks are used")
        mode.add_argument("--limit", type=float, default=600.0, help="seconds of one experiment")
        if fn is run:
            mode.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME",
                              help=f"of {', '.join(CASES)}")  # fmt: skip
            mode.add_argument("--float64", action="store_true", help="compute in float64")
        else:
            mode.add_argument("--case", choices=list(CASES), metavar="NAME", default="error_bounds",
                              help="what to record (default: %(default)s)")  # fmt: skip
    mode = modes.add_parser("diff", help=diff.__doc__)
    mode.set_defaults(fn=diff)
    mode.add_argument("before")
    mode.add_argument("after")
    mode.add_argument("--tolerance", type=float, default=1e-9, help="default: %(default)s")
    mode = modes.add_parser("drive", help="used by the other modes: run one module")
    mode.set_defaults(fn=drive)
    mode.add_argument("--float64", action="store_true")
    mode.add_argument("--record")
    mode.add_argument("module")
    mode.add_argument("flags", nargs=argparse.REMAINDER)
    return whole


def main(argv=None) -> int:
    """Run the mode that is asked for."""
    args = parser().parse_args(argv)
    return args.fn(args)


if __name__ == "__main__":
    sys.exit(main())
