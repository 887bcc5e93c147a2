"""Nipype at arm's length: thin interfaces over the rooms below, one graph, one call."""
