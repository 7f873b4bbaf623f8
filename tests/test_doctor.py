# SPDX-License-Identifier: Apache-2.0
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from sniper import doctor
from sniper.ops import extension, selfcheck, timings
from sniper.ops.backends.triton import launch


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
    # Settings on both sides of the options.
    given = ["model.d_model=16", "--json", "--config", "ljspeech-dense", "train.device=cpu"]
    status = doctor.main([*given, "--no-check", "model.ffn_dim=16"])
    assert status == 0
    assert "torch's own" in json.loads(capsys.readouterr().out)["runs"]["why"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--config", "dmeo"], 2, "expected a preset"),
        (["--config", ""], 2, "expected a preset"),
        (["--config", "demo", "train.epochs=none"], 2, "train.epochs"),
        (["--config", "demo", "train.device=foo"], 2, "train.device"),
    ],
)
def test_what_cannot_be_used_is_one_line(capsys, monkeypatch, arguments, status, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.main(arguments) == status
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.device=cuda:7", "device: expected a CUDA device, found none"),
        ("train.cuda_graphs=on", "train.cuda_graphs: on expects a CUDA device, got a CPU"),
    ],
)
def test_what_a_config_asks_for_and_is_not_there_is_a_problem(capsys, monkeypatch, setting, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.main(["--json", "--no-check", "--config", "demo", setting]) == 1
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith(f"config demo: {said}")


def test_an_empty_list_of_gpus_is_said(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor.main(["--no-check"]) == 0
    assert "why no GPU: torch sees none: CUDA_VISIBLE_DEVICES=''" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_a_problem(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert doctor.main(["--no-check"]) == 1
    assert "choices are forgotten" in capsys.readouterr().out


@pytest.fixture
def a_gpu(monkeypatch, tmp_path):
    """Plays one GPU; `checks` says what was checked, and how each family did."""
    checks = SimpleNamespace(asked=[], verdicts={"pointer product": selfcheck.Verdict(True, 1e-3)})
    properties = SimpleNamespace(name="Some GPU", major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(launch, "why_not", lambda index: None)
    monkeypatch.setattr(extension, "_has_kernels", lambda device: True)
    monkeypatch.setattr(extension._C, "with_cuda", True)
    monkeypatch.setattr(extension._C, "cuda_version", "13.0.88")
    monkeypatch.setattr(extension._C, "cuda_architectures", "80-real 90-real 90-virtual")

    def check(device, dtype, block, anew=False):
        checks.asked.append((dtype, block, anew))
        return checks.verdicts

    monkeypatch.setattr(selfcheck, "check", check)
    return checks


def test_a_gpu_is_checked_and_its_extension_named(a_gpu, capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "CUDA: 13.0.88" in out and "architectures: 80-real 90-real 90-virtual" in out
    assert "pointer product: ok True, error 0.001" in out
    assert a_gpu.asked == [("bf16", 64, False), ("tf32", 64, False), ("fp32", 0, False)]


def test_a_family_that_failed_its_check_is_a_problem(a_gpu, capsys):
    a_gpu.verdicts["tma wgrad"] = selfcheck.Verdict(False, message="it raises")
    assert doctor.main([]) == 1
    said = "GPU 0: tma wgrad kernels for bf16 in blocks of 64 are left out: it raises"
    assert said in capsys.readouterr().out


def test_what_a_config_uses_is_checked_again_when_asked(a_gpu, capsys):
    settings = ["train.device=cpu", "train.precision=fp32", "sparsity.block_size=32"]
    small = ["model.encoder_layers=1", "model.decoder_layers=1", "train.max_frames=300"]
    assert doctor.main(["--recheck", "--config", "demo", *settings, *small]) == 0
    # The optimizer's kernels know no blocks.
    assert a_gpu.asked == [("fp32", 32, True), ("fp32", 0, True)]
    head = next(x for x in capsys.readouterr().out.splitlines() if "density" in x)
    assert head.split() == ["layer", "density", "fwd", "dgrad", "wgrad"]


def test_a_gpu_that_fails_meanwhile_leaves_a_report(a_gpu, monkeypatch, capsys):
    def full(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(doctor, "layers", full)
    assert doctor.main(["--json", "--config", "demo"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["GPUs"][0]["name"] == "Some GPU"
    assert found["problems"] == [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."
    ]


def test_json_is_printed_on_an_error_too(capsys):
    assert doctor.main(["--json", "--config", "demo", "train.epochs=none"]) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "train.epochs" in found["error"] and found["versions"]["torch"] == torch.__version__
    assert said.err == f"error: {found['error']}\n"


def test_without_the_speech_extra_it_says_what_to_install(monkeypatch, forgotten, capsys):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    forgotten(*[name for name in sys.modules if name.startswith("sniper.training")])
    assert doctor.main(["--config", "demo"]) == 1
    assert "pip install 'sniper-tts[tts]'" in capsys.readouterr().err
