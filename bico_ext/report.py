"""Results as a person reads them: a Markdown table, a picture of the accuracies, a picture of the losses."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bico_ext.data import ANSWERS, TASKS
from bico_ext.files import whole, write_text

METRICS = {
    "contains": "target contained in the answer (names: the paper's metric; descriptions: without the final full stop)",
    "exact_match": "answer equals target",
    "bleu_char": "the paper's BLEU for descriptions: NLTK sentence_bleu on raw strings, that is on characters",
    "bleu": "BLEU on words (sacrebleu)",
}
COLOURS = {"ntp": "#888888", "bico": "#1f77b4", "infill": "#d95f02"}


def by_objective(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Runs grouped by objective, in the order of their first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["objective"], []).append(run)
    return groups


def table(results: Mapping[str, Any]) -> str:
    """The four tasks by objective in Markdown, one table a metric: mean over seeds, ± their standard deviation.

    Args:
        results: what `results.json` holds.

    Returns:
        Markdown text.
    """
    runs = results["runs"]
    groups = by_objective(runs)
    tasks = _tasks(runs)
    items = ", ".join(f"{task} {runs[0]['tasks'][task]['n']}" for task in tasks)
    seeds = sorted({run["seed"] for run in runs if "seed" in run})
    lines = [f"Test items: {items}."]
    if seeds:
        several = f"Seeds {', '.join(map(str, seeds))}; mean over seeds ± standard deviation."
        lines = [f"{several if len(seeds) > 1 else f'Seed {seeds[0]}.'} {lines[0]}"]
    for metric, meaning in METRICS.items():
        lines += [
            "",
            f"**{metric}**: {meaning}",
            "",
            f"| objective | {' | '.join(tasks)} |",
            "|---" * (len(tasks) + 1) + "|",
        ]
        for objective, members in groups.items():
            cells = [_cell([run["tasks"][task][metric] for run in members]) for task in tasks]
            lines.append(f"| {objective} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_report(results: Mapping[str, Any], folder: str | os.PathLike[str]) -> str:
    """Write `table.md`, `accuracy.png` and `loss.png` into folder; return the table."""
    text = table(results)
    folder = Path(folder)
    write_text(folder / "table.md", text)
    draw_accuracy(results, folder / "accuracy.png")
    draw_losses(results, folder / "loss.png")
    return text


def draw_accuracy(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Bars of `contains` for each task and objective: the mean over seeds, each seed a dot, 95 % Wilson if only one."""
    runs = results["runs"]
    groups, tasks = by_objective(runs), _tasks(runs)
    figure, axes = _figure(8, 3.6)
    width = 0.8 / len(groups)
    for i, (objective, members) in enumerate(groups.items()):
        places = [t + (i - (len(groups) - 1) / 2) * width for t in range(len(tasks))]
        scores = [[run["tasks"][task]["contains"] for run in members] for task in tasks]
        axes.bar(
            places, [mean(values) for values in scores], width * 0.92, label=objective, color=COLOURS.get(objective)
        )
        for place, values, task in zip(places, scores, tasks, strict=True):
            top = max(values)
            if len(values) > 1:
                axes.plot([place] * len(values), values, "k.", markersize=4)
            else:
                low, top = members[0]["tasks"][task]["contains_interval"]
                axes.plot([place, place], [low, top], "k-", linewidth=1)
            axes.text(place, top + 0.02, f"{mean(values):.2f}", ha="center", fontsize=7)
    axes.set_xticks(range(len(tasks)), [f"{task}\n{_question(task)}" for task in tasks])
    axes.set_ylim(0, 1.12)
    axes.set_ylabel("answers that contain the target")
    axes.set_title("dots: seeds; lines: 95 % Wilson interval of one seed", fontsize=7, loc="right", pad=-8)
    axes.legend(frameon=False, ncols=len(groups), loc="upper center", bbox_to_anchor=(0.5, 1.14))
    _save(figure, path)


def draw_losses(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Training losses by objective: next-token prediction solid, the objective itself dashed, a line a run."""
    figure, axes = _figure(8, 3.6)
    for objective, members in by_objective(results["runs"]).items():
        for number, run in enumerate(members):
            for kind, style in (("ntp", "-"), (objective, "--")):
                points = [(e["step"], e[f"loss_{kind}"]) for e in run["losses"] if e.get(f"loss_{kind}") is not None]
                if points and not (kind == objective == "ntp" and style == "--"):
                    label = f"{objective}: {kind} steps" if number == 0 else None
                    axes.plot(*zip(*points, strict=True), style, color=COLOURS.get(objective), label=label, linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats a token)")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _tasks(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    present = runs[0]["tasks"]
    return [task for task in TASKS if task in present] + [task for task in present if task not in TASKS]


def _cell(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _question(task: str) -> str:
    answer = ANSWERS.get(task)
    given = {"name": "description", "description": "name"}
    return f"{given[answer]} → {answer}" if answer else ""


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    with whole(path) as partial:
        figure.savefig(partial, format="png")
