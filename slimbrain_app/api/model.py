"""A model for Python: one run in, a record of its embedding out."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.api.items import Beside, Item, find_item, make_mask, named
from slimbrain_app.api.notices import warn_of_package, warn_of_runs
from slimbrain_app.bids.entities import VARIANT, parse_name
from slimbrain_app.bids.headers import read_header
from slimbrain_app.bids.masks import require_same_grid
from slimbrain_app.device import choose_device
from slimbrain_app.embedding import embed_run, list_notices
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.model.hub import find_or_fetch
from slimbrain_app.model.packages import Package, load_extractor, note_seen
from slimbrain_app.prediction import predict_by_package
from slimbrain_app.prepare import prepare_run
from slimbrain_app.prepare.store import load_prepared
from slimbrain_app.ranking import rank_run
from slimbrain_app.records import (
    Contract,
    ModelIdentity,
    Notice,
    Prediction,
    PreparedRun,
    Window,
)
from slimbrain_app.settings import ParticipantSettings, Ranking, read_settings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunEmbedding:
    """What a model says of a run.

    Attributes
    ----------
    run : str
        The run's name; of an image, the file's, or the SHA-256 of its content.
    model : ModelIdentity
        Which package, by name and checksum.
    embedding : ndarray, float32, shape (width,)
        The run's embedding: the mean over its views.
    windows : tuple of Window
        All windows, in time, with onset and duration (s), saliency, rank and whether selected.
    views : ndarray, float32, shape (views, width)
        What the encoder was given: by default the selected windows, best first.
    view_windows : tuple of int
        For each view, its window's place in ``windows``.
    view_onsets : tuple of float
        For each view, seconds from the source's first volume.
    covariance : ndarray, float32, shape (covariance width,), or None
        Which places move together, where the package has a readout and the run is long enough.
    predictions : tuple of Prediction
        What the package's heads, if it has any, say of the run.
    notices : tuple of Notice
        What a report would show as warnings.
    device : str
        Where it was computed.
    """

    run: str
    model: ModelIdentity
    embedding: NDArray[np.float32]
    windows: tuple[Window, ...]
    views: NDArray[np.float32]
    view_windows: tuple[int, ...]
    view_onsets: tuple[float, ...]
    covariance: NDArray[np.float32] | None
    predictions: tuple[Prediction, ...]
    notices: tuple[Notice, ...]
    device: str

    def to_frame(self) -> pd.DataFrame:
        """Return a table of the views, a row each, best window first.

        Columns are those of the participant level's table of embeddings, and what is said of the
        window: ``window``, ``view``, ``onset``, ``duration``, ``saliency``, ``rank``,
        ``selected``, ``censored_frames``, then ``e0000`` onwards.
        """
        import pandas as pd

        told = pd.DataFrame([asdict(self.windows[place]) for place in self.view_windows])
        told = told.drop(columns="start").assign(onset=self.view_onsets)
        told.insert(0, "window", self.view_windows)
        told.insert(1, "view", told.groupby("window").cumcount())
        names = [f"e{i:04d}" for i in range(self.views.shape[1])]
        return told.join(pd.DataFrame(self.views, columns=names))


@dataclass(frozen=True, slots=True)
class Model:
    """A model package, ready to embed runs; `load` finds it."""

    package: Package

    @property
    def name(self) -> str:
        """The package's name."""
        return self.package.name

    @property
    def contract(self) -> Contract:
        """What the model wants as input: grid, frame time, frames, normalisation."""
        return self.package.contract

    def embed(
        self,
        bold: Any,
        *,
        mask: Any = None,
        confounds: Any = None,
        tr: float | None = None,
        space: str | None = None,
        affine: NDArray[np.float64] | None = None,
        windows: int | Literal["all"] = 8,
        ranking: Ranking = "mutual",
        views: int = 1,
        fd_threshold: float = 0.5,
        device: str = "auto",
        seed: int = 0,
    ) -> RunEmbedding:
        """Embed one run as the participant level does.

        Parameters
        ----------
        bold : str, Path, nibabel image, ndarray, Run or PreparedRun
            The path of a BOLD series in a folder of derivatives, ``sub-*/[ses-*/]func/``: the run
            is found there, with its mask, confounds and sidecars, and the numbers are those of the
            command line, to the bit. Any other 4D NIfTI file or image in an MNI152 space. An array
            (x, y, z, volumes). A prepared run, or the folder of one.
        mask : str, Path, nibabel image or ndarray, optional
            The brain, on the grid of the series, instead of the run's own. Without either it is
            what `nilearn.masking.compute_epi_mask` makes of the mean over time.
        confounds : str, Path or pandas.DataFrame, optional
            A row for each volume, with ``framewise_displacement`` (mm), instead of the run's own.
            Without either, the motion guard is off.
        tr : float, optional
            Seconds between volumes. One that a sidecar contradicts is refused.
        space : str, optional
            Of a lone image: ``MNI152NLin2009cAsym`` if nobody says, or another MNI152 variant for
            which TemplateFlow's transform is at hand.
        affine : ndarray, shape (4, 4), optional
            Of an array; that of the model grid if None.
        windows : int or "all"
            How many windows are encoded.
        ranking : {"mutual", "representative", "novelty", "random", "uniform", "first"}
        views : int
            Encoder inputs for each window.
        fd_threshold : float
            Framewise displacement (mm) above which a frame counts as moving; 0 for no guard.
        device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
        seed : int
            Of the ranking ``random``.

        Raises
        ------
        CallRefused
            ``usage`` for a parameter out of its range or what is no image, ``device-missing``.
        RunRefused
            As of the participant level: ``no-tr``, ``mask-mismatch``, ``not-4d``, ``too-short``
            and others.

        Warns
        -----
        SlimBrainWarning
            Once for each code among the notices, which the record has too.
        """
        settings = read_parameters(
            "embed",
            model=self.name,
            tr=tr,
            windows=windows,
            ranking=ranking,
            views=views,
            fd_threshold=fd_threshold,
            device=device,
            seed=seed,
        )
        chosen = choose_device(settings.compute.device)
        beside = Beside(mask=mask, confounds=confounds, space=space, affine=affine)
        label = _label_of(bold)
        with named(label), TemporaryDirectory(prefix="slimbrain_") as work:
            prepared, name, notices = self._prepare(bold, label, settings, beside, Path(work))
            result = embed_prepared(prepared, name, self.package, settings, chosen)
        result = replace(result, notices=(*notices, *result.notices))
        warn_of_runs((label, notice) for notice in result.notices)
        return result

    def _prepare(
        self, bold: Any, label: str, settings: ParticipantSettings, beside: Beside, work: Path
    ) -> tuple[PreparedRun, str, tuple[Notice, ...]]:
        prepared = _find_prepared(bold)
        if prepared is not None:
            _refuse_beside(beside, settings.prepare.tr)
            return prepared, _name_prepared(prepared.folder), ()
        item = find_item(bold, label, settings.prepare, beside, work)
        if beside.mask is not None:
            _require_grid(item)
        return prepare_item(item, settings, self.contract), item.run.name, item.run.notices


def load(model: str | Path = "tiny", *, sha256: str | None = None) -> Model:
    """Load a model.

    Parameters
    ----------
    model : str or Path
        Name of a package that ships or was fetched, folder of a package, or its identifier on the
        hub, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``: what is there already is not fetched again.
    sha256 : str, optional
        The package's checksum, if it is known: nothing else is accepted then.

    Raises
    ------
    CallRefused
        ``package-missing``, ``package-bad``.

    Warns
    -----
    SlimBrainWarning
        If its weights are random, or its makers have a warning.

    Examples
    --------
    >>> import slimbrain_app
    >>> model = slimbrain_app.load("tiny")  # doctest: +SKIP
    >>> run = model.embed("sub-01/func/sub-01_task-rest_bold.nii.gz")  # doctest: +SKIP
    """
    package = find_or_fetch(model, sha256=sha256)
    warn_of_package(package)
    return Model(package)


def read_parameters(
    shown: str,
    *,
    model: str,
    tr: float | None,
    windows: int | str,
    ranking: str,
    views: int,
    fd_threshold: float,
    device: str,
    seed: int,
) -> ParticipantSettings:
    """Check parameters by the rules of the command line; ``shown`` stands for them in messages.

    Raises
    ------
    CallRefused
        ``usage``.
    """
    rank = {"mode": ranking, "windows": _plain(windows), "fd_threshold": _plain(fd_threshold)}
    overrides = {
        "model": model,
        "seed": _plain(seed),
        "prepare": {"tr": _plain(tr)},
        "rank": rank,
        "encode": {"views": _plain(views)},
        "compute": {"device": device},
    }
    try:
        return read_settings(ParticipantSettings, None, overrides)
    except CallRefused as error:
        raise CallRefused(
            error.reason,
            file=shown,
            expected="parameters with values in their range",
            found=error.found,
            advice="correct them",
        ) from error


def prepare_item(item: Item, settings: ParticipantSettings, contract: Contract) -> PreparedRun:
    """Prepare an item's run, in its folder."""
    if item.lacks_mask:
        make_mask(item.run)
    return prepare_run(item.run, item.work / "prepared", settings.prepare, contract.span_seconds)


def embed_prepared(
    prepared: PreparedRun,
    name: str,
    package: Package,
    settings: ParticipantSettings,
    device: str,
) -> RunEmbedding:
    """Take a prepared run through the other verbs of the participant level."""
    extractor = load_extractor(package)
    ranked = rank_run(prepared, package.contract, extractor, settings.rank, settings.seed, name)
    or_cpu = settings.compute.device == "auto"
    embedding = embed_run(prepared, ranked, package, settings.encode, device, or_cpu=or_cpu)
    notices = (
        *prepared.notices,
        *ranked.notices,
        *note_seen(package, prepared),
        *list_notices(embedding, package, device),
    )
    return RunEmbedding(
        run=name,
        model=package.identity,
        embedding=embedding.mean,
        windows=ranked.windows,
        views=embedding.views,
        view_windows=embedding.windows,
        view_onsets=embedding.onsets,
        covariance=embedding.covariance,
        predictions=predict_by_package(
            package, embedding.mean, notices, embedding.views, embedding.covariance
        ),
        notices=notices,
        device=embedding.device,
    )


def _plain(value: Any) -> Any:
    """Return Python's number for numpy's, as which a search draws its candidates."""
    return value.item() if isinstance(value, np.generic) else value


def _label_of(bold: Any) -> str:
    """Return what messages call a run that is given."""
    if isinstance(bold, str | os.PathLike):
        return os.fspath(bold)
    path = getattr(bold, "bold", getattr(bold, "folder", None))
    return "bold" if path is None else str(path)


def _find_prepared(bold: Any) -> PreparedRun | None:
    if isinstance(bold, PreparedRun):
        return bold
    if not isinstance(bold, str | os.PathLike) or not Path(bold).is_dir():
        return None
    try:
        return load_prepared(Path(bold).absolute())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunRefused(
            "prepared-bad",
            file=Path(bold).name,
            expected="a prepared run, where a folder is given",
            found=str(error),
            advice="give the folder that --save-prepared wrote, or a BOLD file",
        ) from error


def _name_prepared(folder: Path) -> str:
    """Return the run's name, as the participant level knows it, from that of its folder."""
    name = parse_name(f"{folder.name}.folder")
    if name is None:
        return folder.name
    return "_".join(f"{key}-{value}" for key, value in name.without(VARIANT))


def _refuse_beside(beside: Beside, tr: float | None) -> None:
    """Refuse what would have to be known before a run is prepared."""
    given = {**{field.name: getattr(beside, field.name) for field in fields(beside)}, "tr": tr}
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise CallRefused(
            "usage",
            file="embed",
            expected="nothing beside a prepared run, which has its own",
            found=", ".join(named),
            advice="leave it out, or give the BOLD series",
        )


def _require_grid(item: Item) -> None:
    run = item.run
    shown = "mask" if run.mask.is_relative_to(item.work) else str(run.mask)
    require_same_grid(run.mask, shown, run.bold.name, read_header(run.bold))
