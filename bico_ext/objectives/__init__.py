"""The objectives: each turns one token sequence into inputs, labels and span ids for one optimizer step."""
