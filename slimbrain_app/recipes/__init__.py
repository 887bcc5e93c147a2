"""Benchmarks that others can repeat: what they take, what the paper found, what is at hand."""
