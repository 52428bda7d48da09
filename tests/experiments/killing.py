"""Kill miniature runs at random moments, and look at what they leave.

    python -m tests.experiments.killing --kills 100 --folder runs/kills

Runs of two seeds share a folder; a quarter of them begin while another is running. Each is stopped
by SIGINT or SIGKILL after a random time, unless it ends before. After every kill: each part and
result in the folder is that of an undisturbed run of its own seed, bit for bit, and what was
finished is still there. At last both seeds run to their end in that folder. Prints counts as JSON.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax  # an interrupt in the middle of its import aborts the process
import numpy as np

from experiments.harness import command
from qdiffjax import _files, results

ROOT = Path(__file__).parents[2]
SEEDS = ("0", "1")
SAMPLES = "--num-steps 2 --num-samples 2 --sites input output"
RUNS = {
    "pretended": "",
    "ledger_check": f"{SAMPLES} --num-cells 2 --ablations A8 --attributions W8A8 --num-exact 1",
    "error_bounds": f"{SAMPLES} --weight-bits 8 4 --num-fan-samples 0 --max-nodes 2",
    "propagation_laws": "--num-steps 2 3 4 --middle 4 --bits 8 6 4 --samplers dpmpp-2m "
    "--num-samples 3 --num-checked 2 --num-draws 2 --sites input output",
    "train": "--data digits --model dit --width 8 --depth 1 --steps 300 --batch 4",
}  # fmt: skip
CHECKPOINT = """
import sys
from tests import worlds
worlds.save_tiny(sys.argv[1], worlds.TINY_DIT)
"""
TIMED = ("seconds", results.ABOUT)  # what a clock says, alone or in a row


@dataclasses.dataclass(frozen=True)
class Pretended:
    """Of an experiment that computes nothing, so that most of its time goes into files."""

    seed: int = command.seed()
    checkpoint: str = command.option("", "None.")


def pretend(config, **options):
    """Return arrays of random numbers, which the seed and the part decide."""

    def measure(part):
        time.sleep(0.01)
        return {"x": np.random.default_rng((config.seed, int(part))).normal(size=9999)}, {}

    mark = results.fingerprint(config.seed)
    done = command.parts([str(i) for i in range(20)], measure, mark, **options)
    return command.by_part(done), []


def command_of(name):
    """Return the command of a run as a function of its words, with everything imported."""
    if name == "pretended":
        made = command.experiment(Pretended, pretend)
        return functools.partial(command.main, made)
    module = importlib.import_module(f"experiments.{name}")
    if not hasattr(module, "EXPERIMENT"):
        module = importlib.import_module(f"experiments.{name}.experiment")
    if name == "train":
        return module.main
    return functools.partial(command.main, module.EXPERIMENT)


def save_parameters(paths) -> int:
    """Write the leaves of a checkpoint's parameters, by their places, to an npz."""
    from qdiffjax.networks import denoisers

    leaves = jax.tree.leaves(denoisers.load(paths[0]).params)
    np.savez(paths[1], **{str(i): leaf for i, leaf in enumerate(leaves)})
    return 0


def start(main, argv, log) -> int:
    """Run in a process of its own, which has imported everything and computed nothing."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main(argv)
    except KeyboardInterrupt:  # before or after `main` listens
        code = 130
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def ended(pid, seconds) -> int | None:
    """Return the exit code of a process that ends within so many seconds, else None."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


def same(a, b) -> bool:
    """Return whether arrays are the same to the bit."""
    bits = [{key: (value.dtype, value.shape, value.tobytes()) for key, value in arrays.items()
             if not any(word in key for word in TIMED)} for arrays in (a, b)]  # fmt: skip
    return bits[0] == bits[1]


def parts_of(folder) -> dict[str, dict]:
    """Return {mark/file: arrays} of all whole parts; raises ValueError for one that is not."""
    found = {}
    for path in folder.glob("parts/*/*.npz"):
        data = path.read_bytes()
        found[str(path.relative_to(folder))] = results._arrays(path, _files.check_sealed(data), "")
    return found


class Folder:
    """A folder that runs write to, and what it must hold."""

    def __init__(self, name, base):
        self.name, self.path, self.base = name, base / name, base
        self.main, self.log = command_of(name), base / f"{name}.log"
        self.flags = RUNS[name].split()
        if name != "train":
            self.flags += ["--checkpoint", str(base / "net")]
        self.counts = dict.fromkeys(
            ("kills", "interrupts", "ended before", "refused", "mixed", "lost",
             "damaged", "hung", "wrong codes"), 0)  # fmt: skip
        self.seen: set[str] = set()
        self.whole, self.parts = {}, {}

    def run(self, seed, folder) -> int:
        return start(self.main, [*self.flags, "--seed", seed, "--output", str(folder)], self.log)

    def outcome(self, folder):
        """Return (seed, arrays) of what a reader of the folder finds, None where it is refused."""
        try:
            if self.name == "train":
                _files.check_sums(folder / "checkpoint", ("config.json", "params"), "")
                config = json.loads((folder / "checkpoint" / "config.json").read_text())
                sums = (folder / "checkpoint" / _files.SUMS).read_text().splitlines()
                return str(config["trained"]["seed"]), self.parameters(folder) if sums else {}
            config, arrays, _ = results.load(folder)
            return str(config["seed"]), arrays
        except (OSError, ValueError):
            return None

    def parameters(self, folder):
        """Return the parameters, which JAX reads, in a process of its own."""
        out = self.base / "parameters.npz"
        if ended(start(save_parameters, (folder / "checkpoint", out), self.log), 300) != 0:
            raise ValueError("refused")
        with np.load(out) as data:
            return dict(data)

    def refer(self):
        """Run each seed undisturbed."""
        for seed in SEEDS:
            folder, begin = self.base / f"{self.name}_{seed}", time.monotonic()
            code = ended(self.run(seed, folder), 1200)
            assert code == 0, (self.name, code, self.log.read_text()[-2000:])
            self.seconds = time.monotonic() - begin
            self.whole[seed] = self.outcome(folder)[1]
            self.parts |= parts_of(folder)

    def look(self):
        """Compare the folder with the undisturbed runs."""
        try:
            parts = parts_of(self.path)
        except ValueError:
            self.counts["damaged"] += 1
            return
        self.counts["mixed"] += sum(not same(parts[n], self.parts.get(n, {})) for n in parts)
        now = {*parts, *(f"state/{p.parent.name}" for p in self.path.glob("state/*/SHA256SUMS"))}
        if self.name == "train":  # the newest state counts
            newest = [
                max([int(n.split("/")[1]) for n in names] or [0]) for names in (self.seen, now)
            ]
            self.counts["lost"] += newest[1] < newest[0]
        else:
            self.counts["lost"] += len(self.seen - now)
        self.seen = now
        found = self.outcome(self.path)
        if found and not same(found[1], self.whole[found[0]]):
            self.counts["mixed"] += 1

    def kill(self, rng):
        """Start a run or two, and stop them at a random moment."""
        if rng.random() < 0.25 and self.outcome(self.path):  # finished: begin again
            shutil.rmtree(self.path)
            self.seen = set()
        if self.name == "train" and rng.random() < 0.1:
            shutil.rmtree(self.path, ignore_errors=True)
            self.seen = set()
        pids = [self.run(rng.choice(SEEDS), self.path)]
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 0.5))
            pids.append(self.run(rng.choice(SEEDS), self.path))
        time.sleep(rng.uniform(0, self.seconds))
        for pid in pids:
            how = rng.choice((signal.SIGINT, signal.SIGKILL))
            code = ended(pid, 0)
            if code is None:
                os.kill(pid, how)
                self.counts["interrupts" if how == signal.SIGINT else "kills"] += 1
                code = ended(pid, 120)
                if code is None:
                    self.counts["hung"] += 1
                    os.kill(pid, signal.SIGKILL)
                    ended(pid, 60)
                elif code not in (130, 2, 0, -signal.SIGKILL, -signal.SIGINT):
                    self.counts["wrong codes"] += 1
            elif code == 2:
                self.counts["refused"] += 1
            elif code == 0:
                self.counts["ended before"] += 1
            else:
                self.counts["wrong codes"] += 1
        self.look()

    def finish(self):
        """Run to the end, and compare; both seeds in one folder, but for a training run."""
        if self.name == "train":
            kept = self.path / "state" / "run.json"
            seeds = [str(json.loads(kept.read_text())["seed"])] if kept.exists() else ["0"]
        else:
            seeds = SEEDS
        for seed in seeds:
            code = ended(self.run(seed, self.path), 1200)
            assert code == 0, (self.name, code, self.log.read_text()[-2000:])
            self.look()
            found = self.outcome(self.path)
            assert found, self.name
            assert found[0] == seed, found[0]
        return self.counts


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all runs together")
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    base, rng = args.folder.absolute(), random.Random(args.seed)
    base.mkdir(parents=True, exist_ok=True)
    if set(args.runs) - {"pretended", "train"}:
        words = [sys.executable, "-c", CHECKPOINT, str(base / "net")]
        subprocess.run(words, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    counts = {}
    for name in args.runs:
        folder = Folder(name, base)
        folder.refer()
        share = args.kills // len(args.runs)
        while folder.counts["kills"] + folder.counts["interrupts"] < share:
            folder.kill(rng)
            print(name, json.dumps(folder.counts), file=sys.stderr, flush=True)
        counts[name] = folder.finish() | {"seconds of a run": round(folder.seconds, 1)}
        print(name, json.dumps(counts[name]), flush=True)
    return counts


if __name__ == "__main__":
    main()
