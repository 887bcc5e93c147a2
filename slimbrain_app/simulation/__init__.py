"""fMRIPrep-like datasets: of people who don't exist, or of real series in invented voxels."""

from slimbrain_app.simulation.cohort import simulate_cohort
from slimbrain_app.simulation.dataset import simulate_dataset
from slimbrain_app.simulation.recorded import Inputs
from slimbrain_app.simulation.settings import CohortSettings, SimulationSettings

__all__ = ["CohortSettings", "Inputs", "SimulationSettings", "simulate_cohort", "simulate_dataset"]
