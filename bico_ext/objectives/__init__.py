"""The objectives: each turns one token sequence into the inputs, labels and span ids of a training sequence."""
