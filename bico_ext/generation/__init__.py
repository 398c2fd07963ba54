"""Asking a model: greedy causal generation, and the filling of blanks."""
