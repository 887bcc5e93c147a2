"""The methods text of a call, with its references, rendered from the settings that ran."""

from __future__ import annotations

from collections.abc import Mapping

from slimbrain_app.records import ModelIdentity
from slimbrain_app.settings import ParticipantSettings

_REFERENCES = {
    "bids": "Gorgolewski KJ, Auer T, Calhoun VD, et al. (2016). The brain imaging data structure, "
    "a format for organizing and describing outputs of neuroimaging experiments. Scientific Data "
    "3:160044. https://doi.org/10.1038/sdata.2016.44",
    "fmriprep": "Esteban O, Markiewicz CJ, Blair RW, et al. (2019). fMRIPrep: a robust "
    "preprocessing pipeline for functional MRI. Nature Methods 16:111-116. "
    "https://doi.org/10.1038/s41592-018-0235-4",
    "template": "Fonov VS, Evans AC, McKinstry RC, Almli CR, Collins DL (2009). Unbiased nonlinear "
    "average age-appropriate brain templates from birth to adulthood. NeuroImage 47:S102. "
    "https://doi.org/10.1016/S1053-8119(09)70884-5",
    "displacement": "Power JD, Barnes KA, Snyder AZ, Schlaggar BL, Petersen SE (2012). Spurious "
    "but systematic correlations in functional connectivity MRI networks arise from subject "
    "motion. NeuroImage 59:2142-2154. https://doi.org/10.1016/j.neuroimage.2011.10.018",
    "slimbrain": "Wang M, Xia J, Ye W, Liu E, Peng K, Feng J, Liu Q, Wen H (2025). SLIM-Brain: a "
    "data- and training-efficient foundation model for fMRI data analysis. arXiv:2512.21881. "
    "https://arxiv.org/abs/2512.21881",
    "hiera": "Ryali C, Hu YT, Bolya D, et al. (2023). Hiera: a hierarchical vision transformer "
    "without the bells-and-whistles. Proceedings of the 40th International Conference on Machine "
    "Learning, PMLR 202:29441-29454. https://arxiv.org/abs/2306.00989",
    "nipype": "Gorgolewski K, Burns CD, Madison C, et al. (2011). Nipype: a flexible, lightweight "
    "and extensible neuroimaging data processing framework in Python. Frontiers in "
    "Neuroinformatics 5:13. https://doi.org/10.3389/fninf.2011.00013",
    "nibabel": "Brett M, Markiewicz CJ, Hanke M, et al. NiBabel: access a cacophony of "
    "neuro-imaging file formats. Zenodo. https://doi.org/10.5281/zenodo.591597",
}

_MODES = {
    "mutual": "by how well each explains the rest of the run and is explained by it",
    "representative": "by how well the rest of the run explains each of them",
    "novelty": "by how badly the rest of the run explains each of them",
    "random": "at random",
    "uniform": "so that they are evenly spaced",
    "first": "in their order in time",
}


def describe_methods(
    settings: ParticipantSettings, model: ModelIdentity, software: Mapping[str, str]
) -> str:
    """Return the methods text in Markdown: paragraphs, then the references they name.

    Parameters
    ----------
    software : mapping of str to str
        Package and version; ``SlimBrain``, ``Nipype`` and ``nibabel`` stand in the text.
    """
    paragraphs = [
        _describe_preparation(settings, model, software),
        _describe_selection(settings, model),
        _describe_encoding(settings, model),
        _describe_software(software),
    ]
    keys = [key for key in _REFERENCES if settings.rank.fd_threshold or key != "displacement"]
    references = "\n".join(f"- {_REFERENCES[key]}" for key in keys)
    return "\n\n".join([*paragraphs, "## References", references]) + "\n"


def _describe_preparation(
    settings: ParticipantSettings, model: ModelIdentity, software: Mapping[str, str]
) -> str:
    contract = model.contract
    grid = " x ".join(str(edge) for edge in contract.shape)
    scaling = {"voxel": "each voxel's own", "global": "the whole brain's"}
    channels = " and, as a second channel, ".join(scaling[name] for name in contract.channels)
    dummies = settings.prepare.dummy_scans
    start = (
        "Leading non-steady-state volumes, as marked in the confounds, were left out."
        if dummies is None
        else f"The first {dummies} volumes were left out."
    )
    return (
        f"BOLD series preprocessed by fMRIPrep (Esteban et al., 2019) or a compatible app, "
        f"organised as BIDS derivatives (Gorgolewski et al., 2016), were read by "
        f"{_named('SlimBrain', software)}. {start} Each series was brought onto a grid of {grid} "
        f"voxels of {contract.voxel_size:g} mm in {contract.space} (Fonov et al., 2009) by cubic "
        f"B-splines, in a single interpolation at most; voxels outside of the run's brain mask "
        f"were dropped. Signals were standardised by {channels} mean and standard deviation over "
        f"the run, and resampled to one frame every {contract.frame_time:g} s."
    )


def _describe_selection(settings: ParticipantSettings, model: ModelIdentity) -> str:
    rank, contract = settings.rank, model.contract
    count = "All windows" if rank.windows == "all" else f"Up to {rank.windows} windows"
    guard = (
        f" Windows in which too many frames had a framewise displacement (Power et al., 2012) "
        f"over {rank.fd_threshold:g} mm were left out, as long as enough others remained."
        if rank.fd_threshold
        else ""
    )
    return (
        f"{count} of {contract.frames} frames ({contract.window_seconds:g} s) were selected per "
        f"run, {_MODES[rank.mode]} (ranking mode '{rank.mode}').{guard}"
    )


def _describe_encoding(settings: ParticipantSettings, model: ModelIdentity) -> str:
    views = settings.encode.views
    inputs = "Each window" if views == 1 else f"Each window, at {views} slightly shifted onsets,"
    caution = (
        ""
        if model.trained
        else " The weights of this package are untrained, so that its embeddings show that the "
        "processing works, but carry no learned information."
    )
    return (
        f"{inputs} was encoded by the four-dimensional hierarchical vision transformer (Ryali et "
        f"al., 2023) of SLIM-Brain (Wang et al., 2025) with the model package '{model.name}' "
        f"(preset '{model.preset}', SHA-256 {model.sha256[:12]}...); the embedding of a run is the "
        f"mean over them.{caution} The random seed was {settings.seed}."
    )


def _describe_software(software: Mapping[str, str]) -> str:
    return (
        f"Images were read with {_named('nibabel', software)} (Brett et al.), and the workflow "
        f"was run by {_named('Nipype', software)} (Gorgolewski et al., 2011)."
    )


def _named(package: str, software: Mapping[str, str]) -> str:
    version = {name.lower(): text for name, text in software.items()}.get(package.lower())
    return f"{package} {version}" if version else package
