"""Plant one bug at a time, and look whether a test dies of it.

    python -m tests.mutants --num 150 --output runs/mutants.jsonl

Mutants are drawn from the rooms named by --rooms: a sign, a factor, a comparison, an index or an
off-by-one, an axis, a keyword argument that is left out, a condition turned round. Each is tried
in a copy of the checkout on the test files that name its function or module, those that name it
most often first. A line is written for each: where, what, killed or survived, and by which test.
The same command goes on after the last line.
"""

import argparse
import ast
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("analysis", "quant", "diffusion", "precision", "sites")
SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.LtE,
    ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
QUIET = ("require", "check", "Error", "remedy", "got", "expected")  # what words are about


def changes(tree: ast.AST):
    """Yield (line, what, change) of every mutant: `change` edits the node in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and type(node.op) in SWAPS and not _is_words(node):
            yield node.lineno, "operator", lambda n: setattr(n, "op", SWAPS[type(n.op)]()), node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node.lineno, "sign", lambda n: setattr(n, "op", ast.UAdd()), node
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield (
                node.lineno,
                "comparison",
                lambda n: n.ops.__setitem__(0, SWAPS[type(n.ops[0])]()),
                node,
            )
        if isinstance(node, ast.BoolOp):
            yield node.lineno, "condition", lambda n: setattr(n, "op", SWAPS[type(n.op)]()), node
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node.lineno, "number", lambda n: setattr(n, "value", n.value + 1), node
        if isinstance(node, ast.Call) and _drops(node) and not _is_quiet(node):
            yield node.lineno, "argument left out", lambda n: n.keywords.pop(), node
        if isinstance(node, ast.IfExp):
            yield node.lineno, "branches", _swap_branches, node


def _drops(node: ast.Call) -> bool:
    return bool(node.keywords) and node.keywords[-1].arg not in ("strict", None)


def _swap_branches(node: ast.IfExp) -> None:
    node.body, node.orelse = node.orelse, node.body


def _is_words(node: ast.BinOp) -> bool:
    return any(isinstance(n, ast.Constant | ast.JoinedStr) and not isinstance(
        getattr(n, "value", ""), int | float) for n in (node.left, node.right))  # fmt: skip


def _is_quiet(node: ast.Call) -> bool:
    name = ast.unparse(node.func)
    return any(word in name for word in QUIET) or name.endswith(("dataclass", "field", "partial"))


def places(path: Path) -> list[tuple[int, str]]:
    """Return (number of the change, function) of every mutant of a file, words left out."""
    source = path.read_text()
    tree, lines = ast.parse(source), source.splitlines()
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    found = []
    for number, (line, *_) in enumerate(changes(tree)):
        inside = [f.name for f in functions if f.lineno <= line <= (f.end_lineno or 0)]
        around = "\n".join(lines[max(0, line - 3) : line])
        if inside and not any(word in around for word in QUIET):
            found.append((number, inside[-1]))
    return found


def mutant(path: Path, number: int) -> tuple[int, str, str]:
    """Return (line, what is changed, source) of a mutant."""
    tree = ast.parse(path.read_text())
    line, what, change, node = list(changes(tree))[number]
    before = ast.unparse(node)
    change(node)
    source = ast.unparse(ast.fix_missing_locations(tree))
    return line, f"{what}: {before[:80]} -> {ast.unparse(node)[:80]}", source


def tests_of(module: str, function: str) -> list[str]:
    """Return test files that name the function, then the module, most often first."""
    counts = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        own = len(re.findall(rf"\b{function}\b", text))
        counts[path] = (own, len(re.findall(rf"\b{module}\b", text)), module in path.stem)
    ranked = sorted((p for p, c in counts.items() if any(c)), key=lambda p: counts[p][::-1][:1]
                    + counts[p], reverse=True)  # fmt: skip
    return [str(path.relative_to(ROOT)) for path in ranked]


def killer(copied: Path, files: list[str], seconds: int) -> str | None:
    """Return the first test that fails, "timeout", or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m",
               "not slow", *files]  # fmt: skip
    try:
        run = subprocess.run(command, cwd=copied, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "timeout"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.M)
    return failed[1] if failed else None if run.returncode in (0, 5) else f"exit {run.returncode}"


def main() -> None:
    """Draw and try mutants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS))
    parser.add_argument("--files", type=int, default=4, help="test files tried on a mutant")
    parser.add_argument("--seconds", type=int, default=300, help="after which a mutant is hung")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    files = [p for room in args.rooms for p in sorted((ROOT / "qdiffjax" / room).rglob("*.py"))
             if p.name != "__init__.py"]  # fmt: skip
    drawn = [(path, *place) for path in files for place in places(path)]
    chosen = random.Random(args.seed).sample(drawn, min(args.num, len(drawn)))
    done = args.output.read_text().splitlines() if args.output.exists() else []
    tried = {(row["file"], row["line"], row["what"]) for row in map(json.loads, done)}
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "copy"
        keep = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
        shutil.copytree(ROOT, copied, ignore=keep)
        whole = killer(copied, ["tests/test_files.py"], args.seconds)
        if whole is not None:
            raise SystemExit(f"without a mutant: {whole}; no test says anything here")
        for path, number, function in chosen:
            name = str(path.relative_to(ROOT))
            line, what, source = mutant(path, number)
            if (name, line, what) in tried:
                continue
            target = copied / name
            target.write_text(source)
            try:
                by = killer(copied, tests_of(path.stem, function)[: args.files], args.seconds)
            finally:
                target.write_text(path.read_text())
            row = {"file": name, "function": function, "line": line, "what": what, "by": by}
            with args.output.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print("survived" if by is None else "killed", name, line, what, by or "", flush=True)


if __name__ == "__main__":
    main()
