"""Evaluation: a model's answers, their scores, and what scores the data allow at all."""
