"""Sweeps: many trials of one function, and the record of what became of them."""
