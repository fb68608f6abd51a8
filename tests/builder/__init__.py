"""The builder: each step, and the whole of it."""
