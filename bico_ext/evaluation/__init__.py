"""Scores: what a model answers, by which metrics, and what can be reached at all."""
