"""What the deterministic CUDA backward waits for, in a model: no GPU needed.

python benchmarks/experiments/order_of_blocks.py

In the deterministic backward the blocks, one for each tile of keys, add to a tile of dQ in a fixed order. The model
gives every visit of a tile of queries one step and prints how much longer all blocks take than without an order, if the
first tile of keys adds first and if the last one does.
"""

import argparse
import heapq
from collections import defaultdict


def steps(heads: int, tiles: int, slots: int, causal: bool, key_tiles: range, ordered: bool) -> int:
    """Until the last of the blocks ends, of which `slots` run at a time. They start, and add, in this order."""
    running = [0] * slots  # when each slot is free
    added: defaultdict[tuple[int, bool, int], int] = defaultdict(int)  # head, frame, tile of queries: when, at last
    for head in range(heads):
        for key_tile in key_tiles:
            now = heapq.heappop(running)
            later = [(head, True, tile) for tile in range(key_tile, tiles)]
            earlier = [] if causal else [(head, False, tile) for tile in range(key_tile + 1)]
            for visit in later + earlier:
                now = (max(now, added[visit]) if ordered else now) + 1
                added[visit] = now
            heapq.heappush(running, now)
    return max(running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=264, help="blocks at the same time: 132 x 2 (default: H100)")
    options = parser.parse_args()
    print("S, heads, mask: time in the order of the tiles of keys, and in the reverse order, without an order being 1")
    for heads, tiles in ((64, 8), (64, 32), (64, 64), (16, 256)):
        for causal in (False, True):
            first_to_last, last_to_first = range(tiles), range(tiles - 1, -1, -1)
            free = steps(heads, tiles, options.slots, causal, first_to_last, ordered=False)
            ratios = [
                steps(heads, tiles, options.slots, causal, order, ordered=True) / free
                for order in (first_to_last, last_to_first)
            ]
            mask = "causal" if causal else "full"
            print(f"{64 * tiles}, {heads}, {mask}: {ratios[0]:.2f}, {ratios[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
