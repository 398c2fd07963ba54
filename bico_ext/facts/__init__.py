"""Facts and questions: the data sets, and the readers of users' own."""
