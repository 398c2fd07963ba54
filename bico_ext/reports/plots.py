"""The plots of a report: accuracies, gaps, learning curves and losses. A system looks the same in all of them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from bico_ext.facts.types import ANSWERS
from bico_ext.files import atomic_write
from bico_ext.reports.gap import gaps
from bico_ext.reports.lookups import LOSSES, all_finite, by_label, ceiling, losses, perplexities, scores, task_names
from bico_ext.reports.records import Results, Run

# Okabe and Ito's colours, which colour-blind readers can tell apart, with a grey in place of their black.
COLOURS = {
    "bico": "#0072b2",
    "infill": "#d55e00",
    "permute": "#009e73",
    "naive": "#e69f00",
    "bert": "#cc79a7",
    "new-token": "#56b4e9",
    "attended-pad": "#f0e442",
    "ntp": "#777777",  # last, so that other systems get it only when all colours are in use
}
LINES = ("-", "--", ":", "-.")  # systems of the same colour have different lines
PANELS_PER_ROW = 4
PERPLEXITY = "perplexity of English"


@dataclass(frozen=True)
class Style:
    """How a system is drawn."""

    colour: str
    line: str


def styles(runs: Sequence[Run]) -> dict[str, Style]:
    """Return a style for each label: the system's own colour or the least used one, and a line not yet used with it.

    Example:
        >>> styles([Run("ntp", {}), Run("mine", {})])["mine"]
        Style(colour='#0072b2', line='-')
    """
    chosen: dict[str, Style] = {}
    taken = [COLOURS[run.system] for run in runs if run.system in COLOURS]
    for name, members in by_label(runs).items():
        used = [style.colour for style in chosen.values()]
        colour = COLOURS.get(members[0].system)
        if colour is None:
            colour = min(COLOURS.values(), key=lambda candidate: max(used.count(candidate), candidate in taken))
        chosen[name] = Style(colour, LINES[used.count(colour) % len(LINES)])
    return chosen


def draw_accuracy(results: Results, path: str | os.PathLike[str]) -> bool:
    """Draw `contains` as bars, with one panel per task.

    A bar is the mean over seeds, with one dot per seed, or with its 95 % interval (`Scores.interval`) if there is only
    one. A vertical line marks the ceiling. A last panel shows the perplexity of English, if it was measured.

    Returns:
        True, because there are always scores. The other functions return whether there was anything to draw.
    """
    runs = results.runs
    groups, look = by_label(runs), styles(runs)
    tasks = task_names(runs)
    titles = [*tasks, PERPLEXITY] if any(value is not None for value in perplexities(runs)) else tasks
    height = 0.26 * len(groups) + 0.9
    figure, panels = _panels(titles, height, share_labels=True, width=1.9, per_row=PANELS_PER_ROW + 1)
    for task in tasks:
        axes = panels[task]
        for row, (name, members) in enumerate(groups.items()):
            values = scores(members, task)
            if not values:
                continue
            axes.barh(row, mean(values), 0.72, color=look[name].colour, alpha=0.75)
            right = max(values)
            if len(values) > 1:
                axes.plot(values, [row] * len(values), "k.", markersize=3)
            else:
                (scored,) = (run.tasks[task] for run in members if task in run.tasks)
                low, right = scored.interval("contains") or (right, right)
                axes.plot([low, right], [row, row], "k-", linewidth=1)
            reachable = ceiling(results, members[0], task)
            if reachable is not None:
                axes.plot([reachable] * 2, [row - 0.5, row + 0.5], color="black", linewidth=1.2)
                right = right if abs(right - reachable) > 0.22 or right > reachable else reachable
            axes.text(right + 0.03, row, f"{mean(values):.2f}", va="center", fontsize=7)
        axes.set_title(f"{task}\n{_question(task)}".strip(), fontsize=9)
        axes.set_xlim(0, 1.22)
        axes.set_xticks([0, 0.5, 1])
        _name_rows(axes, list(groups))
    if PERPLEXITY in panels:
        _draw_perplexities(panels[PERPLEXITY], groups, look)
    figure.supxlabel(
        "tasks: answers that contain the target (dots: seeds; line: 95 % interval of one seed; vertical line: ceiling)",
        fontsize=8,
    )
    save(figure, path)
    return True


def _draw_perplexities(axes: Any, groups: Mapping[str, Sequence[Run]], look: Mapping[str, Style]) -> None:
    """Draw a dot per run and a diamond for the mean, which a system with a diverged run does not have."""
    for row, (name, members) in enumerate(groups.items()):
        measured = perplexities(members)
        finite = [value for value in measured if value is not None]
        axes.plot(finite, [row] * len(finite), "k.", markersize=3, zorder=3)
        if values := all_finite(measured):
            axes.plot([mean(values)], [row], "D", color=look[name].colour, markersize=5)
            text, beside = f"{mean(values):.0f}", (max(values), row)
            axes.annotate(text, beside, (6, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_title(f"{PERPLEXITY}\n(log scale; diamond: mean)", fontsize=9)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.35)  # room for the numbers
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    _name_rows(axes, list(groups))


def draw_gaps(results: Results, path: str | os.PathLike[str]) -> bool:
    """Draw each reverse task (hollow) and its forward counterpart (full), as shares of the ceilings if known."""
    rows = gaps(results)
    if not rows:
        return False
    groups, look = by_label(results.runs), styles(results.runs)
    as_shares = all(row.share_gap is not None for row in rows)
    tasks = list(dict.fromkeys(row.task for row in rows))
    figure, panels = _panels(tasks, row_height=0.26 * len(groups) + 0.9, share_labels=True, width=3.6)
    for row in rows:
        axes, height = panels[row.task], list(groups).index(row.label)
        forward, reverse = (row.forward_share, row.reverse_share) if as_shares else (row.forward, row.reverse)
        ends = [mean(forward or ()), mean(reverse or ())]
        colour = look[row.label].colour
        axes.plot(ends, [height, height], color=colour, linewidth=1.5)
        axes.plot(ends[:1], [height], "o", color=colour)
        axes.plot(ends[1:], [height], "o", color=colour, markerfacecolor="white")
        axes.set_title(f"{row.task} (hollow) and {row.counterpart} (full)", fontsize=9)
        axes.set_xlim(-0.04, max(1.04, *(end + 0.04 for end in ends), axes.get_xlim()[1]))
        _name_rows(axes, list(groups))
    figure.supxlabel("contains, mean over seeds" + (", as a share of the ceiling" if as_shares else ""), fontsize=8)
    save(figure, path)
    return True


def draw_curves(results: Results, path: str | os.PathLike[str]) -> bool:
    """Draw `contains` over training, with one panel per task, one thin line per run and a thick line for their mean."""
    runs = [run for run in results.runs if run.curve]
    if not runs:
        return False
    look = styles(results.runs)
    figure, panels = _panels(task_names(runs), row_height=2.6)
    for task, axes in panels.items():
        for name, members in by_label(runs).items():
            lines = [
                [(point["step"], point["tasks"][task]) for point in run.curve if task in point["tasks"]]
                for run in members
            ]
            _lines(axes, lines, look[name], name)
        axes.set_title(task, fontsize=9)
        axes.set_ylim(-0.03, 1.03)
    figure.supxlabel("optimizer step", fontsize=8)
    figure.supylabel("answers that contain the target", fontsize=8)
    _legend(figure, panels.values())
    save(figure, path)
    return True


def draw_losses(results: Results, path: str | os.PathLike[str]) -> bool:
    """Draw the training losses: next-token prediction, and the loss of the objective itself."""
    runs = [run for run in results.runs if run.losses]
    if not runs:
        return False
    look = styles(results.runs)
    figure, panels = _panels(LOSSES, row_height=2.8, width=3.6)
    for kind, axes in panels.items():
        for name, members in by_label(runs).items():
            lines = [[(step, loss) for step, loss in losses(run, kind) if loss is not None] for run in members]
            _lines(axes, lines, look[name], name)
        axes.set_title(kind, fontsize=9)
        if axes.lines:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
    figure.supxlabel("optimizer step", fontsize=8)
    figure.supylabel("training loss, nats per token", fontsize=8)
    _legend(figure, panels.values())
    save(figure, path)
    return True


def _lines(axes: Any, lines: Sequence[Sequence[tuple[int, float]]], style: Style, name: str) -> None:
    """Draw one thin line per run, and the mean of all runs that have points, at the steps that these have in common."""
    present = [dict(line) for line in lines if line]
    if not present:
        return
    if len(present) > 1:
        for points in present:
            axes.plot(list(points), list(points.values()), style.line, color=style.colour, linewidth=0.5, alpha=0.5)
    steps = [step for step in present[0] if all(step in points for points in present)]
    means = [mean(points[step] for points in present) for step in steps]
    axes.plot(steps, means, style.line, color=style.colour, linewidth=1.6, label=name)


def _question(task: str) -> str:
    """Return what a name/description task gives and asks for, such as "name → description"; "" for other tasks."""
    answer = ANSWERS.get(task)
    given = {"name": "description", "description": "name"}
    return f"{given[answer]} → {answer}" if answer else ""


def _panels(
    titles: Sequence[str],
    row_height: float,
    share_labels: bool = False,
    width: float = 2.3,
    per_row: int = PANELS_PER_ROW,
) -> tuple[Any, dict[str, Any]]:
    """Return a figure and its panels by title, at most `per_row` in a row; the panels of a row share the y axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(titles), per_row)
    rows = -(-len(titles) // columns)
    figure = Figure((columns * width + 1.4 * share_labels, rows * row_height + 0.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey="row", squeeze=False).flat
    panels = {}
    for number, axes in enumerate(grid):
        if number >= len(titles):
            axes.set_axis_off()
            continue
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", labelsize=8)
        panels[titles[number]] = axes
    return figure, panels


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """Label the rows with the systems, from top to bottom."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _legend(figure: Any, panels: Iterable[Any]) -> None:
    """Add one legend for all panels beside them, with one entry per system."""
    entries = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries, frameon=False, fontsize=8, loc="outside right center")


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_write(Path(path)) as partial:
        figure.savefig(partial, format="png")
