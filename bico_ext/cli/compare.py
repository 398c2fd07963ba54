"""`bico compare`: every system under every seed, and the report on them."""

from bico_ext.cli.arguments import parse
from bico_ext.cli.output import name_files
from bico_ext.comparison.compare import compare
from bico_ext.comparison.config import CompareConfig
from bico_ext.reports.report import FILES, write_report


def run(arguments: list[str]) -> None:
    (config,) = parse("compare", [CompareConfig], arguments)
    results = compare(config)
    failures = [f"{one['objective']} with seed {one['seed']}: {one['error']}" for one in results["failures"]]
    if not results["runs"]:
        raise RuntimeError(f"no run was finished; {'; '.join(failures)}")
    print(write_report(results, config.output_dir))
    name_files(config.output_dir, ("results.json", "predictions.jsonl", *FILES))
    if failures:
        raise RuntimeError(f"{len(failures)} runs failed ({'; '.join(failures)}); --resume runs them again")
