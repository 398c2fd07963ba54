"""Results as a person reads them: tables in Markdown, pictures, and one HTML page with all of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from bico_ext.files import make_folder, write_text
from bico_ext.reports import plots
from bico_ext.reports.html import page
from bico_ext.reports.merge import merge
from bico_ext.reports.records import Predictions, Results, read_predictions
from bico_ext.reports.tables import detail_tables, gap_tables, heading, score_tables

PICTURES = {  # by file, its title and what draws it, which says whether there was anything to draw
    "accuracy.png": ("Accuracy", plots.draw_accuracy),
    "gap.png": ("Forward and reverse", plots.draw_gaps),
    "curves.png": ("Learning curves", plots.draw_curves),
    "loss.png": ("Losses", plots.draw_losses),
}
FILES = ("report.html", "table.md", "details.md", *PICTURES)


def table(results: Results) -> str:
    """The scores in Markdown: tasks by objective, one table a metric, then each reverse task against its forward counterpart.

    Args:
        results: what `results.json` holds.

    Returns:
        Markdown text.
    """
    parts = [heading(results) + "\n"]
    parts += [one.markdown() for one in (*score_tables(results), *gap_tables(results))]
    return "\n".join(parts)


def details(results: Results) -> str:
    """By template, by entity, the log-probability test, the losses, in Markdown; empty where results have none."""
    return "\n".join(one.markdown() for tables in detail_tables(results).values() for one in tables)


def write_report(results: Results, folder: str | os.PathLike[str]) -> str:
    """Write a report on results into the folder that holds them; return the scores in Markdown.

    Files of an earlier report are replaced, and removed where these results have nothing for them.

    Args:
        results: what `results.json` holds; one or more runs.
        folder: where the report goes; its `predictions.jsonl`, if there, gives the samples of answers.

    Returns:
        The text of `table.md`.

    Raises:
        ValueError: there are no runs, or the predictions are broken.

    Example:
        >>> write_report(json.loads(Path("out/results.json").read_text()), "out")  # doctest: +SKIP
    """
    if not results["runs"]:
        raise ValueError("results must hold one or more runs, got none; see what the runs failed of")
    return _write(results, read_predictions(folder, results), Path(folder))


def merged_report(folders: Sequence[str | os.PathLike[str]], output_dir: str | os.PathLike[str]) -> str:
    """Write one report on several folders' results; return the scores in Markdown.

    What is put together and what is kept apart: `bico_ext.reports.merge.merge`. The folders are only read.

    Args:
        folders: one or more, as `bico compare` or `bico evaluate` wrote them.
        output_dir: where the report goes; made if missing. It may hold an earlier report and nothing else.

    Returns:
        The text of `table.md`.

    Raises:
        FileExistsError: output_dir holds other things than a report.
        FileNotFoundError: a folder has no results.
        ValueError: a file is broken, or a run is there twice.

    Example:
        >>> merged_report(["out/seeds-0-2", "out/seeds-3-5"], "out/all")  # doctest: +SKIP
    """
    results, predictions = merge(folders)
    target = make_folder(output_dir)
    others = sorted({path.name for path in target.iterdir()} - set(FILES))
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise FileExistsError(f"output_dir {target} holds other things than a report ({some}); name another folder")
    return _write(results, predictions, target)


def _write(results: Results, predictions: Predictions, folder: Path) -> str:
    import matplotlib  # here: the import takes a second, which other commands need not wait for

    text = table(results)
    write_text(folder / "table.md", text)
    more = details(results)
    if more:
        write_text(folder / "details.md", more)
    else:
        (folder / "details.md").unlink(missing_ok=True)
    drawn = {}
    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in the name of a task or a folder is a dollar
        for name, (title, draw) in PICTURES.items():
            if draw(results, folder / name):
                drawn[title] = folder / name
            else:
                (folder / name).unlink(missing_ok=True)
    write_text(folder / "report.html", page(results, predictions, drawn))
    return text
