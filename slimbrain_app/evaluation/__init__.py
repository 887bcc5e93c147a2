"""How good a model is: probes on held-out people."""
