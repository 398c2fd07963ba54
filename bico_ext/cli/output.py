"""The output folder of a command, and the summary that it prints at the end."""

from pathlib import Path

from bico_ext.files import make_folder
from bico_ext.reports.tables import Table


def empty_folder(path: str) -> Path:
    """Create the output folder before the work starts.

    Raises:
        FileExistsError: the folder holds files.
        OSError: the folder cannot be made or is not writable.
    """
    folder = make_folder(path)
    if any(folder.iterdir()):
        raise FileExistsError(f"output_dir {folder} already holds files; name another folder")
    return folder


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
