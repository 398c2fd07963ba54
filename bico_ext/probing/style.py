"""How numbers and figures look in the report of a probe."""

from collections.abc import Mapping
from typing import Any

from bico_ext.reports import plots

COLOURS = {"causal": plots.COLOURS["ntp"], "bico": plots.COLOURS["bico"], "naive": plots.COLOURS["naive"]}
LINES = {"causal": "-", "bico": "--", "naive": ":"}  # dashed, because causal and bico coincide for earlier keys


def number(value: float | None) -> str:
    """Return a number with three decimals, or "none"."""
    return "none" if value is None else f"{value:.3f}"


def estimate_text(estimate: Mapping[str, float | None]) -> str:
    """Return a mean with its standard error, if it has one.

    Example:
        >>> estimate_text({"mean": 0.5, "se": 0.25})
        '0.500 ± 0.250'
    """
    return number(estimate["mean"]) + ("" if estimate["se"] is None else f" ± {estimate['se']:.3f}")


def figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    """Return a figure and its axes as an array [rows, columns]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure((width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    grid: Any = canvas.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return canvas, grid
