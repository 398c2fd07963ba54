"""Facts and questions: the built-in data sets and the readers of users' own files."""
