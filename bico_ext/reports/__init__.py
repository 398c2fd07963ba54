"""Reports for people: typed records of the results, tables, plots and one HTML page."""
