"""`bico report`: write one report on the results of one or more folders."""

import argparse

from bico_ext.cli.output import print_report
from bico_ext.reports.report import merged_report


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "bico report", description="Write one report on the results of one or more folders, which are only read."
    )
    parser.add_argument("folders", nargs="+", metavar="OUT", help="A folder that bico compare or bico evaluate wrote.")
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        required=True,
        help="Folder for the report. It may hold an earlier report, but no other files.",
    )
    options = parser.parse_args(arguments)
    print_report(merged_report(options.folders, options.output_dir), options.output_dir)
