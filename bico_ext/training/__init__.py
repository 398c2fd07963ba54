"""The trainer: its configuration, the data set on its way to it, and the optimizer steps."""
