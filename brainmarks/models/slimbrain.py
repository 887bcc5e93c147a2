"""SlimBrain in the benchmark suite Brainmarks, found there by its namespace package.

Each package at hand, shipped or fetched, is a model: ``slimbrain_tiny``. Any other is had by name,
folder or hub identifier, ``slimbrain`` with ``model_kwargs.model=OWNER/NAME``.

Samples come in the space ``mni``. They are taken back to what they were before they were
normalised, brought to MNI152NLin2009cAsym by TemplateFlow's transform if it is in
TEMPLATEFLOW_HOME (else the two templates are taken for one, with a warning), and go through the
participant level's own verbs: ``cls`` is the run's embedding, ``reg`` those of its eight windows,
``patch`` their final cells. See `slimbrain_app.brainmarks.wrapper.Wrapper`.
"""

from brainmarks.models.registry import register_model

from slimbrain_app.api.model import load
from slimbrain_app.brainmarks.wrapper import Transform, Wrapper
from slimbrain_app.files import cached_packages
from slimbrain_app.model.packages import CONFIG, installed_packages


@register_model
def slimbrain(model: str = "tiny") -> tuple[Transform, Wrapper]:
    """Return a package by its name, its folder, or its identifier on the hub."""
    package = load(model).package
    return Transform(package), Wrapper(package)


def _register(name: str) -> None:
    @register_model(f"slimbrain_{name}")
    def named() -> tuple[Transform, Wrapper]:
        return slimbrain(name)


for _place in (installed_packages(), cached_packages()):
    for _config in sorted(_place.glob(f"*/{CONFIG}")):
        _register(_config.parent.name)
