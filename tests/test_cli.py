# SPDX-License-Identifier: Apache-2.0
"""The console command: what it lists, where it hands on, and what it says to a slip."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from sniper import __version__, cli


def test_help_has_a_line_for_every_command(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("train", "align", "prepare", "synthesize", "export", "compare", "doctor"):
        (line,) = [x for x in lines if x.startswith(f"  {name} ")]
        assert len(line.split()) > 3 and len(line) <= 80
    assert cli.main([]) == 2 and "commands:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "align", "prepare", "synthesize", "export", "compare"])
def test_each_command_answers_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0 and f"sniper.{name}" in capsys.readouterr().out


def test_arguments_and_status_pass_through(monkeypatch):
    asked = []

    def module(name: str) -> SimpleNamespace:
        return SimpleNamespace(main=lambda argv: asked.append((name, argv)) or 7)

    monkeypatch.setattr(cli, "import_module", module)
    assert cli.main(["doctor", "--json"]) == 7
    assert cli.main(["compare", "--config", "--help"]) == 7
    assert asked == [
        ("sniper.doctor", ["--json"]),
        ("sniper.compare.__main__", ["--config", "--help"]),
    ]


def test_commands_are_what_argv_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sniper-tts", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out == f"sniper-tts {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("trian", "did you mean train?"), ("synthesise", "did you mean synthesize?")],
)
def test_a_slip_gets_the_nearest(typed, answer, capsys):
    assert cli.main([typed]) == 2
    assert capsys.readouterr().err == f"error: {typed!r} is not a command of sniper-tts: {answer}\n"


def test_what_is_near_nothing_gets_the_list(capsys):
    assert cli.main(["--frobnicate"]) == 2
    assert "expected one of train, align, prepare," in capsys.readouterr().err


def test_a_command_loads_no_other(tmp_path):
    """`python -m sniper` too."""
    program = (
        "import runpy, sys\n"
        "sys.argv = ['sniper', 'export', '-h']\n"
        "try:\n    runpy.run_module('sniper', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "print([m for m in sys.modules if m.startswith(('sniper.train', 'sniper.compare'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
