"""Generation: greedy continuation of prompts, and filling of blanks."""
