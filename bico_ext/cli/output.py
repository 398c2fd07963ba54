"""Where a command writes, and what it says that it wrote."""

from pathlib import Path

from bico_ext.files import make_folder
from bico_ext.reports.tables import Table


def empty_folder(path: str) -> Path:
    """The output folder, made before the work."""
    folder = make_folder(path)
    if any(folder.iterdir()):
        raise FileExistsError(f"output_dir {folder} already holds files; name another folder")
    return folder


def print_report(table: Table, folder: str) -> None:
    """Print the table that fits a screen, and say where the rest lies."""
    contents = {
        "table.md": "every metric, templates, entities, log-probabilities, losses",
        "report.html": "all of it, the pictures and samples of answers",
        "*.png": "the pictures",
        "results.json": "every number",
        "predictions.jsonl": "every answer",
        "runs/": "the trained models",
    }
    there = {name: what for name, what in contents.items() if any(Path(folder).glob(name.rstrip("/")))}
    width = max(map(len, there))
    print(table.text())
    print(f"In {folder}:", *(f"  {name:<{width}}  {what}" for name, what in there.items()), sep="\n")
