"""SlimBrain: embeddings of fMRI runs from fMRIPrep derivatives."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. None is imported before it is asked for: the command line imports
# this package, and loads torch late.
_PUBLIC = {
    "CallRefused": "errors",
    "Model": "api.model",
    "RunEmbedding": "api.model",
    "RunRefused": "errors",
    "SlimBrainEmbedder": "api.transformer",
    "SlimBrainError": "errors",
    "SlimBrainWarning": "api.notices",
    "load": "api.model",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
