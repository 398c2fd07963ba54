"""What tables and plots look up in results: runs by label, scores by task, ceilings, forward counterparts."""

from collections.abc import Sequence

from bico_ext.facts.types import COUNTERPARTS, TASKS
from bico_ext.reports.records import Results, Run, TaskData

LOSSES = ("next-token prediction", "the objective itself")


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by their name in a report, in the order of first appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def seeds(runs: Sequence[Run]) -> list[int]:
    """Return the sorted seeds of runs, each once; a model that was only evaluated has none."""
    return sorted({run.seed for run in runs if run.seed is not None})


def task_names(runs: Sequence[Run]) -> list[str]:
    """Return the tasks of all runs: first the four name/description tasks in their usual order, then the others."""
    present = {task: None for run in runs for task in run.tasks}
    return [task for task in TASKS if task in present] + [task for task in present if task not in TASKS]


def scores(runs: Sequence[Run], task: str, metric: str = "contains") -> list[float]:
    """Return a metric of a task, one value for each run that has it."""
    values = [getattr(run.tasks[task], metric) for run in runs if task in run.tasks]
    return [value for value in values if value is not None]


def perplexities(runs: Sequence[Run]) -> list[float | None]:
    """Return the perplexities of English, one for each run that measured it; None for a diverged run."""
    return [run.fluency.perplexity for run in runs if run.fluency]


def all_finite(values: Sequence[float | None]) -> list[float] | None:
    """Return the values, or None if a run diverged: then its system has no mean."""
    finite = [value for value in values if value is not None]
    return finite if len(finite) == len(values) else None


def losses(run: Run, kind: str) -> list[tuple[int, float | None]]:
    """Return a run's training losses of one kind as pairs of step and loss.

    Each loss is the mean over the steps since the previous log entry, or None where it is not finite. Log entries
    without a step of that kind are left out. A model that was only evaluated has no losses.

    Args:
        run: the run.
        kind: one of `LOSSES`.
    """
    if kind == LOSSES[1] and run.objective in ("ntp", None):
        return []
    key = "loss_ntp" if kind == LOSSES[0] else f"loss_{run.objective}"
    return [(entry["step"], entry[key]) for entry in run.losses if key in entry]


def task_data(results: Results, run: Run, task: str) -> TaskData | None:
    """Return the description of a task, from the run's own data if merged runs differ in theirs; None in old files."""
    data = run.data or results.data
    return data.tasks.get(task) if data else None


def ceiling(results: Results, run: Run, task: str) -> float | None:
    """Return the share of a task's targets that the training texts contain; None if it is unknown."""
    known = task_data(results, run, task)
    return known.reachable if known else None


def counterpart(results: Results, run: Run, task: str) -> str | None:
    """Return the forward counterpart of a reverse task; None for a forward task, or if the run lacks one of the two."""
    known = task_data(results, run, task)
    name = known.counterpart if known else COUNTERPARTS.get(task)
    return name if task in run.tasks and name in run.tasks else None
