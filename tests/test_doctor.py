# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest
import torch

from sniper import doctor
from sniper.ops import selfcheck, timings


def test_the_report_names_what_results_depend_on(capsys):
    assert doctor.main(["--no-check"]) == 0
    out = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in out and "kernels: " in out and "problems: none" in out


def test_json_is_one_object(capsys):
    assert doctor.main(["--json", "--no-check"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__ and found["problems"] == []
    assert found["cache"]["writable"] is True


@pytest.fixture
def few_choices(monkeypatch, tmp_path):
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)


def test_what_each_layer_of_a_config_runs(capsys, few_choices):
    settings = ["train.device=cpu", "train.max_frames=300", "model.encoder_layers=1"]
    assert doctor.main(["--json", "--config", "demo", *settings, "model.decoder_layers=1"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert found["device"] == "cpu" and found["layers"]
    for layer in found["layers"].values():
        assert 0 < layer["density"] < 0.5
        passes = [name for name in ("fwd", "dgrad", "wgrad") if name in layer]
        assert {"fwd", "wgrad"} <= set(passes)  # some input needs no gradient
        assert all(layer[p].split()[0] in ("cpu", "dense") for p in passes)


def test_a_dense_config_says_so(capsys):
    model = ["model.d_model=16", "model.ffn_dim=16"]
    status = doctor.main(["--json", "--config", "ljspeech-dense", "train.device=cpu", *model])
    assert status == 0
    assert "torch's own" in json.loads(capsys.readouterr().out)["runs"]["why"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--config", "dmeo"], 2, "expected a preset"),
        (["--config", "demo", "train.epochs=none"], 2, "train.epochs"),
        (["--config", "demo", "train.device=foo"], 2, "train.device"),
        (["--config", "demo", "train.device=cuda:7"], 1, "device"),
    ],
)
def test_what_cannot_be_used_is_one_line(capsys, monkeypatch, arguments, status, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.main(arguments) == status
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_a_problem(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert doctor.main(["--no-check"]) == 1
    assert "choices are forgotten" in capsys.readouterr().out


def test_a_family_that_failed_its_check_is_a_problem(monkeypatch):
    verdict = selfcheck.Verdict(False, message="it raises")
    gpu = {"self-check": {"bf16": {"tma product": vars(verdict)}}}
    monkeypatch.setattr(doctor, "gpus", lambda check: [gpu])
    options = type("Options", (), {"no_check": False, "config": None})()
    found, problems = doctor.report(options)
    assert problems == ["GPU 0: tma product kernels in bf16 are left out: it raises"]
    assert "    bf16:" in "\n".join(doctor.render(found))


def test_without_the_speech_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for name in [n for n in sys.modules if n.startswith("sniper.training")]:
        monkeypatch.delitem(sys.modules, name)
    assert doctor.main(["--config", "demo"]) == 1
    assert "pip install 'sniper-tts[tts]'" in capsys.readouterr().err
