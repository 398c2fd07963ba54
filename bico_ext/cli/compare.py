"""`bico compare`: every system under every seed, and the report on them."""

from bico_ext.cli.arguments import parse
from bico_ext.cli.output import print_report
from bico_ext.comparison.compare import compare
from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.systems import listing
from bico_ext.reports.report import write_report


def run(arguments: list[str]) -> None:
    (config,) = parse("compare", [CompareConfig], arguments, epilog=f"systems:\n{listing()}")
    results = compare(config)
    failures = [f"{one.system} with seed {one.seed}: {one.error}" for one in results.failures]
    if not results.runs:
        raise RuntimeError(f"no run was finished; {'; '.join(failures)}")
    print_report(write_report(results, config.output_dir), config.output_dir)
    if failures:
        raise RuntimeError(f"{len(failures)} runs failed ({'; '.join(failures)}); --resume runs them again")
