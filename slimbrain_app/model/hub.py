"""Model packages from a hub: fetched by identifier, verified, kept whole or not at all.

A hub serves the files of a repository at ``ENDPOINT/OWNER/NAME/resolve/REVISION/FILE``, as Hugging
Face does. A package is such a repository: its ``checksums.json`` says which files it has and what
they must be, and one checksum over that, which is the package's own, vouches for all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from slimbrain_app import __version__
from slimbrain_app.errors import CallRefused
from slimbrain_app.files import cached_packages, whole_folder
from slimbrain_app.model.packages import (
    CHECKSUMS,
    Package,
    digest_package,
    installed_packages,
    load_package,
    read_checksums,
)

HUB = "https://huggingface.co"

_IDENTIFIER = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_ENDINGS = (".safetensors", ".json", ".jsonl", ".md", ".tsv")
_PATIENCE = 30.0  # s without a byte
_CHUNK = 1 << 20
_BY_HAND = "or copy the package by hand and give its folder"


def fetch_package(
    identifier: str, *, sha256: str | None = None, endpoint: str | None = None
) -> Package:
    """Fetch a package into the cache, where `load_package` finds it by its name.

    A package of that name which is there already is replaced, once the new one is whole.

    Parameters
    ----------
    identifier : str
        ``OWNER/NAME``, or ``OWNER/NAME@REVISION``.
    sha256 : str, optional
        The package's checksum, if it is known: nothing else is accepted then.
    endpoint : str, optional
        Address of the hub; that in HF_ENDPOINT, else `HUB`, if None.

    Raises
    ------
    CallRefused
        ``package-missing`` if the hub or the package can't be reached; ``package-bad`` if it is
        not what its checksums, or ``sha256``, say; ``usage`` for an identifier or endpoint that is
        none, or the name of a package that ships with SlimBrain.
    """
    name, address = _locate(identifier, endpoint)
    with whole_folder(cached_packages() / name) as folder:
        try:
            _fetch(address, CHECKSUMS, folder)
            digests = read_checksums(folder)
            _require_sum(digest_package(digests), sha256)
            for file in sorted(digests):
                _fetch(address, file, folder)
            load_package(folder)
        except CallRefused as refusal:
            if refusal.reason != "package-bad":
                raise
            # Named as it is on the hub: the copy is gone.
            origin = f"{address}/{Path(refusal.file or '').name}"
            raise _bad(origin, refusal.expected, refusal.found) from refusal
    return load_package(cached_packages() / name)


def find_or_fetch(
    model: str | Path, *, sha256: str | None = None, endpoint: str | None = None
) -> Package:
    """Return a package by its name, its folder or its identifier on the hub.

    What was fetched before is not fetched again if it has the checksum asked for, or else the one
    that the hub states now.

    Parameters
    ----------
    model : str or Path
        A folder is a Path, or a text with a slash that names one.
    sha256 : str, optional
        The package's checksum, if it is known: nothing else is accepted then.
    endpoint : str, optional
        Address of the hub; that in HF_ENDPOINT, else `HUB`, if None.

    Raises
    ------
    CallRefused
        As `load_package` and `fetch_package`.
    """
    is_local = isinstance(model, Path) or "/" not in model or os.path.isdir(model)  # noqa: PTH112
    if is_local or not _IDENTIFIER.fullmatch(str(model)):
        package = load_package(model)
        _require_sum(package.sha256, sha256)
        return package
    name, address = _locate(str(model), endpoint)
    folder = cached_packages() / name
    if (folder / CHECKSUMS).is_file():
        package = load_package(folder)
        if package.sha256 == (sha256.lower() if sha256 else _read_sum(address)):
            return package
    return fetch_package(str(model), sha256=sha256, endpoint=endpoint)


def _read_sum(address: str) -> str:
    """Return the checksum that the hub states for a package."""
    with TemporaryDirectory() as folder:
        _fetch(address, CHECKSUMS, Path(folder))
        return digest_package(read_checksums(Path(folder)))


def _locate(identifier: str, endpoint: str | None) -> tuple[str, str]:
    """Return the package's name, and the address that its file names are appended to."""
    match = _IDENTIFIER.fullmatch(identifier)
    if match is None:
        raise _unusable("OWNER/NAME or OWNER/NAME@REVISION", identifier, "correct the identifier")
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or HUB
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _unusable("a hub's address with http:// or https://", endpoint, "correct it")
    owner, name, revision = match.groups(default="main")
    if (installed_packages() / name).exists():
        raise _unusable(
            "another name than those of the packages that ship with SlimBrain",
            name,
            "copy the package by hand, under a name of your own, and give its folder",
        )
    return name, f"{endpoint.rstrip('/')}/{owner}/{name}/resolve/{quote(revision, safe='')}"


def _fetch(address: str, name: str, folder: Path) -> None:
    if not name.endswith(_ENDINGS):
        raise _bad(name, f"files that end in {', '.join(_ENDINGS)}", name)
    with (folder / name).open("wb") as stream:
        for chunk in _download(f"{address}/{quote(name)}"):
            stream.write(chunk)


def _download(url: str) -> Iterator[bytes]:
    request = Request(url, headers={"User-Agent": f"slimbrain/{__version__}"})
    try:
        with urlopen(request, timeout=_PATIENCE) as response:
            while chunk := response.read(_CHUNK):
                yield chunk
    except HTTPError as error:
        with error:
            found = f"{error.code} {error.reason}"
        raise _missing(url, found, f"check identifier and revision, {_BY_HAND}") from error
    except (OSError, HTTPException) as error:
        found = str(error.reason if isinstance(error, URLError) else error)
        found = found or type(error).__name__
        raise _missing(url, found, f"check the network and try again, {_BY_HAND}") from error


def _require_sum(found: str, sha256: str | None) -> None:
    if sha256 is not None and sha256.lower() != found:
        raise _bad(CHECKSUMS, f"the package {sha256}", found)


def _bad(file: str, expected: str, found: str) -> CallRefused:
    advice = "fetch it again; if that does not help, ask those who published it"
    return CallRefused("package-bad", file=file, expected=expected, found=found, advice=advice)


def _missing(url: str, found: str, advice: str) -> CallRefused:
    expected = "a file of a package"
    return CallRefused("package-missing", file=url, expected=expected, found=found, advice=advice)


def _unusable(expected: str, found: str, advice: str) -> CallRefused:
    return CallRefused("usage", expected=expected, found=found, advice=advice)
