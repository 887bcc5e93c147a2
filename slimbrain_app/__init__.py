"""SlimBrain: embeddings of fMRI runs from fMRIPrep derivatives."""

from importlib import import_module
from typing import Any

__all__ = ["SlimBrainEmbedder", "SlimBrainWarning"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Not before it is asked for: the command line imports this package, and loads torch late.
    if name in __all__:
        return getattr(import_module("slimbrain_app.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
