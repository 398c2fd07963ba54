"""Draws docs/triangles.png: the relative rotary distance of each key under plain bidirectional and under split-triangle
attention.

python docs/draw_triangles.py [OUTPUT]
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

LENGTH = 8
BLUE, ORANGE, GREEN, INK = "#4c86c6", "#e2703a", "#3f9e72", "#14202b"
MINUS = "\N{MINUS SIGN}"
HATCH = "//"  # marks the distances that causal pre-training never shows
DOTS_PER_INCH = 160


def plain_distance(m: int, n: int) -> int:
    """The distance of key n from query m when both are rotated by R(m) and R(n)."""
    return n - m


def split_distance(m: int, n: int) -> int:
    """The same for split-triangle attention, which rotates by R(-m) and R(-n) where n > m."""
    return n - m if n <= m else m - n


def draw(output: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 6.2), facecolor="white")
    draw_panel(left, "Plain bidirectional attention", f"relative distance: n {MINUS} m", plain_distance, ORANGE, HATCH)
    draw_legend(
        left,
        Patch(facecolor=BLUE, label="earlier keys: as in causal pre-training"),
        Patch(facecolor=ORANGE, hatch=HATCH, edgecolor="white", label="later keys: positive, never seen"),
    )
    draw_panel(right, "Split-triangle attention", f"relative distance: {MINUS}|m {MINUS} n|", split_distance, GREEN)
    draw_legend(
        right,
        Patch(facecolor=BLUE, label="n ≤ m: plus frame, R(m) q and R(n) k"),
        Patch(facecolor=GREEN, label=f"n > m: minus frame, R({MINUS}m) q and R({MINUS}n) k"),
    )
    figure.subplots_adjust(left=0.05, right=0.985, top=0.82, bottom=0.125, wspace=0.12)
    figure.savefig(output, dpi=DOTS_PER_INCH)
    plt.close(figure)


def draw_panel(
    axes: Axes, title: str, formula: str, distance: Callable[[int, int], int], later: str, hatch: str | None = None
) -> None:
    """One matrix: a row for each query, a column for each key, darker where they are further apart."""
    for m in range(LENGTH):
        for n in range(LENGTH):
            d = distance(m, n)
            colour, marks = (later, hatch) if n > m else (BLUE, None)
            strength = 0.2 + 0.7 * abs(d) / LENGTH
            axes.add_patch(Rectangle((n, m), 1, 1, facecolor=colour, alpha=strength))
            axes.add_patch(Rectangle((n, m), 1, 1, fill=False, hatch=marks, edgecolor="white", alpha=0.55))
            axes.add_patch(Rectangle((n, m), 1, 1, fill=False, edgecolor="white", linewidth=1.5))
            number = f"{d:+d}" if d else "0"
            axes.text(n + 0.5, m + 0.52, number.replace("-", MINUS), ha="center", va="center", fontsize=14, color=INK)
    # The line between the keys up to each query and the later ones.
    steps = [(i, m) for m in range(LENGTH) for i in (m, m + 1)][1:]
    axes.plot(*zip(*steps, strict=True), color=INK, linewidth=2.2, solid_joinstyle="miter")
    axes.set(xlim=(0, LENGTH), ylim=(LENGTH, 0), aspect="equal")
    places = [i + 0.5 for i in range(LENGTH)]
    axes.set_xticks(places, range(LENGTH), fontsize=12)
    axes.set_yticks(places, range(LENGTH), fontsize=12)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("key n", fontsize=13, labelpad=5)
    axes.set_ylabel("query m", fontsize=13)
    axes.text(0.5, 1.195, title, transform=axes.transAxes, ha="center", fontsize=15, weight="bold", color=INK)
    axes.text(0.5, 1.135, formula, transform=axes.transAxes, ha="center", fontsize=13, color=INK)


def draw_legend(axes: Axes, *entries: Patch) -> None:
    axes.legend(
        handles=entries,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.005),
        frameon=False,
        fontsize=13,
        handlelength=1.4,
        handleheight=1.1,
    )


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("triangles.png"))
