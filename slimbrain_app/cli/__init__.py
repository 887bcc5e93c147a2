"""The command lines: ``slimbrain`` (a BIDS-App) and ``slimbrain-tools``."""
