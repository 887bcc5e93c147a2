"""fMRIPrep-like datasets of people who don't exist."""

from slimbrain_app.simulation.dataset import simulate_dataset
from slimbrain_app.simulation.settings import SimulationSettings

__all__ = ["SimulationSettings", "simulate_dataset"]
