"""`bico report`: one report on the results of one or more folders."""

import argparse

from bico_ext.cli.output import print_report
from bico_ext.reports.report import merged_report


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "bico report", description="One report on the results of one or more folders, which are only read."
    )
    parser.add_argument("folders", nargs="+", metavar="OUT", help="A folder of bico compare or bico evaluate.")
    parser.add_argument("--output-dir", "--output_dir", required=True, help="For the report; new, or of a report.")
    options = parser.parse_args(arguments)
    print_report(merged_report(options.folders, options.output_dir), options.output_dir)
