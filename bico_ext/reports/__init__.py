"""Results as a person reads them: records, tables, plots, one HTML page."""
