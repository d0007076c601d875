"""Compiled loops; each repeats, operation by operation, what its torch reference does."""
