"""Counts the machine instructions that one tile costs a warp of the CUDA kernels on tensor cores. Needs no GPU.

python python_tests/csrc/count_tile_instructions.py --head-dims 64 128

A tile's path is the shortest one through the main loop that passes every product on tensor cores and every addition to
dQ: that of a tile of which every pair is seen, or a little less. Loops of products count as often as the products need,
other loops once.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from cuda_static_checks import CUDA, compile_kernels

SOURCE = """#include "preprocess.cuh"
#include "tensor_core/{name}.cuh"
namespace bico::cuda {{ template void launch_{name}<BFloat16, {head_dim}>(const {work}Work&, Stream); }}
"""
LINE = re.compile(r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+ )?(?P<name>[A-Z0-9]+)(?P<rest>[^;]*);")
WAYPOINTS = {"HMMA", "REDG", "RED"}


def machine_code(name: str, head_dim: int, architecture: int, sources: Path) -> str:
    """The listing of one kernel."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.cu"
        source.write_text(SOURCE.format(name=name, head_dim=head_dim, work=name.capitalize()))
        report, listing = compile_kernels(source, architecture, f"-I{sources}")
    if listing is None:
        sys.exit(report)
    return next(part for part in listing.split("Function : ") if f"{name}_kernel" in part.partition("\n")[0])


class Flow:
    """Basic blocks of a kernel: `names` of the instructions of each, and the blocks that may come `after` it."""

    def __init__(self, listing: str) -> None:
        lines = list(LINE.finditer(listing))
        if any(x["name"] == "BRX" for x in lines):
            sys.exit("the kernel jumps through a table (BRX), which this program does not follow")
        targets = [re.search(r"0x([0-9a-f]+)$", x["rest"].strip()) if x["name"] == "BRA" else None for x in lines]
        addresses = {int(x["address"], 16): i for i, x in enumerate(lines)}
        jumps = {i: addresses[int(target[1], 16)] for i, target in enumerate(targets) if target}
        ends = {i + 1 for i, x in enumerate(lines) if x["name"] in ("BRA", "EXIT")}
        starts = sorted({0, *jumps.values(), *ends} - {len(lines)})
        number = {start: block for block, start in enumerate(starts)}
        self.names: list[list[str]] = []
        self.after: list[set[int]] = []
        for block, (start, end) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True)):
            self.names.append([x["name"] for x in lines[start:end]])
            last = lines[end - 1]
            always = (
                last["name"] in ("BRA", "EXIT") and not last["guard"] and re.fullmatch(r"(\s+0x\w+)?\s*", last["rest"])
            )
            jump = {number[jumps[end - 1]]} if end - 1 in jumps else set()
            self.after.append(jump | (set() if always or end == len(lines) else {block + 1}))

    def distances(self, start: int) -> dict[int, int]:
        """Instructions from the end of `start` to the end of every block that can be reached."""
        best: dict[int, int] = {}
        todo = [(0, start)]
        while todo:
            cost, block = todo.pop()
            for following in self.after[block]:
                reached = cost + len(self.names[following])
                if reached < best.get(following, reached + 1):
                    best[following] = reached
                    todo.append((reached, following))
        return best


def tile_cost(flow: Flow, products: int) -> int:
    """Instructions of a full tile."""
    reach = [flow.distances(block) for block in range(len(flow.names))]
    in_loop = [block for block, distances in enumerate(reach) if block in distances]
    stops = [block for block in in_loop if WAYPOINTS & set(flow.names[block])]
    loops = [block for block in stops if block in flow.after[block]]
    counted = sum(flow.names[block].count("HMMA") for block in stops)
    in_loops = sum(flow.names[block].count("HMMA") for block in loops)
    if counted > products or (counted < products and not loops):
        sys.exit(f"{counted} products on the path, {in_loops} of them in loops, do not make the {products} of a tile")
    again = (products - counted) / in_loops if loops else 0
    repeated = round(again * sum(len(flow.names[block]) for block in loops))
    return repeated + sum(reach[a].get(b, 1 << 20) for a, b in zip(stops, [*stops[1:], stops[0]], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", default=(64, 128), help="default: %(default)s")
    parser.add_argument("--architecture", type=int, default=90, help="default: %(default)s")
    parser.add_argument("--sources", type=Path, default=CUDA, help="csrc/cuda of another tree")
    options = parser.parse_args()
    print("kernel, head dim: instructions of a full tile, products among them")
    for head_dim in options.head_dims:
        keys = 64 if head_dim <= 128 else 32  # of a tile of the forward
        for name, products in (
            ("forward", 2 * 32 * keys * head_dim // 2048),
            ("backward", 5 * 32 * 32 * head_dim // 2048),
        ):
            flow = Flow(machine_code(name, head_dim, options.architecture, options.sources))
            print(f"{name} {head_dim}: {tile_cost(flow, products)}, {products}", flush=True)


if __name__ == "__main__":
    main()
