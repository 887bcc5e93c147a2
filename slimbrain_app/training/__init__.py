"""Training: corpus, loader, loop, checkpoints, processes. It knows no task."""
