"""Scripts for the scheduler of a cluster."""
