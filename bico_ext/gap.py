"""The gap between a reverse task and its forward twin, raw and as shares of what each can reach."""

from collections.abc import Callable, Mapping
from statistics import mean, stdev
from typing import Any

from bico_ext.data import TWINS


def gaps(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How far each objective's reverse scores stay behind those of their forward twins.

    The twin of a reverse task asks the same kind of question, in the same wordings, of facts that training states in
    the very order that is asked: D2N for N2D-reverse (both give a description and ask for a name), N2D for
    D2N-reverse. So the gap is twin - reverse: what the direction costs, all else being equal; a negative one says that
    the reverse questions went better.

    The two do not ask for the same facts, and training text may hold more of one's targets than of the other's. So
    each score is also given as a share of its task's ceiling: `contains` divided by "reachable", the share of targets
    that a training text holds (`bico_ext.ceiling`). A share can exceed 1: a model may also write a target that it
    never saw in one piece.

    Args:
        results: what `results.json` holds. Without "data" there are no shares, and twins are those of the four
            name/description tasks.

    Returns:
        A row for each objective and reverse task that has a twin, in the order of the runs and of their tasks:
        {"objective", "task", "twin", "n", "score", "twin_score", "gap", "share", "twin_share", "share_gap"}. "n" counts
        the runs (seeds) that asked both tasks. The six values are {"mean", "stdev"} over these runs, the gaps taken
        within each run; "stdev" (of a sample) is None for a single run. The three of shares are None where no ceiling
        is known, or one is 0.

    Example:
        >>> tasks = {"D2N": {"contains": 0.9}, "N2D-reverse": {"contains": 0.6}}
        >>> row = gaps({"runs": [{"objective": "bico", "seed": 0, "tasks": tasks}]})[0]
        >>> row["task"], row["twin"], round(row["gap"]["mean"], 2), row["share_gap"]
        ('N2D-reverse', 'D2N', 0.3, None)
    """
    data = results.get("data", {}).get("tasks", {})
    twins = {task: about["twin"] for task, about in data.items()} if data else TWINS
    ceilings = {task: about["reachable"] for task, about in data.items()}
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        for task in run["tasks"]:
            if twins.get(task) in run["tasks"]:
                runs.setdefault((run["objective"], task), []).append(run["tasks"])
    objectives = list(dict.fromkeys(objective for objective, _ in runs))
    return [
        {"objective": objective, "task": task, "twin": twins[task], **_row(members, task, twins[task], ceilings)}
        for objective, task in sorted(runs, key=lambda key: objectives.index(key[0]))
        for members in [runs[objective, task]]
    ]


def _row(runs: list[Mapping[str, Any]], task: str, twin: str, ceilings: Mapping[str, float]) -> dict[str, Any]:
    def score(run: Mapping[str, Any], name: str) -> float:
        return run[name]["contains"]

    def share(run: Mapping[str, Any], name: str) -> float:
        return run[name]["contains"] / ceilings[name]

    def three(of: Callable[[Mapping[str, Any], str], float]) -> tuple[dict[str, float | None], ...]:
        reverse, forward = [of(run, task) for run in runs], [of(run, twin) for run in runs]
        return _spread(reverse), _spread(forward), _spread([f - r for f, r in zip(forward, reverse, strict=True)])

    bounded = ceilings.get(task) and ceilings.get(twin)
    names = ("score", "twin_score", "gap", "share", "twin_share", "share_gap")
    values = (*three(score), *(three(share) if bounded else (None, None, None)))
    return {"n": len(runs), **dict(zip(names, values, strict=True))}


def _spread(values: list[float]) -> dict[str, float | None]:
    return {"mean": mean(values), "stdev": stdev(values) if len(values) > 1 else None}
