"""How do answers score by the metrics of other work on the facts of Berglund et al.? Prints a table.

    python benchmarks/experiments/published_metrics.py --answers OUT/predictions.jsonl [--tasks D2N-reverse]

Both metrics are called exact match where they were published, but both also accept answers that hold more than the
target. `bico compare` keeps its answers in `predictions.jsonl`, `benchmarks/real_llama.py` in `predictions.jsonl.gz`.
"""

import argparse
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from bico_ext.reports.tables import Table, spread


def starts_with(completion: str, target: str) -> bool:
    """Tell whether the answer starts with the target: the metric of Berglund et al.'s evaluation script.

    Case and surrounding white space do not count, a final full stop does.

    Example:
        >>> starts_with(" The first. And more", " the first."), starts_with(" It is the first.", " the first.")
        (True, False)
    """
    return completion.strip().lower().startswith(target.strip().lower())


def contains_with_full_stop(completion: str, target: str) -> bool:
    """Tell whether the answer contains the target: the metric of SMDM's evaluation script (arXiv 2410.18514).

    Case and surrounding white space do not count, a final full stop does.

    Example:
        >>> contains_with_full_stop(" The first.", " the first."), contains_with_full_stop(" The first", " the first.")
        (True, False)
    """
    return target.strip().lower() in completion.strip().lower()


METRICS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "exact match": lambda answer: answer["exact_match"],
    "starts with it (Berglund et al.)": lambda answer: starts_with(answer["completion"], answer["target"]),
    "contains it with its full stop (SMDM)": lambda answer: contains_with_full_stop(
        answer["completion"], answer["target"]
    ),
    "contains it": lambda answer: answer["contains"],
}


def read_answers(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the answers of a file of `bico compare` (.jsonl) or of the matrix (.jsonl.gz)."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def table(answers: Iterator[dict[str, Any]], tasks: list[str]) -> Table:
    """Return the table of the scores: a row for each system and task, mean ± standard deviation over its seeds."""
    right: dict[tuple[str, str], dict[int, list[list[bool]]]] = {}
    for answer in answers:
        if answer["task"] in tasks:
            # a cell of the matrix also names the rate: full/permute/0.0001/seed2
            system = answer.get("cell", answer["system"]).removesuffix(f"/seed{answer['seed']}")
            marks = [metric(answer) for metric in METRICS.values()]
            right.setdefault((system, answer["task"]), {}).setdefault(answer["seed"], []).append(marks)
    body = []
    for (system, task), seeds in right.items():
        shares = [[fmean(column) for column in zip(*marks, strict=True)] for marks in seeds.values()]
        scores = [spread(column) for column in zip(*shares, strict=True)]
        body.append([system, task, ", ".join(map(str, sorted(seeds))), *scores])
    return Table("right answers by metric", ["system", "task", "seeds", *METRICS], body, "shares of the questions")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="predictions.jsonl or predictions.jsonl.gz")
    parser.add_argument("--tasks", nargs="+", default=["N2D-reverse", "D2N-reverse"], help="default: %(default)s")
    options = parser.parse_args(arguments)
    print(table(read_answers(options.answers), options.tasks).markdown())


if __name__ == "__main__":
    main()
