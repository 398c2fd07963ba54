"""Do the scores differ between the two halves of the entities? Prints a table.

    python benchmarks/experiments/halves_of_entities.py --folder OUT

Settings of `permute` were chosen by the scores of every second entity (docs/experiments.md); which half that was is not
recorded, so both are shown. Entities are numbered in the order of the questions, separately for each task.
"""

import argparse
from statistics import fmean

from bico_ext.reports.records import Results, read_results
from bico_ext.reports.tables import Table, spread

TITLE, NOTE = "contains by halves of the entities", "mean ± standard deviation over the seeds"


def table(results: Results) -> Table:
    """Return the table: a row for each system and task whose questions name entities, two or more."""
    halves: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for run in results.runs:
        for task, scores in run.tasks.items():
            values = list(scores.entities.values())
            if len(values) > 1:
                even, odd = halves.setdefault((run.name, task), ([], []))
                even.append(fmean(values[::2]))
                odd.append(fmean(values[1::2]))
    body = [[system, task, spread(even), spread(odd)] for (system, task), (even, odd) in halves.items()]
    return Table(TITLE, ["system", "task", "0, 2, 4, ...", "1, 3, 5, ..."], body, NOTE)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="the folder that bico compare wrote")
    options = parser.parse_args(arguments)
    print(table(read_results(options.folder)).markdown())


if __name__ == "__main__":
    main()
