"""Where does the op spend its time on a CPU?

    pip install --no-build-isolation -C install.strip=false .    # keeps the names of the functions
    python benchmarks/cpu_profile.py --output-dir out/profile

Linux perf samples each case in a process of its own, on one thread, by the clock event of the CPU, so it needs no
hardware counters. The samples within the op are added up by what their functions do; what the caller and Python take is
left out. "Products, GFLOP/s" are useful operations per second of the products' time. Rows of padding and the second
frame on the diagonal are not counted, so it is low for short sequences.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cases import CASES, PASS_FLOPS, PASSES, Case, forward_flops, prepare
from measure import origin, table
from tqdm import tqdm

from bico_ext.files import write_json, write_text

LENGTHS, HEAD_DIMS = (512, 2048, 8192), (64, 128)
SHORT = "packed-bf16"  # the named case of short sequences
RATE = 4999  # samples per second: an odd number, so that they do not fall in step with periodic work
# Parts of the names of functions, in the order in which they are looked for. Functions that the compiler has inlined
# count for those that call them.
PARTS = {
    "products": ("product_block", "product_rows", "vector_product", "tile_block", "tile_product"),
    "rotating back, storing": ("store_",),
    "loading, rotating, packing": ("pack_", "rows_to_", "transpose_words", "load_", "finite_part"),
    "softmax, P and dS": ("attend", "weigh"),
}
REST = "rest"


class ProfileError(RuntimeError):
    """perf is missing or may not sample, or the op has no names; the message tells the way out."""


def profiled_cases(lengths: tuple[int, ...], head_dims: tuple[int, ...], dtype: str) -> list[Case]:
    """Return the cases: full attention of each length and head dim, and the short sequences."""
    full = [Case(f"{length}x{dim}", dtype, 1, 2, length, dim, ()) for length in lengths for dim in head_dims]
    short = next(case for case in CASES if case.name == SHORT)
    return [*full, replace(short, name="short", dtype=dtype)]


def repeat(case: dict[str, Any], pass_name: str, seconds: float) -> None:
    """Call the op on one thread, for so many seconds and at least once, and print how often. perf samples this."""
    torch.set_num_threads(1)
    call = prepare(Case(**case), "ours")
    calls = 0
    started = time.perf_counter()
    while calls == 0 or time.perf_counter() - started < seconds:
        PASSES[pass_name](call)
        call.clear()
        calls += 1
    print(calls)


def part_of(function: str) -> str:
    """Return what a function of the op does, a key of `PARTS` or `REST`."""
    return next((part for part, names in PARTS.items() if any(name in function for name in names)), REST)


def count(report: str) -> dict[str, int]:
    """Return the samples of each part of the op, from the lines of `perf report`: samples, library, function.

    Raises:
        ProfileError: there are no samples of the op, or most of its functions have no names.
    """
    samples: Counter[str] = Counter()
    unnamed = 0
    for line in report.splitlines():
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 3 or not fields[0].isdigit() or not fields[1].startswith("_ops"):
            continue
        function = fields[2].removeprefix("[.] ")
        samples[part_of(function)] += int(fields[0])
        unnamed += int(fields[0]) if function.startswith("0x") else 0
    if not samples:
        raise ProfileError(
            "perf took no samples of the op; give more --seconds, and see `bico info` for whether compiled kernels run"
        )
    if unnamed > samples.total() / 2:
        raise ProfileError(
            "the op's functions have no names; install the package with `pip install --no-build-isolation "
            "-C install.strip=false .`"
        )
    return {part: samples[part] for part in (*PARTS, REST)}


def run_perf(*arguments: str) -> str:
    """Run perf and return what it prints."""
    perf = shutil.which("perf")
    if perf is None:
        raise ProfileError("perf was not found; install Linux perf (the package linux-perf or linux-tools)")
    done = subprocess.run([perf, *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode != 0:
        raise ProfileError(
            f"perf {arguments[0]} failed; if it may not sample, set kernel.perf_event_paranoid to 2 or less. It said: "
            f"{done.stderr.strip()[:500]}"
        )
    return done.stdout


def profile(case: Case, pass_name: str, seconds: float) -> dict[str, Any]:
    """Sample one case; return the op's milliseconds in a call, the shares of its parts and the products' rate."""
    code = f"from cpu_profile import repeat; repeat({asdict(case)!r}, {pass_name!r}, {seconds})"
    with TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        sampling = ("-q", "-e", "cpu-clock", "-F", str(RATE), "-o", data)
        calls = int(run_perf("record", *sampling, sys.executable, "-c", code))
        samples = count(run_perf("report", "-i", data, "--stdio", "-F", "sample,dso,sym", "-t", "\t"))
    total = sum(samples.values())
    seconds_of_products = samples["products"] / RATE / calls
    flops = forward_flops(case, "ours") * PASS_FLOPS[pass_name]
    return {
        "case": asdict(case),
        "pass": pass_name,
        "ms": total / RATE / calls * 1e3,
        "shares": {part: number / total for part, number in samples.items()},
        "products_gflops": flops / seconds_of_products / 1e9 if seconds_of_products else 0.0,
    }


def text_of(results: list[dict[str, Any]]) -> str:
    """Return the table."""
    rows = [
        (
            result["case"]["name"],
            result["pass"],
            f"{result['ms']:.2f}",
            *(f"{share:.0%}" for share in result["shares"].values()),
            f"{result['products_gflops']:.0f}",
        )
        for result in results
    ]
    return table(("S x D", "pass", "op, ms", *PARTS, REST, "products, GFLOP/s"), rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS, metavar="S", help=f"default: {LENGTHS}")
    parser.add_argument(
        "--head-dims", nargs="*", type=int, default=HEAD_DIMS, metavar="D", help=f"default: {HEAD_DIMS}"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case and pass. Default: 5")
    parser.add_argument("--output-dir", type=Path, help="folder for profile.json and profile.md")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error(f"--seconds must be more than 0, got {options.seconds:g}")
    from bico_ext import environment  # imports transformers, which the sampled processes do not need

    machine = {**environment.describe(), "threads": 1}
    chosen = profiled_cases(tuple(options.lengths), tuple(options.head_dims), options.dtype)
    try:
        results = [
            profile(case, name, options.seconds)
            for case, name in tqdm([(case, name) for case in chosen for name in PASSES], desc="profile")
        ]
    except ProfileError as error:
        print(error, file=sys.stderr)
        return 1
    text = origin(machine) + text_of(results)
    print(text)
    if options.output_dir:
        write_json(options.output_dir / "profile.json", {"environment": machine, "profiles": results})
        write_text(options.output_dir / "profile.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
