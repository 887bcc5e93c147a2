"""The participant level as a transformer of scikit-learn."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, check_memory

from slimbrain_app import __version__
from slimbrain_app.api.items import Beside, Item, find_item, named
from slimbrain_app.api.model import embed_prepared, prepare_item, read_parameters
from slimbrain_app.api.notices import Told, warn_of_package, warn_of_runs
from slimbrain_app.bids.headers import reading
from slimbrain_app.device import choose_device
from slimbrain_app.errors import CallRefused
from slimbrain_app.files import sha256_of
from slimbrain_app.model.hub import find_or_fetch
from slimbrain_app.model.packages import Package
from slimbrain_app.records import Notice, Run
from slimbrain_app.settings import ParticipantSettings

Row = NDArray[np.float32]


class SlimBrainEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn BOLD images into embeddings, one row for each.

    Items of ``X`` are, in any mixture:

    - the path of a BOLD series in a folder of derivatives, ``sub-*/[ses-*/]func/``: the run is
      found, with its mask, confounds and sidecars, and embedded as the participant level does,
      to the bit;
    - a `slimbrain_app.records.Run`, as `slimbrain_app.bids.discover.discover` returns them;
    - the path of another 4D NIfTI image, or a nibabel image, which must lie in
      MNI152NLin2009cAsym. Its repetition time is ``tr``, or what a JSON beside the file says, or
      its header; its brain is ``mask``, or what `nilearn.masking.compute_epi_mask` makes of the
      mean over time. Its motion is unknown, so that the motion guard is off. An image, unlike a
      file, is held in memory and written to a temporary file, whole.

    Nothing is learnt from the images: `fit` checks the parameters and loads the package. People,
    not runs, are to be kept apart in cross-validation, by their labels as ``groups``.

    Parameters
    ----------
    model : str or Path
        Name or folder of a model package, or its identifier on the hub.
    windows : int or "all"
        How many windows of a run are encoded.
    ranking : {"mutual", "representative", "novelty", "random", "uniform", "first"}
    views : int
        Encoder inputs for each window.
    fd_threshold : float
        Framewise displacement (mm) above which a frame counts as moving; 0 for no guard.
    tr : float, optional
        Seconds between volumes. One that a sidecar contradicts is refused; a `Run` keeps its own.
    mask : str, Path or nibabel image, optional
        The brain for all items, instead of each one's own.
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
    seed : int
        Of the ranking ``random``.
    memory : str, Path or object with the interface of joblib.Memory, optional
        Where embeddings are kept, so that folds and candidates of a search that share an image
        embed it once. Files are known by path, size and time of change, images by content.

    Attributes
    ----------
    package_ : slimbrain_app.model.packages.Package
    n_features_out_ : int
        Numbers per embedding.

    Notes
    -----
    scikit-learn's `check_estimator` hands tables of numbers to `transform`, which refuses them, so
    that only those of its checks hold that need no such table. Refusals are SlimBrain's own errors
    and no ValueError.
    """

    def __init__(
        self,
        model: str | Path = "tiny",
        *,
        windows: int | str = 8,
        ranking: str = "mutual",
        views: int = 1,
        fd_threshold: float = 0.5,
        tr: float | None = None,
        mask: Any = None,
        device: str = "auto",
        seed: int = 0,
        memory: Any = None,
    ) -> None:
        self.model = model
        self.windows = windows
        self.ranking = ranking
        self.views = views
        self.fd_threshold = fd_threshold
        self.tr = tr
        self.mask = mask
        self.device = device
        self.seed = seed
        self.memory = memory

    def fit(self, X: Any, y: Any = None) -> SlimBrainEmbedder:  # noqa: ARG002, N803
        """Check the parameters and load the package; images are not looked at.

        Raises
        ------
        CallRefused
            ``usage`` for a parameter out of its range, ``device-missing``, ``package-missing``,
            ``package-bad``.
        """
        self._read_settings()
        choose_device(self.device)
        self.package_ = find_or_fetch(self.model)
        self.n_features_out_ = self.package_.config.encoder.embedding_width
        warn_of_package(self.package_)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Embed images.

        Parameters
        ----------
        X : sequence of str, Path, nibabel image or Run

        Returns
        -------
        ndarray, float32, shape (images, width)

        Raises
        ------
        CallRefused
            ``usage`` for what is no image.
        RunRefused
            As of the participant level; the first one ends the call.
        """
        check_is_fitted(self)
        settings, device = self._read_settings(), choose_device(self.device)
        ignored = ["item", "package", "settings", "device"]
        memory = os.fspath(self.memory) if isinstance(self.memory, os.PathLike) else self.memory
        embed = check_memory(memory).cache(_embed_item, ignore=ignored)
        rows: list[Row] = []
        told: list[Told] = []
        beside = Beside(mask=self.mask)
        for number, given in enumerate(_list_items(X)):
            label = _label_of(given, number)
            with named(label), TemporaryDirectory(prefix="slimbrain_") as work:
                item = find_item(given, label, settings.prepare, beside, Path(work))
                key = _describe_item(item, self.package_, settings, device)
                row, notices = embed(key, item, self.package_, settings, device)
            rows.append(row)
            told += [(label, notice) for notice in (*item.run.notices, *notices)]
        warn_of_runs(told)
        return np.stack(rows)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:  # noqa: ARG002
        """Return the columns' names, ``e0000`` onwards as in the participant level's tables."""
        check_is_fitted(self)
        return np.array([f"e{i:04d}" for i in range(self.n_features_out_)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _read_settings(self) -> ParticipantSettings:
        told = self.get_params(deep=False)
        told = {name: told[name] for name in told if name not in ("mask", "memory")}
        return read_parameters(type(self).__name__, **{**told, "model": str(self.model)})


def _embed_item(
    key: str,  # noqa: ARG001 -- what joblib knows the result by
    item: Item,
    package: Package,
    settings: ParticipantSettings,
    device: str,
) -> tuple[Row, tuple[Notice, ...]]:
    prepared = prepare_item(item, settings, package.contract)
    result = embed_prepared(prepared, item.run.name, package, settings, device)
    return result.embedding, result.notices


def _describe_item(item: Item, package: Package, settings: ParticipantSettings, device: str) -> str:
    """Name everything that an embedding depends on."""
    run = item.run
    given = [path for path in run.sources if not (item.lacks_mask and path == run.mask)]
    telling = {
        "version": __version__,
        "model": package.sha256,
        "settings": settings.fingerprint(),
        "device": device,
        "run": run.name,
        "tr": run.repetition_time.seconds,
        "sources": [_describe_file(path, run.relative(path), item.work) for path in given],
    }
    return json.dumps(telling)


def _describe_file(path: Path, shown: str, work: Path) -> list[str | int]:
    """Tell a file from what it may be later; hashing would cost as much as reading it."""
    with reading(path, shown):
        state = path.stat()
    if path.is_relative_to(work):
        return [sha256_of(path)]
    return [str(path), state.st_size, state.st_mtime_ns]


def _list_items(given: Any) -> list[Any]:
    alone = isinstance(given, str | os.PathLike | SpatialImage | Run)
    if alone or getattr(given, "ndim", 1) != 1:
        raise _no_sequence(f"a {type(given).__name__}")
    items = list(given)
    if not items:
        raise _no_sequence("an empty one")
    return items


def _no_sequence(found: str) -> CallRefused:
    return CallRefused(
        "usage",
        file="X",
        expected="a sequence of images",
        found=found,
        advice="give a list, or one column of a table",
    )


def _label_of(given: Any, number: int) -> str:
    """Return what messages call an item: its file, or its place."""
    if isinstance(given, Run):
        return str(given.bold)
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    return f"X[{number}]"
