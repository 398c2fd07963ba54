"""The matrix of `real_llama.py`: its cells, their records and the tables made from them."""
