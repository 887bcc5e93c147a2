"""The network, its input and its packages on disk."""
