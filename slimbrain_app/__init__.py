"""SlimBrain: embeddings of fMRI runs from fMRIPrep derivatives."""

__version__ = "0.1.0"
