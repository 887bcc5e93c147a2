"""The methods text of a call, with its references, rendered from the settings that ran."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from slimbrain_app.records import Contract, Head, ModelIdentity
from slimbrain_app.settings import (
    EvaluateSettings,
    ParticipantSettings,
    Prepare,
    PretrainSettings,
    Rank,
)

if TYPE_CHECKING:
    from slimbrain_app.training.log import Start

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
    "jepa": "Assran M, Duval Q, Misra I, et al. (2023). Self-supervised learning from images with "
    "a joint-embedding predictive architecture. IEEE/CVF Conference on Computer Vision and Pattern "
    "Recognition, 15619-15629. https://arxiv.org/abs/2301.08243",
    "mae": "He K, Chen X, Xie S, Li Y, Dollar P, Girshick R (2022). Masked autoencoders are "
    "scalable vision learners. IEEE/CVF Conference on Computer Vision and Pattern Recognition, "
    "16000-16009. https://arxiv.org/abs/2111.06377",
    "kinds": "Dong Z, Li R, Wu Y, et al. (2024). Brain-JEPA: brain dynamics foundation model with "
    "gradient positioning and spatiotemporal masking. Advances in Neural Information Processing "
    "Systems 37. https://arxiv.org/abs/2409.19407",
    "vicreg": "Bardes A, Ponce J, LeCun Y (2022). VICReg: variance-invariance-covariance "
    "regularization for self-supervised learning. International Conference on Learning "
    "Representations. https://arxiv.org/abs/2105.04906",
    "adamw": "Loshchilov I, Hutter F (2019). Decoupled weight decay regularization. International "
    "Conference on Learning Representations. https://arxiv.org/abs/1711.05101",
    "rank": "Garrido Q, Balestriero R, Najman L, LeCun Y (2023). RankMe: assessing the downstream "
    "performance of pretrained self-supervised representations by their rank. Proceedings of the "
    "40th International Conference on Machine Learning, PMLR 202:10929-10974. "
    "https://arxiv.org/abs/2210.02885",
    "atlas": "Schaefer A, Kong R, Gordon EM, et al. (2018). Local-global parcellation of the human "
    "cerebral cortex from intrinsic functional connectivity MRI. Cerebral Cortex 28:3095-3114. "
    "https://doi.org/10.1093/cercor/bhx179",
    "cleaning": "Lindquist MA, Geuter S, Wager TD, Caffo BS (2019). Modular preprocessing "
    "pipelines can reintroduce artifacts into fMRI data. Human Brain Mapping 40:2358-2376. "
    "https://doi.org/10.1002/hbm.24528",
    "tangent": "Varoquaux G, Baronnet F, Kleinschmidt A, Fillard P, Thirion B (2010). Detection of "
    "brain functional-connectivity difference in post-stroke patients using group-level covariance "
    "modeling. Medical Image Computing and Computer-Assisted Intervention, 200-208. "
    "https://doi.org/10.1007/978-3-642-15705-9_25",
    "shrinkage": "Ledoit O, Wolf M (2004). A well-conditioned estimator for large-dimensional "
    "covariance matrices. Journal of Multivariate Analysis 88:365-411. "
    "https://doi.org/10.1016/S0047-259X(03)00096-4",
    "permutation": "Ojala M, Garriga GC (2010). Permutation tests for studying classifier "
    "performance. Journal of Machine Learning Research 11:1833-1863. "
    "https://jmlr.org/papers/v11/ojala10a.html",
    "sklearn": "Pedregosa F, Varoquaux G, Gramfort A, et al. (2011). Scikit-learn: machine "
    "learning in Python. Journal of Machine Learning Research 12:2825-2830. "
    "https://jmlr.org/papers/v12/pedregosa11a.html",
    "attribution": "Sundararajan M, Taly A, Yan Q (2017). Axiomatic attribution for deep networks. "
    "Proceedings of the 34th International Conference on Machine Learning, PMLR 70:3319-3328. "
    "https://arxiv.org/abs/1703.01365",
    "torch": "Paszke A, Gross S, Massa F, et al. (2019). PyTorch: an imperative style, "
    "high-performance deep learning library. Advances in Neural Information Processing Systems 32. "
    "https://arxiv.org/abs/1912.01703",
    "nipype": "Gorgolewski K, Burns CD, Madison C, et al. (2011). Nipype: a flexible, lightweight "
    "and extensible neuroimaging data processing framework in Python. Frontiers in "
    "Neuroinformatics 5:13. https://doi.org/10.3389/fninf.2011.00013",
    "nibabel": "Brett M, Markiewicz CJ, Hanke M, et al. NiBabel: access a cacophony of "
    "neuro-imaging file formats. Zenodo. https://doi.org/10.5281/zenodo.591597",
}

# Runs may lack some confounds.
_CLEANINGS = 3
_ATTRIBUTION = (
    " Predictions from single runs were attributed to voxels by integrated gradients (Sundararajan "
    "et al., 2017) along the straight path from the same brain standing still, each voxel at its "
    "mean over the run, and summed over frames and over parcels of an atlas (Schaefer et al., "
    "2018). Such a map explains the model; it is no finding about a region."
)
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
    return _join(
        _describe_preparation(settings.prepare, model.contract, software),
        _describe_selection(settings.rank, model.contract),
        _describe_encoding(settings, model),
        _describe_software(software),
    )


def describe_pretraining(
    settings: PretrainSettings, contract: Contract, start: Start, software: Mapping[str, str]
) -> str:
    """Return the methods text of a pretraining in Markdown, like `describe_methods`.

    Parameters
    ----------
    start : Start
        The log's, which knows what the settings left to the preset.
    """
    return _join(
        _describe_preparation(settings.prepare, contract, software),
        " ".join([_describe_selection(settings.rank, contract), _describe_extractor(settings)]),
        _describe_objective(settings),
        _describe_optimisation(settings, start, software),
        _describe_software(software),
    )


def describe_evaluation(
    settings: EvaluateSettings,
    model: ModelIdentity,
    software: Mapping[str, str],
    *,
    by_covariance: bool,
    by_site: bool,
    inner_folds: int,
    draws: int,
    cleanings: Sequence[str],
) -> str:
    """Return the methods text of an evaluation in Markdown, like `describe_methods`.

    Parameters
    ----------
    by_covariance : bool
        Whether people were told by which places move together, not by mean embeddings alone.
    by_site : bool
        Whether whole sites were left out as well.
    inner_folds : int
        Within the people fitted to.
    draws : int
        Of people, for the intervals.
    cleanings : sequence of str
        How series were cleaned, each way in half a sentence.
    """
    embedding = settings.embedding
    return _join(
        _describe_preparation(settings.prepare, model.contract, software),
        _describe_selection(settings.rank, model.contract),
        _describe_encoding(embedding, replace(model, heads=()))
        + " A person's embedding is the mean over runs."
        + (_COVARIANCE if by_covariance else ""),
        _describe_judging(settings, by_site, inner_folds, software),
        _describe_baselines(settings, cleanings),
        _describe_scores(settings, draws),
        _describe_software(software),
    )


_COVARIANCE = (
    " People were told by its second form: one signal of each final cell, by a direction that best "
    "tells the cell's mean BOLD signal, its covariance between cells over all frames of the "
    "windows, shrunk (Ledoit and Wolf, 2004), in the tangent space of the people that the model "
    "was trained on (Varoquaux et al., 2010). What the mean tells stands beside it."
)


def _join(*paragraphs: str) -> str:
    """Join paragraphs and the references that they cite."""
    text = "\n\n".join(paragraphs)
    cited = [reference for reference in _REFERENCES.values() if _cite(reference) in text]
    references = "\n".join(f"- {reference}" for reference in cited)
    return f"{text}\n\n## References\n\n{references}\n"


def _cite(reference: str) -> str:
    """Return how a text names a reference: ``He et al., 2022``."""
    pair = re.match(r"(\w+) \w+, (\w+) \w+ \(", reference)
    year = re.search(r" \((\d{4})\)", reference)
    names = f"{pair[1]} and {pair[2]}" if pair else f"{reference.split()[0]} et al."
    return f"{names}, {year[1]}" if year else names


def _describe_preparation(prepare: Prepare, contract: Contract, software: Mapping[str, str]) -> str:
    grid = " x ".join(str(edge) for edge in contract.shape)
    scaling = {"voxel": "each voxel's own", "global": "the whole brain's"}
    channels = " and, as a second channel, ".join(scaling[name] for name in contract.channels)
    dummies = prepare.dummy_scans
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


def _describe_selection(rank: Rank, contract: Contract) -> str:
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
    heads = _describe_heads(model.heads, settings.output.attribution)
    return (
        f"{inputs} was encoded by the four-dimensional hierarchical vision transformer (Ryali et "
        f"al., 2023) of SLIM-Brain (Wang et al., 2025) with the model package '{model.name}' "
        f"(preset '{model.preset}', SHA-256 {model.sha256[:12]}...); the embedding of a run is the "
        f"mean over them.{caution}{heads} The random seed was "
        f"{settings.seed}."
    )


def _describe_heads(heads: Sequence[Head], attribution: bool) -> str:
    if not heads:
        return ""
    told = " and ".join(f"{head.outcome} (fitted to {head.people} people)" for head in heads)
    return (
        f" From the embedding of each run, and from a participant's mean over runs, linear heads "
        f"of the package predicted {told}.{_ATTRIBUTION if attribution else ''}"
    )


def _describe_extractor(settings: PretrainSettings) -> str:
    passes, mode = settings.extract.passes, settings.rank.mode
    if mode not in ("mutual", "representative", "novelty"):
        return "Windows were drawn from these at random."
    scorer = (
        f"a temporal extractor, which was trained on whole runs first ({passes} passes)"
        if passes
        else "the shares of variance that parts of the run have in common, without a trained "
        "extractor"
    )
    return f"Windows were compared by {scorer}; the training drew from the selected ones at random."


def _describe_objective(settings: PretrainSettings) -> str:
    from slimbrain_app.training.design import make_design

    hide, objective = settings.hide, settings.objective
    hidden = (
        f"the four-dimensional hierarchical vision transformer (Ryali et al., 2023) of SLIM-Brain "
        f"(Wang et al., 2025), preset '{settings.preset}', saw "
        f"{100 * hide.visible_times:g} % of the times and {100 * hide.visible_places:g} % of the "
        f"places with brain in a window; the rest was left out of its computation."
    )
    weights = ", ".join(f"{weight:.3g}" for weight in objective.weights)
    kinds = (
        f"Losses of visible places at hidden times, hidden places at visible times, and hidden "
        f"places at hidden times (after Dong et al., 2024) were averaged apart and weighted by "
        f"{weights}."
    )
    if objective.name == "mae":
        return (
            f"As a masked autoencoder (He et al., 2022), {hidden} A decoder predicted the "
            f"signal of hidden cells, standardised within each, under squared error. {kinds}"
        )
    momentum = make_design(settings).momentum
    return (
        f"By joint-embedding prediction (Assran et al., 2023), {hidden} A predictor told the "
        f"features of hidden cells that a target encoder makes of the whole window, under a smooth "
        f"L1 loss. The target encoder's weights are a moving average of the encoder's, with a "
        f"momentum from {momentum:g} to {objective.last_momentum:g}; each place's mean "
        f"over the window was taken off its features before they were standardised. Correlations "
        f"between features of visible cells were added to the loss with a weight of "
        f"{objective.decorrelation:g} (after Bardes et al., 2022). {kinds} "
        f"Collapse was watched for by the features' spread and effective rank (Garrido et al., "
        f"2023)."
    )


def _describe_optimisation(
    settings: PretrainSettings, start: Start, software: Mapping[str, str]
) -> str:
    from slimbrain_app.training.design import make_design
    from slimbrain_app.training.schedule import scale_rate

    design, train = make_design(settings), settings.train
    kept_out = settings.corpus.validation
    validation = (
        f" {100 * kept_out:g} % of the people were kept out to validate." if kept_out else ""
    )
    return (
        f"The training made {start.passes} passes over all runs, {start.steps} steps of "
        f"{start.batch} windows, {start.windows_per_run} of each run in a pass, with AdamW "
        f"(Loshchilov and Hutter, 2019; betas 0.9 and 0.95, weight decay "
        f"{train.weight_decay:g}) in {_named('PyTorch', software)} (Paszke et al., 2019). The "
        f"learning rate rose over {100 * train.warm_up:g} % of the steps to "
        f"{scale_rate(design.rate, start.batch):.3g} and fell to "
        f"{scale_rate(train.last_rate, start.batch):.3g} as a cosine; "
        f"gradients were clipped at a norm of {train.clip:g}.{validation} The random seed was "
        f"{settings.seed}."
    )


def _describe_judging(
    settings: EvaluateSettings, by_site: bool, inner_folds: int, software: Mapping[str, str]
) -> str:
    judge, family = settings.judge, settings.predict.family
    together = (
        f", with the people of one family ('{family}') on the same side"
        if family is not None
        else ""
    )
    times = "once" if judge.repeats == 1 else f"{judge.repeats} times"
    sites = " and, apart from that, one whole site at a time" if by_site else ""
    left_out = (
        f"Who was fitted to and who was predicted was laid down in a table{together}."
        if judge.split
        else "Every person was predicted by linear models fitted to others: "
        f"{judge.folds} folds of people at random, alike in the outcome, {times}{together}{sites} "
        "were left out."
    )
    confounds = (
        f" {' and '.join(judge.deconfound)} were taken out of all features by a linear regression "
        "fitted to the same people."
        if judge.deconfound
        else ""
    )
    return (
        f"{left_out} Features were standardised, and a logistic regression with balanced classes, "
        f"or a ridge regression of numbers, was fitted "
        f"({_named('scikit-learn', software)}; Pedregosa et al., 2011). The penalty was chosen, "
        f"and probabilities were calibrated and 90 % intervals of numbers found, by "
        f"{inner_folds} folds within the people fitted to; nobody who was judged had a part in "
        f"any of it.{confounds}"
    )


def _describe_baselines(settings: EvaluateSettings, cleanings: Sequence[str]) -> str:
    baseline = settings.baseline
    atlas = (
        f"the atlas '{baseline.atlas}' (Schaefer et al., 2018)"
        if baseline.atlas.startswith("schaefer")
        else "an atlas of the user's"
    )
    kinds = {
        "correlation": "Fisher's z of the correlation",
        "partial": "Fisher's z of the partial correlation, of a covariance shrunk after Ledoit and "
        "Wolf, 2004",
        "tangent": "the tangent at the mean covariance of those fitted to (Varoquaux et al., 2010)",
    }
    shown = "; or ".join(cleanings[:_CLEANINGS])
    more = len(cleanings) - _CLEANINGS
    others = f"; or of fewer or other confounds, in {more} more ways" if more > 0 else ""
    measured = " and ".join(kinds[kind] for kind in baseline.connectivity)
    connectivity = f"functional connectivity, that is {measured}; " if measured else ""
    names = "age, sex, site and motion, as far as known"
    names = names if baseline.covariates is None else ", ".join(baseline.covariates)
    covariates = f"; and covariates alone ({names}), without the outcome" if names else ""
    return (
        f"The same folds and the same fit told the outcomes from other features: {connectivity}"
        f"the mean and the deviation over time of each parcel{covariates}. Series were those of "
        f"{atlas}. For connectivity they were {shown}{others}; confounds, where known, were "
        f"filtered alike before they were removed (Lindquist et al., 2019)."
    )


def _describe_scores(settings: EvaluateSettings, draws: int) -> str:
    permutations = settings.judge.permutations
    tested = (
        f" p is the share of {permutations} outcomes dealt anew among people (of the same site or "
        f"family where these were held together), and the true one, that were told as well in the "
        f"first repeat, by fits that share one penalty (Ojala and Garriga, 2010)."
        if permutations
        else ""
    )
    return (
        f"Scores are over all people at once, and the mean over repeats. Intervals are the middle "
        f"95 % of {draws} draws of the people judged, with replacement; of differences, of the "
        f"same people for both.{tested}"
    )


def _describe_software(software: Mapping[str, str]) -> str:
    return (
        f"Images were read with {_named('nibabel', software)} (Brett et al.), and the workflow "
        f"was run by {_named('Nipype', software)} (Gorgolewski et al., 2011)."
    )


def _named(package: str, software: Mapping[str, str]) -> str:
    names = {"pytorch": "torch"}
    versions = {name.lower(): text for name, text in software.items()}
    version = versions.get(names.get(package.lower(), package.lower()))
    return f"{package} {version}" if version else package
