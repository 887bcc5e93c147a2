"""``slimbrain-tools models``: what is printed, and what is refused."""

from __future__ import annotations

import pytest

from slimbrain_app.cli.tools import main
from slimbrain_app.errors import Exit
from slimbrain_app.model.packages import load_encoder, load_package


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)


def models(*words: object) -> int:
    return main(["models", *map(str, words)])


def test_packages_at_hand_are_listed_with_preset_training_and_checksum(tmp_path, capsys):
    assert models("create", "tiny", tmp_path / "own" / "mine", "--seed", 3) == Exit.DONE
    capsys.readouterr()
    assert models("list", tmp_path / "own") == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    mine, shipped = load_package("mine", [tmp_path / "own"]), load_package("tiny")
    assert lines == [
        f"{mine.folder}: mine, tiny, untrained, {mine.sha256}",
        f"{shipped.folder}: tiny, tiny, trained, {shipped.sha256}",
    ]


def test_a_copy_can_bring_a_card_of_its_own(tmp_path, capsys):
    (tmp_path / "card.md").write_text("# For whom\n")
    assert models("copy", "tiny", tmp_path / "lent", "--card", tmp_path / "card.md") == Exit.DONE
    assert (load_package(tmp_path / "lent").folder / "card.md").read_text() == "# For whom\n"
    assert models("copy", "tiny", tmp_path / "other", "--card", tmp_path / "none") == Exit.USAGE
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_goes_out_comes_back_and_starts_a_base_package(tmp_path, capsys):
    official, file = tmp_path / "official", tmp_path / "best_model.pth"
    assert models("create", "official", official) == Exit.DONE
    assert models("export", official, file) == Exit.DONE
    assert models("convert", file, tmp_path / "back", "--deletion", "none") == Exit.DONE
    assert "licence unknown" in capsys.readouterr().out
    back = load_package(tmp_path / "back")
    assert back.config.encoder.deletion == "none"
    assert [notice.code for notice in back.identity.notices] == ["assumed-input"]
    assert models("create", "base", tmp_path / "base", "--start-from", tmp_path / "back") == 0
    base = load_package(tmp_path / "base")
    assert (base.preset, base.trained, base.contract) == ("base", False, back.contract)
    kernels = [load_encoder(package).blocks[9].mlp.fc1.weight for package in (base, back)]
    assert (kernels[0] == kernels[1]).all()


def test_only_base_can_start_from_another_package(tmp_path):
    assert models("create", "tiny", tmp_path / "new", "--start-from", "tiny") == Exit.USAGE
    assert models("create", "base", tmp_path / "new", "--start-from", "tiny") == Exit.USAGE
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("variable", [True, False])
def test_the_hub_is_the_one_that_was_named(tmp_path, capsys, monkeypatch, variable):
    endpoint = "http://127.0.0.1:9"  # The port that discards: nobody answers.
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_ENDPOINT", endpoint if variable else "http://127.0.0.1:1")
    words = () if variable else ("--endpoint", endpoint)
    assert models("fetch", "acme/small", *words) == Exit.CONFIGURATION
    assert f"{endpoint}/acme/small/resolve/main/checksums.json" in capsys.readouterr().err
