"""Changes one operator or number of a module at a time, and counts how many such mutants the module's tests notice.

modules.yaml names the modules and their tests, equivalent.yaml the survivors that no test can notice. cosmic-ray finds
the mutants. Instead of its workers, which start Python anew, each mutant runs in a fork of this process, which has
imported torch and the tests' other packages. Only the copy of the tree in --output-dir is mutated.

python python_tests/mutation/mutate.py                 # runs what has no result yet, then prints the table
python python_tests/mutation/mutate.py --table         # prints the Markdown table of the results that there are

An interrupted run goes on where it was. Survivors run again when their tests have changed, and all mutants of a module
when the module has. Tests that start a process of their own see the unchanged package there.
"""

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# Comparisons of small numbers and short strings by identity, which CPython answers as those by value.
SAME = ("Eq_Is", "Is_Eq", "NotEq_IsNot", "IsNot_NotEq")
PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
PAUSE = 0.02
# For mutants that wait; those that compute have a limit of processor time, which load does not move. Pauses are counted
# instead of seconds, so that a run that is stopped and goes on later takes no mutant for one that waits.
MOST_PAUSES = 45_000
MOST_MEMORY = 8 << 30  # for endless loops around an append


@dataclass(frozen=True)
class Mutant:
    """One change of a module."""

    module: str
    digest: str  # of the module's source
    operator: str
    occurrence: int
    line: int
    before: str  # the changed lines
    after: str


class Behaviour(ast.NodeTransformer):
    """Drops what only type checkers read: annotations and their imports. Also which arguments go by position."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        self.generic_visit(node)
        every = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        defaults = [*node.defaults, *(default for default in node.kw_defaults if default)]
        return ast.arguments([], every, node.vararg, [], [], node.kwarg, defaults)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        names = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
        return None if "TYPE_CHECKING" in names else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node


def behaviour(source: str) -> str:
    """What a source does, as text: the same for two sources that differ in annotations alone.

    >>> behaviour("def f(x: int | None) -> int: return 1") == behaviour("def f(x: int + None): return 1")
    True
    >>> behaviour("def f(x, *, y=2): return x") == behaviour("def f(x, *, y=3): return x")
    False
    """
    return ast.dump(Behaviour().visit(ast.parse(source)))


def mutants(entry: dict[str, Any], output: Path) -> list[Mutant]:
    """All mutants of a module, which are written down, as it takes half a minute to find them."""
    path = output / "mutants" / entry["module"].replace("/", "-").replace(".py", ".json")
    digest = digest_of([entry["module"]])
    found = [Mutant(**record) for record in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
    if not found or found[0].digest != digest:
        found = list(found_mutants(entry["module"], digest, entry.get("only")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(mutant) for mutant in found]), encoding="utf-8")
    return found


def found_mutants(module: str, digest: str, only: list[str] | None) -> Iterator[Mutant]:
    """The mutants of a module, or of some of its functions, that compile and may behave differently."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.ast.ast_query import ASTQuery
    from cosmic_ray.mutating import mutate_code

    source = (ROOT / module).read_text(encoding="utf-8")
    unchanged = behaviour(source)
    for name in sorted(cosmic_ray.plugins.operator_names()):
        operator_class = cosmic_ray.plugins.get_operator(name)
        if operator_class.arguments() or name.endswith(SAME):
            continue
        operator = operator_class()
        found = [(node, start) for node in ast_nodes(get_ast(source)) for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, start) in enumerate(found):
            if only and ASTQuery(node).get_definition_name() not in only:
                continue
            mutated = mutate_code(source, operator, occurrence)
            try:
                if behaviour(mutated) == unchanged:
                    continue
            except SyntaxError:
                continue
            changed = [line for line in difflib.ndiff(source.splitlines(), mutated.splitlines()) if line[0] in "-+"]
            before, after = (
                "\n".join(line[2:].strip() for line in changed if line[0] == sign and line[2:].strip()) for sign in "-+"
            )
            yield Mutant(module, digest, name.removeprefix("core/"), occurrence, start[0], before, after)


def compiled_parts() -> list[Path]:
    """The libraries of the installed package, if any; from now on, Python finds the package through sys.path only."""
    found = importlib.util.find_spec("bico_ext._C")
    # An editable installation finds the package before sys.path does, and find_spec has imported it.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    del sys.modules["bico_ext"]
    return list(Path(found.origin).parent.glob("_*.so")) if found and found.origin else []


def copied(tree: Path, compiled: list[Path]) -> None:
    """Make `tree` a copy of the sources as they are now, with the compiled parts beside them."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    shutil.rmtree(tree, ignore_errors=True)
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for library in compiled:
        shutil.copy2(library, tree / "bico_ext")
    importlib.invalidate_caches()  # Python may have found no such folder in sys.path yet


def forked(tree: Path, tests: list[str], log: Path, cpu_seconds: int) -> tuple[int, float, list[str]]:
    """pytest's exit status in a fork (negative: the signal), its seconds of processor time, and what it imported."""
    names = log.with_suffix(".modules")
    names.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 3  # pytest's internal error
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(tree)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
            resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
            import pytest

            result = int(pytest.main([*PYTEST, *tests]))
            where = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
            if str(tree) not in where["bico_ext"]:
                raise RuntimeError(f"the tests imported {where['bico_ext']} instead of the copy in {tree}")
            names.write_text("\n".join(name for name, path in where.items() if "-packages" in path))
            status = result
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    try:
        for pauses in itertools.count():
            done, status, used = os.wait4(child, os.WNOHANG)
            if done:
                break
            if pauses == MOST_PAUSES:
                os.killpg(child, signal.SIGKILL)
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        os.killpg(child, signal.SIGKILL)
        raise
    imported = names.read_text().split("\n") if names.exists() else []
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, imported


def baseline(tree: Path, tests: list[str], log: Path) -> int:
    """The limit of processor seconds for the mutants of a module, whose tests must pass without a change.

    What the tests import from other packages is imported here, so that the forks need not.
    """
    imported: list[str] = []
    for _ in range(2):  # again after the imports, which must change nothing but the time
        for name in imported:
            # Some modules only another one can import: the tests will have it do so.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        status, seconds, imported = forked(tree, tests, log, 3600)
        if status:
            raise SystemExit(f"{' '.join(tests)} must pass on unchanged code, but pytest exited with {status}: {log}")
    return int(10 + 5 * seconds)


def digest_of(names: list[str]) -> str:
    """A digest of files, and of those in folders."""
    paths = [ROOT / name for name in names]
    files = [file for path in paths for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def run(entry: dict[str, Any], drawn: list[Mutant], results: dict[Mutant, dict[str, str]], output: Path) -> None:
    """Test the mutants of a module that have no result yet, and write down each as it comes."""
    tests = digest_of(entry["tests"])
    waiting = [
        mutant
        for mutant in drawn
        if mutant not in results or (results[mutant]["outcome"] == "survived" and results[mutant]["tests"] != tests)
    ]
    if not waiting:
        return
    tree, log = output / "tree", output / "pytest.log"
    limit = baseline(tree, entry["tests"], log)
    mutated = tree / entry["module"]
    source, stat = mutated.read_text(encoding="utf-8"), mutated.stat()
    began = time.monotonic()
    sys.dont_write_bytecode = True  # a mutant's would be taken for the next one's, which is as long and as old
    for number, mutant in enumerate(waiting, 1):
        mutated.write_text(mutated_source(source, mutant), encoding="utf-8")
        status, _, _ = forked(tree, entry["tests"], log, limit)
        if status in (3, 4, 5):  # an internal error, wrong usage, no test
            raise SystemExit(f"pytest exited with {status}: {log}")
        outcome = "survived" if not status else "killed" if status > 0 else "stopped"
        results[mutant] = {"outcome": outcome, "tests": tests}
        with (output / "results.jsonl").open("a", encoding="utf-8") as file:
            print(json.dumps({**asdict(mutant), **results[mutant]}), file=file)
        rate = (time.monotonic() - began) / number
        print(f"{mutant.module} {number}/{len(waiting)} {outcome} ({rate:.1f} s each): {mutant.after}", flush=True)
    mutated.write_text(source, encoding="utf-8")
    os.utime(mutated, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    sys.dont_write_bytecode = False


def mutated_source(source: str, mutant: Mutant) -> str:
    """The source of a module with one change."""
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    operator = cosmic_ray.plugins.get_operator(f"core/{mutant.operator}")()
    return mutate_code(source, operator, mutant.occurrence)


def read_results(path: Path) -> dict[Mutant, dict[str, str]]:
    """The last result of each mutant."""
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        record = json.loads(line)
        outcome = {name: record.pop(name) for name in ("outcome", "tests")}
        results[Mutant(**record)] = outcome
    return results


def report(
    drawn: dict[str, tuple[int, list[Mutant]]],
    results: dict[Mutant, dict[str, str]],
    explained: dict[str, list[dict[str, str]]],
) -> tuple[str, float, list[Mutant]]:
    """The Markdown table, the share of mutants that were killed, and the survivors that nobody has explained."""
    lines = ["| module | mutants | tested | killed | equivalent | not killed |", "|---|---|---|---|---|---|"]
    counts, unexplained = [], []
    for module, (every, chosen) in drawn.items():
        tested = [mutant for mutant in chosen if mutant in results]
        survivors = [mutant for mutant in tested if results[mutant]["outcome"] == "survived"]
        known = {(entry["before"], entry["after"]) for entry in explained.get(module, [])}
        missed = [mutant for mutant in survivors if (mutant.before, mutant.after) not in known]
        killed, equivalent = len(tested) - len(survivors), len(survivors) - len(missed)
        counts.append((every, len(tested), killed, equivalent, len(missed)))
        unexplained += missed
        lines.append(f"| `{module}` | " + " | ".join(map(str, counts[-1])) + " |")
    sums = [sum(column) for column in zip(*counts, strict=True)]
    lines.append("| all | " + " | ".join(map(str, sums)) + " |")
    return "\n".join(lines), sums[2] / max(sums[1], 1), unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--only", nargs="+", default=[], metavar="MODULE", help="names of modules that contain this")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    output = options.output_dir.resolve()
    output.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((HERE / "modules.yaml").read_text(encoding="utf-8"))
    explained = yaml.safe_load((HERE / "equivalent.yaml").read_text(encoding="utf-8")) or {}
    results = read_results(output / "results.jsonl")
    entries = [
        entry
        for entry in config["modules"]
        if not options.only or any(part in entry["module"] for part in options.only)
    ]
    tree = output / "tree"
    if not options.table:
        compiled = compiled_parts()
        sys.path.insert(0, str(tree))
    drawn = {}
    for entry in entries:
        every = mutants(entry, output)
        chosen = random.Random(config["seed"]).sample(every, min(config["most"], len(every)))
        drawn[entry["module"]] = len(every), chosen
        if not options.table:
            copied(tree, compiled)
            run(entry, chosen, results, output)
    table, killed, unexplained = report(drawn, results, explained)
    print(table)
    for mutant in unexplained:
        print(f"\n{mutant.module}:{mutant.line} survived\n- {mutant.before!r}\n+ {mutant.after!r}")
    summary = {"killed": killed, "table": table, "survivors": [asdict(mutant) for mutant in unexplained]}
    (output / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    if killed < config["least_killed"]:
        print(f"\n{killed:.1%} of the mutants were killed, fewer than {config['least_killed']:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
