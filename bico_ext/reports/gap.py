"""The gap between each reverse task and its forward counterpart, as scores and as shares of their ceilings."""

from dataclasses import dataclass

from bico_ext.reports.lookups import by_label, ceiling, counterpart, task_names
from bico_ext.reports.records import Results


@dataclass(frozen=True)
class Gap:
    """A reverse task and its forward counterpart, for one system. Scores are `contains`, one value per run.

    Attributes:
        label: the name of the system in a report.
        task: the reverse task.
        counterpart: the forward counterpart, which asks the same kind of question.
        forward: the scores of the counterpart.
        reverse: the scores of the reverse task, from the same runs.
        forward_ceiling: the share of the counterpart's targets that the training texts contain; None if unknown.
        reverse_ceiling: the same share for the reverse task.
    """

    label: str
    task: str
    counterpart: str
    forward: tuple[float, ...]
    reverse: tuple[float, ...]
    forward_ceiling: float | None
    reverse_ceiling: float | None

    @property
    def gap(self) -> tuple[float, ...]:
        """The forward score minus the reverse score of each run."""
        return _differences(self.forward, self.reverse)

    @property
    def forward_share(self) -> tuple[float, ...] | None:
        """The forward scores as shares of their ceiling; None if it is unknown or 0."""
        return _shares(self.forward, self.forward_ceiling)

    @property
    def reverse_share(self) -> tuple[float, ...] | None:
        """The reverse scores as shares of their ceiling; None if it is unknown or 0."""
        return _shares(self.reverse, self.reverse_ceiling)

    @property
    def share_gap(self) -> tuple[float, ...] | None:
        """The forward share minus the reverse share of each run; None if one of them is None."""
        if self.forward_share is None or self.reverse_share is None:
            return None
        return _differences(self.forward_share, self.reverse_share)


def gaps(results: Results) -> list[Gap]:
    """Return the gaps of all reverse tasks, task after task, and system after system within a task.

    Args:
        results: the results of a comparison or of an evaluated model.

    Returns:
        One gap for each reverse task and system. It is empty for data without reverse tasks.

    Example:
        >>> from bico_ext.reports.records import Data, Run, Scores, TaskData
        >>> tasks = {"D2N": Scores(9, 1.0, 1.0, 1.0, 1.0), "N2D-reverse": Scores(9, 0.5, 0.5, 0.5, 0.5)}
        >>> asked = {"D2N": TaskData("name", 9, 1.0), "N2D-reverse": TaskData("name", 9, 0.625, "D2N")}
        >>> (row,) = gaps(Results((Run("bico", tasks, seed=0),), data=Data("facts", asked)))
        >>> row.gap, row.share_gap
        ((0.5,), (0.19999999999999996,))
    """
    rows = []
    for task in task_names(results.runs):
        for name, members in by_label(results.runs).items():
            runs = [run for run in members if counterpart(results, run, task)]
            if not runs:
                continue
            forward = counterpart(results, runs[0], task)
            assert forward is not None
            rows.append(
                Gap(
                    name,
                    task,
                    forward,
                    tuple(run.tasks[forward].contains for run in runs),
                    tuple(run.tasks[task].contains for run in runs),
                    ceiling(results, runs[0], forward),
                    ceiling(results, runs[0], task),
                )
            )
    return rows


def _differences(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a - b for a, b in zip(first, second, strict=True))


def _shares(values: tuple[float, ...], of: float | None) -> tuple[float, ...] | None:
    return tuple(value / of for value in values) if of else None
