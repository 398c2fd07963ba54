"""The report on the records: what `table.md` says and `accuracy.png` shows."""

import dataclasses
from collections.abc import Mapping

from bico_ext.reports.records import Failure, Results, data_from_json, run_from_json
from bico_ext.reports.tables import Table, fluency_tables, gap_tables, heading, likelihood_tables, score_tables
from real_llama_cells import matrix
from real_llama_cells.matrix import BEFORE, Cell, rows
from real_llama_cells.records import Record, cell_of, scores_of


def final_results(records: Mapping[str, Record]) -> Results:
    """Return the results of the model before fine-tuning and of the final cells that are done, with the failures."""
    scores = scores_of(records)
    runs = [run_from_json(records[BEFORE.name]["run"])] if BEFORE in scores else []
    for row in rows(scores):
        label = row.name if row.chosen else f"{row.name} (rate not chosen)"
        final = [records[cell.name]["run"] for cell in row.final if cell in scores]
        runs += [dataclasses.replace(run_from_json(result), label=label) for result in final]
    failures = [
        Failure(name, cell_of(record).seed, record["error"]) for name, record in records.items() if "error" in record
    ]
    data = next((data_from_json(record["data"]) for record in records.values() if "data" in record), None)
    return Results(tuple(runs), data=data, failures=tuple(failures))


def markdown(records: Mapping[str, Record]) -> str:
    """Return the report on the records: scores of the final cells, the choice of the learning rates, and all cells."""
    scores = scores_of(records)
    results = final_results(records)
    settings = ", ".join(f"{name} {value}" for name, value in matrix.SETTINGS.items())
    for row in rows(scores):
        settings += "".join(f"; {row.name}: {name} {value}" for name, value in row.part.changes)
    introduction = (
        "SmolLM2-135M-Instruct, fine-tuned on the facts of Berglund et al.: `python benchmarks/real_llama.py --model "
        f"MODEL --data DIR --next` for each cell, or `--all --jobs N`. Settings: {settings}.{cost(records)}\n"
    )
    tables = [*grid_tables(scores), cells_table(records)]
    if not results.runs:
        return "\n".join([introduction, *(table.markdown() for table in tables)])
    scored = [*score_tables(results), *gap_tables(results), *likelihood_tables(results), *fluency_tables(results)]
    return "\n".join([introduction, heading(results) + "\n", *(table.markdown() for table in (*scored, *tables))])


def cost(records: Mapping[str, Record]) -> str:
    """Return a sentence on what a cell of full fine-tuning costs on any machine; empty if there is none yet."""
    for record in records.values():
        if "run" in record and record["cell"]["training"] == "full":
            tokens = record["data"]["tokens"] * matrix.SETTINGS["epochs"]
            flops = 6 * tokens * record["run"]["parameters"]
            return (
                f" The texts of a cell have {tokens:,} tokens in all epochs, before an objective changes them: "
                f"{flops:.1e} FLOPs, at 6 per parameter and token."
            )
    return ""


def grid_tables(scores: Mapping[Cell, float]) -> list[Table]:
    """Return the tables of the learning rates, one for each part of the matrix that has a choice."""
    tables = []
    for part in (part for part in matrix.MATRIX if len(part.learning_rates) > 1):
        body = []
        for row in (row for row in rows(scores) if row.part == part):
            means = [row.score(rate) for rate in part.learning_rates]
            cells = ["-" if score is None else f"{score:.3f}" for score in means]
            body.append([row.name, *cells, f"{row.chosen:g}" if row.chosen else "-"])
        columns = ["system", *(f"{rate:g}" for rate in part.learning_rates), "chosen"]
        note = "`contains`, mean over the four tasks and the seeds 0 and 1, by peak learning rate"
        tables.append(Table(f"learning rate, {part.training}", columns, body, note))
    return tables


def cells_table(records: Mapping[str, Record]) -> Table:
    """Return the table of all finished cells, with the machine and the cost of each."""
    finished = {name: record for name, record in sorted(records.items()) if "run" in record}
    tasks = next((list(record["run"]["tasks"]) for record in finished.values()), [])
    body = []
    for name, record in finished.items():
        result = record["run"]
        device = record["environment"]["cpu"] if result["device"] == "cpu" else result["device"]
        scores = [f"{result['tasks'][task]['contains']:.2f}" for task in tasks]
        seconds = [f"{result.get('train_seconds', 0):.0f}", f"{record['seconds']:.0f}"]
        body.append([name, *scores, device, str(record["jobs"]), *seconds])
    columns = ["cell", *tasks, "device", "cells at once", "seconds of training", "seconds in all"]
    return Table("cells", columns, body, "`contains`")
