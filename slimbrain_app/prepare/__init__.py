"""From a run to a prepared run: brain voxels on the model grid, at the run's own TR."""

from slimbrain_app.prepare.preparation import check_length, prepare_run, prepare_volumes

__all__ = ["check_length", "prepare_run", "prepare_volumes"]
