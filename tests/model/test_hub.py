"""Packages from a hub: a small one on this machine, that may break in every way."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from slimbrain_app.errors import CallRefused, Exit
from slimbrain_app.files import cached_packages
from slimbrain_app.model.extractor import ExtractorSizes, TemporalExtractor
from slimbrain_app.model.hub import fetch_package, find_or_fetch
from slimbrain_app.model.packages import (
    create_package,
    list_packages,
    load_encoder,
    load_extractor,
    load_package,
    save_package,
)

PATH = "/acme/small/resolve/main/"


@dataclass
class Hub:
    """Serves ``files`` by path; ``cut`` bodies end early, ``moved`` paths are elsewhere."""

    endpoint: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def serve(self, folder: Path, path: str = PATH) -> None:
        self.files |= {path + file.name: file.read_bytes() for file in folder.iterdir()}

    def sign(self, path: str = PATH) -> None:
        """Make checksums fit the files."""
        digests = {
            name.removeprefix(path): hashlib.sha256(content).hexdigest()
            for name, content in self.files.items()
            if not name.endswith("checksums.json")
        }
        self.files[path + "checksums.json"] = json.dumps(digests).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    return cached_packages()


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            if self.path in hub.moved:
                self.send_response(302)
                self.send_header("Location", hub.moved[self.path])
                self.end_headers()
            elif self.path in hub.files:
                content = hub.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if self.path in hub.cut else content)
            else:
                self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return create_package(tmp_path_factory.mktemp("published") / "small", "tiny", seed=5).folder


def refuse(hub, reason, **options) -> CallRefused:
    with pytest.raises(CallRefused) as caught:
        fetch_package("acme/small", endpoint=hub.endpoint, **options)
    assert caught.value.reason == reason
    return caught.value


def assert_nothing_is_left(cache) -> None:
    assert not cache.exists() or not list(cache.iterdir())


def test_a_fetched_package_is_the_published_one_and_found_by_its_name(hub, made, cache):
    hub.serve(made)
    published = load_package(made)
    fetched = fetch_package("acme/small", endpoint=hub.endpoint)
    assert (fetched.name, fetched.sha256) == ("small", published.sha256)
    assert fetched.folder == cache / "small"
    assert load_package("small") == fetched
    assert {path.name for path in cache.iterdir()} == {"small"}
    assert {file.name: file.read_bytes() for file in made.iterdir()} == {
        file.name: file.read_bytes() for file in fetched.folder.iterdir()
    }


def test_an_extractor_comes_along(hub, made, tmp_path):
    package = load_package(made)
    extractor = TemporalExtractor(ExtractorSizes(width=16, heads=2), seed=1)
    config = replace(package.config, extractor=extractor.sizes)
    folder = tmp_path / "small"
    save_package(folder, config, load_encoder(package), extractor, card="# small")
    hub.serve(folder)
    assert load_extractor(fetch_package("acme/small", endpoint=hub.endpoint)) is not None


def test_what_the_cache_holds_comes_after_the_folders_searched_and_before_the_installed(
    cache, tmp_path
):
    create_package(cache / "tiny", "tiny", seed=7)
    create_package(tmp_path / "own" / "tiny", "tiny", seed=8)
    assert load_package("tiny").config.seed == 7
    assert load_package("tiny", [tmp_path / "own"]).config.seed == 8


def test_packages_are_listed_as_they_are_found_damaged_ones_too(hub, made, cache, tmp_path):
    hub.serve(made)
    fetched = fetch_package("acme/small", endpoint=hub.endpoint)
    own = create_package(tmp_path / "own" / "mine", "tiny", seed=8)
    shutil.copytree(own.folder, tmp_path / "own" / "worn")
    (tmp_path / "own" / "worn" / "card.md").unlink()
    mine, worn, small, tiny = list_packages([tmp_path / "own"])
    assert (mine, small, tiny) == (own, fetched, load_package("tiny"))
    assert isinstance(worn, CallRefused)
    assert "worn" in str(worn)


def test_a_revision_is_asked_for_by_name(hub, made):
    hub.serve(made, "/acme/small/resolve/refs%2Fpr%2F1/")
    fetch_package("acme/small@refs/pr/1", endpoint=hub.endpoint + "/")
    assert all(path.startswith("/acme/small/resolve/refs%2Fpr%2F1/") for path in hub.asked)


def test_a_hub_may_send_on_to_another_place(hub, made):
    hub.serve(made)
    hub.files["/store/3f"] = hub.files.pop(PATH + "model.safetensors")
    hub.moved[PATH + "model.safetensors"] = "/store/3f"
    assert fetch_package("acme/small", endpoint=hub.endpoint).sha256 == load_package(made).sha256


def test_a_new_version_replaces_the_old_one_and_a_broken_one_does_not(hub, made, tmp_path):
    hub.serve(made)
    old = fetch_package("acme/small", endpoint=hub.endpoint)
    newer = create_package(tmp_path / "small", "tiny", seed=6)
    hub.serve(newer.folder)
    hub.cut = {PATH + "model.safetensors"}
    refuse(hub, "package-bad")
    assert load_package("small") == old
    hub.cut = set()
    fetch_package("acme/small", endpoint=hub.endpoint)
    assert load_package("small").sha256 == newer.sha256


def test_only_the_package_with_the_stated_checksum_is_taken(hub, made, cache):
    hub.serve(made)
    right = load_package(made).sha256
    refusal = refuse(hub, "package-bad", sha256="0" * 64)
    assert right in refusal.found
    assert_nothing_is_left(cache)
    assert hub.asked == [PATH + "checksums.json"], "more was fetched than had to be"
    assert fetch_package("acme/small", sha256=right.upper(), endpoint=hub.endpoint).sha256 == right


@pytest.mark.parametrize("name", ["checksums.json", "config.json", "card.md", "model.safetensors"])
@pytest.mark.parametrize("fault", ["gone", "cut", "changed"])
def test_nothing_is_kept_of_a_package_with_a_fault(hub, made, cache, name, fault):
    hub.serve(made)
    if fault == "gone":
        del hub.files[PATH + name]
    elif fault == "cut":
        hub.cut.add(PATH + name)
    else:
        hub.files[PATH + name] = b"\x00" + hub.files[PATH + name][1:]
    refusal = refuse(hub, "package-missing" if fault == "gone" else "package-bad")
    assert refusal.file == hub.endpoint + PATH + name
    assert refusal.exit_code == Exit.CONFIGURATION
    assert_nothing_is_left(cache)


def test_weights_that_do_not_fit_their_sizes_are_refused_even_under_their_checksum(
    hub, made, cache
):
    hub.serve(made)
    config = json.loads(hub.files[PATH + "config.json"])
    config["encoder"]["width"] = 96
    hub.files[PATH + "config.json"] = json.dumps(config).encode()
    hub.sign()
    refuse(hub, "package-bad")
    assert_nothing_is_left(cache)


@pytest.mark.parametrize("name", ["setup.py", "model.pkl", "../model.json", "checksums.json "])
def test_files_that_no_package_has_are_not_fetched(hub, made, cache, name):
    hub.serve(made)
    hub.files[PATH + name] = b"x"
    hub.sign()
    refuse(hub, "package-bad")
    assert not any(name in path for path in hub.asked)
    assert_nothing_is_left(cache)


def test_a_package_that_is_not_there_is_refused(hub, cache):
    assert "404" in refuse(hub, "package-missing").found
    assert_nothing_is_left(cache)


def test_without_a_network_the_advice_is_to_copy_by_hand(cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        hub = Hub(f"http://127.0.0.1:{closed.getsockname()[1]}")
        refusal = refuse(hub, "package-missing")
    assert "by hand" in refusal.advice
    assert_nothing_is_left(cache)


def test_a_server_that_speaks_no_http_is_refused(cache):
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub = Hub(f"http://127.0.0.1:{server.getsockname()[1]}")

        def babble() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"220 mail.example ready\r\n")

        thread = Thread(target=babble)
        thread.start()
        refuse(hub, "package-missing")
        thread.join()
    assert_nothing_is_left(cache)


def test_a_silent_server_is_given_up(monkeypatch, cache):
    monkeypatch.setattr("slimbrain_app.model.hub._PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        refuse(Hub(f"http://127.0.0.1:{server.getsockname()[1]}"), "package-missing")
    assert_nothing_is_left(cache)


@pytest.mark.parametrize(
    "identifier", ["small", "a/b/c", "acme/..", "acme/.hidden", "", "acme/small@", "a b/c", "ä/b"]
)
def test_what_is_no_identifier_is_refused(hub, identifier):
    with pytest.raises(CallRefused, match="usage"):
        fetch_package(identifier, endpoint=hub.endpoint)
    assert not hub.asked


@pytest.mark.parametrize("endpoint", ["hub.example", "file:///tmp", "http://", "ftp://hub.example"])
def test_what_is_no_address_of_a_hub_is_refused(endpoint):
    with pytest.raises(CallRefused, match="usage"):
        fetch_package("acme/small", endpoint=endpoint)


def test_the_shipped_package_is_never_shadowed(hub, made):
    hub.serve(made, "/acme/tiny/resolve/main/")
    with pytest.raises(CallRefused, match="usage"):
        fetch_package("acme/tiny", endpoint=hub.endpoint)
    assert not hub.asked


def test_what_was_fetched_is_asked_for_again_only_if_it_may_have_changed(hub, made, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.serve(made)
    first = find_or_fetch("acme/small")
    hub.asked.clear()
    assert find_or_fetch("acme/small") == first
    assert hub.asked == [f"{PATH}checksums.json"]
    hub.asked.clear()
    assert find_or_fetch("acme/small", sha256=first.sha256.upper()) == first
    assert find_or_fetch("small") == find_or_fetch(first.folder) == first
    assert hub.asked == []


def test_what_the_hub_has_changed_is_fetched_anew(hub, made, cache):
    hub.serve(made)
    first = find_or_fetch("acme/small", endpoint=hub.endpoint)
    hub.files[f"{PATH}card.md"] = b"# Another"
    hub.sign()
    second = find_or_fetch("acme/small", endpoint=hub.endpoint)
    assert second.sha256 != first.sha256
    assert (cache / "small/card.md").read_text() == "# Another"
    with pytest.raises(CallRefused, match="package-bad"):
        find_or_fetch("acme/small", endpoint=hub.endpoint, sha256=first.sha256)


def test_a_folder_wins_over_an_identifier_of_the_same_letters(hub, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "acme/small")
    assert find_or_fetch("acme/small", endpoint=hub.endpoint).folder == tmp_path / "acme/small"
    assert hub.asked == []
    with pytest.raises(CallRefused, match="package-bad"):
        find_or_fetch(made, sha256="0" * 64)
