"""`bico compare`: train and evaluate every system with every seed, and report the results."""

from bico_ext.cli.arguments import parse
from bico_ext.cli.report import print_report
from bico_ext.comparison.compare import compare
from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.systems import listing
from bico_ext.reports.report import write_report


def run(arguments: list[str]) -> None:
    (config,) = parse("compare", [CompareConfig], arguments, epilog=f"systems:\n{listing()}")
    results = compare(config)
    failures = [f"{failure.system} with seed {failure.seed}: {failure.error}" for failure in results.failures]
    if not results.runs:
        raise RuntimeError(f"no run finished ({'; '.join(failures)})")
    print_report(write_report(results, config.output_dir), config.output_dir)
    if failures:
        raise RuntimeError(f"{len(failures)} runs failed ({'; '.join(failures)}); add --resume to run them again")
