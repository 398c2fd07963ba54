"""Training: the configuration, the dataset and the trainer."""
