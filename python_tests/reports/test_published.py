"""The page of published values holds what reports show."""

from paths import ROOT

from bico_ext.reports.published import PUBLISHED


def test_the_page_holds_the_values_of_the_reports():
    header: list[str] = []
    shown = []
    for line in (ROOT / "docs" / "results" / "published.md").read_text().splitlines():
        cells = line.strip("| ").split(" | ")
        if cells[0] == "model":
            header = cells
        elif line.startswith("| "):
            shown.append(dict(zip(header, cells, strict=True)))
    assert [{column: cell for column, cell in row.items() if cell != "-"} for row in shown] == [
        {"model": one.model, **one.scores, "metric": one.metric, "source": one.source} for one in PUBLISHED
    ]
