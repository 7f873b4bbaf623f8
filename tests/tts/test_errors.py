# SPDX-License-Identifier: Apache-2.0
"""Optional packages and progress bars."""

import sys

import pytest

from sniper.tts.errors import MissingDependency, SpeechError, progress_bar, require


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyworld", None)
    with pytest.raises(
        MissingDependency, match=r"pyworld-prebuilt .*'sniper-tts\[tts\]'"
    ) as caught:
        require("pyworld")
    assert isinstance(caught.value, SpeechError) and "\n" not in str(caught.value)


def test_progress_bar_can_be_silent(capsys):
    assert list(progress_bar(range(3), "x", 3, show=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    list(progress_bar(range(3), "x", 5, done=2))
    assert "5/5" in capsys.readouterr().err
