"""Commands are shown as they can be typed where the package is."""

import pytest

from sppnet.runtime import checkout


def test_a_checkout_shows_its_scripts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(checkout.ROOT)
    assert checkout.is_checkout()
    assert checkout.shown_command("prepare_data") == "python scripts/prepare_data.py"


def test_from_another_folder_the_console_command_is_shown(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert checkout.shown_command("train") == "sppnet train"


def test_an_installed_package_shows_the_console_command(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert not checkout.is_checkout()
    assert checkout.shown_command("prepare_data") == "sppnet prepare_data"
