"""`bico report`: write one report on the results of one or more folders."""

import argparse
from pathlib import Path

from bico_ext.cli.arguments import path_or_name
from bico_ext.reports.report import merged_report
from bico_ext.reports.tables import Table


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "bico report", description="Write one report on the results of one or more folders, which are only read."
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=path_or_name,
        metavar="OUT",
        help="A folder of bico compare or bico evaluate.",
    )
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        required=True,
        type=path_or_name,
        help="Folder for the report. It may hold an earlier report, but no other files.",
    )
    options = parser.parse_args(arguments)
    print_report(merged_report(options.folders, options.output_dir), options.output_dir)


def print_report(table: Table, folder: str) -> None:
    """Print the table that fits on a screen, and list the other output in the folder."""
    contents = {
        "table.md": "every metric, templates, entities, log-probabilities, losses",
        "report.html": "the same tables, the plots and sample answers",
        "*.png": "the plots",
        "results.json": "every number",
        "predictions.jsonl": "every answer",
        "runs/": "each run's results, and its model if it is kept",
    }
    present = {name: content for name, content in contents.items() if any(Path(folder).glob(name.rstrip("/")))}
    width = max(map(len, present))
    print(table.text())
    print(f"In {folder}:", *(f"  {name:<{width}}  {content}" for name, content in present.items()), sep="\n")
