"""fMRIPrep-like datasets of people who don't exist."""
