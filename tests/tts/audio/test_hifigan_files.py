# SPDX-License-Identifier: Apache-2.0
"""Generators as people have them: the same samples as from their own code, or one clear error."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from vocoders import write_hugging_face, write_jik876, write_parallel_wavegan

from sniper.tts.audio.hifigan_files import read_hifigan
from sniper.tts.errors import SpeechError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def mel() -> torch.Tensor:
    return torch.randn(1, 30, 80)


def _close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 0.1, "loud enough that a difference would show"
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "old"), [(1, True), (1, False), (2, True)])
def test_jik876(tmp_path: Path, mel: torch.Tensor, kind: int, old: bool):
    reference = write_jik876(tmp_path, kind, old)
    for path in (tmp_path, tmp_path / "generator"):
        generator, settings = read_hifigan(path)
        _close(generator(mel), reference(mel))
    found = (settings.log_base, settings.floor, settings.mean, settings.f_min, settings.f_max)
    assert found == ("e", 1e-5, None, 80, 7600)


@pytest.mark.parametrize(("rates", "both"), [(None, True), ([5, 5, 4, 3], False)])
def test_parallel_wavegan(tmp_path: Path, mel: torch.Tensor, rates, both: bool):
    reference, mean, scale = write_parallel_wavegan(tmp_path, rates, both)
    for path in (tmp_path, tmp_path / "checkpoint-10steps.pkl"):
        generator, settings = read_hifigan(path)
        _close(generator(mel), reference(mel))
    assert settings.log_base == "10" and settings.floor == 1e-10 and settings.win_length == 1024
    np.testing.assert_array_equal(settings.mean, mean)
    np.testing.assert_array_equal(settings.scale, scale)


def test_statistics_as_numpy(tmp_path: Path):
    write_parallel_wavegan(tmp_path, format="npy", log_base=None, fmin=None, fmax=None)
    np.save(tmp_path / "stats.npy", np.stack([np.arange(80), np.ones(80)]))
    settings = read_hifigan(tmp_path)[1]
    assert settings.mean is not None and settings.mean.tolist() == list(range(80))
    assert (settings.log_base, settings.f_min, settings.f_max) == ("e", 0, 11025)


@pytest.mark.parametrize("normalised", [True, False])
def test_hugging_face(tmp_path: Path, mel: torch.Tensor, normalised: bool):
    reference = write_hugging_face(tmp_path, normalize_before=normalised)
    generator, settings = read_hifigan(tmp_path)
    assert (settings.mean is not None) == normalised and settings.log_base == "10"
    inside = mel
    if settings.mean is not None:
        inside = (mel - torch.from_numpy(settings.mean)) / torch.from_numpy(settings.scale)
    _close(generator(inside), reference(mel))


def test_the_half_of_a_hugging_face_model(tmp_path: Path, mel: torch.Tensor):
    reference = write_hugging_face(tmp_path / "half", normalize_before=False)
    config = json.loads((tmp_path / "half/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"vocoder_config": config}))
    weights = {f"vocoder.{k}": v for k, v in reference.state_dict().items()}
    torch.save({**weights, "model.encoder.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    _close(read_hifigan(tmp_path)[0](mel), reference(mel))


def _said(path: Path) -> str:
    with pytest.raises(SpeechError) as error:
        read_hifigan(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_files(tmp_path: Path):
    write_jik876(tmp_path / "whole")
    content = (tmp_path / "whole/generator").read_bytes()

    def with_weights(change) -> Path:
        weights = torch.load(tmp_path / "whole/generator", weights_only=True)["generator"]
        change(weights)
        torch.save({"generator": weights}, tmp_path / "broken/generator")
        return tmp_path / "broken"

    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    broken = tmp_path / "broken/generator"
    for damage in (b"", b"text", content[: len(content) // 2], content[:-40]):
        broken.write_bytes(damage)
        assert str(broken) in _said(broken)
    assert "conv_pre.weight_g" not in _said(with_weights(lambda w: w.pop("conv_pre.weight_g")))
    assert "blocks.0.first.0.bias is missing" in _said(
        with_weights(lambda w: w.pop("resblocks.0.convs1.0.bias"))
    )
    assert "extra has no place in it" in _said(
        with_weights(lambda w: w.update(extra=torch.ones(1)))
    )
    assert "post.bias: expected [1], got [2]" in _said(
        with_weights(lambda w: w.update({"conv_post.bias": torch.ones(2)}))
    )
    assert "ups.0.bias holds NaN" in _said(
        with_weights(lambda w: w["ups.0.bias"].fill_(float("nan")))
    )
    torch.save({"state": {}}, broken)
    assert "no 'generator'" in _said(broken)


class _Runs:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("where, name", [(safetensors.torch, "load_file"), (torch, "load")])
def test_a_reader_that_swallows_ctrl_c_is_no_damage(tmp_path: Path, monkeypatch, where, name: str):
    def swallow(*args, **settings):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("could not determine the shape of object") from None

    write_hugging_face(tmp_path, normalize_before=False)
    if where is torch:
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(where, name, swallow)
    with pytest.raises(KeyboardInterrupt):
        read_hifigan(tmp_path)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_jik876(tmp_path)
    torch.save({"generator": _Runs()}, tmp_path / "generator")
    assert "more than weights, which is not executed" in _said(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hop_size": 300}, "hop_length is 300, but its network's is 256"),
        ({"resblock": "2"}, "has no place in it"),
        ({"upsample_kernel_sizes": [16, 16, 7]}, "exceed its rate by an even number"),
        ({"upsample_rates": "many"}, "upsample_rates"),
        ({"sampling_rate": "22050"}, "sample_rate: expected a number, got '22050'"),
        ({"fmin": [0]}, "f_min: expected a number"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path: Path, change: dict, said: str):
    write_jik876(tmp_path, **change)
    assert said in _said(tmp_path)


def test_descriptions_that_are_not_there(tmp_path: Path):
    assert "no such vocoder" in _said(tmp_path / "nowhere")
    assert "no HiFi-GAN in" in _said(tmp_path)
    write_jik876(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is damaged" in _said(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "lacks 'resblock'" in _said(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json cannot be read: it belongs beside the weights" in _said(tmp_path)
    shutil.copy(tmp_path / "generator", tmp_path / "g_1")
    assert "several generators, name one: g_1, generator" in _said(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator_type": "MelGANGenerator"}, "generator_type: expected 'HiFiGANGenerator'"),
        ({"use_causal_conv": True}, "use_causal_conv: expected False, got True"),
        ({"out_channels": 4}, "out_channels: expected 1, got 4"),
        ({"log_base": 3}, "log_base: expected 10, 2 or null, got 3"),
    ],
)
def test_other_generators_of_parallel_wavegan(tmp_path: Path, change: dict, said: str):
    write_parallel_wavegan(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yml").read_text())
    for key, value in change.items():
        where = config if key in ("generator_type", "log_base") else config["generator_params"]
        where[key] = value
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    assert said in _said(tmp_path)


def test_statistics_that_cannot_be_used(tmp_path: Path):
    write_parallel_wavegan(tmp_path)
    (tmp_path / "stats.h5").write_bytes(b"no")
    assert "stats.h5 cannot be read" in _said(tmp_path)
    (tmp_path / "stats.h5").unlink()
    assert "needs stats.h5 beside it" in _said(tmp_path)
