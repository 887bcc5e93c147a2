"""Faults put into calls of the command line, and what is looked at then."""
