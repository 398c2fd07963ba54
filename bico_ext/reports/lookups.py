"""Results as tables and plots ask for them: runs by label, scores by task, ceilings, forward counterparts."""

from collections.abc import Sequence

from bico_ext.facts.types import COUNTERPARTS, TASKS
from bico_ext.reports.records import Results, Run, TaskData

LOSSES = ("next-token prediction", "the objective itself")


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs grouped by what a report calls them, in the order of their first appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def seeds(runs: Sequence[Run]) -> list[int]:
    """The seeds of runs, each once, in order; a model that was only evaluated has none."""
    return sorted({run.seed for run in runs if run.seed is not None})


def task_names(runs: Sequence[Run]) -> list[str]:
    """The tasks that any of the runs has: the four name/description tasks first, in their order."""
    present = {task: None for run in runs for task in run.tasks}
    return [task for task in TASKS if task in present] + [task for task in present if task not in TASKS]


def scores(runs: Sequence[Run], task: str, metric: str = "contains") -> list[float]:
    """A metric of a task, one value for each of the runs that have it."""
    values = [getattr(run.tasks[task], metric) for run in runs if task in run.tasks]
    return [value for value in values if value is not None]


def losses(run: Run, kind: str) -> list[tuple[int, float | None]]:
    """A run's training losses of a kind of `LOSSES`, by step: means since the entry before; None where it diverged.

    Entries without a step of that kind are left out; a model that was only evaluated has none.
    """
    if kind == LOSSES[1] and run.objective in ("ntp", None):
        return []
    key = "loss_ntp" if kind == LOSSES[0] else f"loss_{run.objective}"
    return [(entry["step"], entry[key]) for entry in run.losses if key in entry]


def task_data(results: Results, run: Run, task: str) -> TaskData | None:
    """What is known of a task; None in old files. Merged runs may each have data of their own."""
    data = run.data or results.data
    return data.tasks.get(task) if data else None


def ceiling(results: Results, run: Run, task: str) -> float | None:
    """The share of a task's targets that the training text makes reachable; None where it is not known."""
    known = task_data(results, run, task)
    return known.reachable if known else None


def counterpart(results: Results, run: Run, task: str) -> str | None:
    """The forward counterpart of a reverse task; None for a forward task, or where the run lacks one of the two."""
    known = task_data(results, run, task)
    name = known.counterpart if known else COUNTERPARTS.get(task)
    return name if task in run.tasks and name in run.tasks else None
