"""From a run to a prepared run: brain voxels on the model grid, at the run's own TR."""

from slimbrain_app.prepare.preparation import prepare_run

__all__ = ["prepare_run"]
