# SPDX-License-Identifier: Apache-2.0
"""A run that starts from another: by name, with everything new told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from speech import tiny

from sniper.synthesize import load_speaker
from sniper.synthesize import main as synthesize
from sniper.train import main
from sniper.training import checkpoint
from sniper.training.config import dump
from sniper.training.finetune import initialise
from sniper.training.settings import ConfigError
from sniper.tts.corpus.dataset import load_corpus_info
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.text.text import Vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def saved(trained_run: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(trained_run, "best", weights_only=True)


def _model(corpus: Path, info, speakers: int = 0, **changes) -> FastSpeech2:
    config = tiny(corpus, corpus / "unused").fastspeech2_config(len(info.vocabulary), 80, speakers)
    return FastSpeech2(replace(config, **changes))


def test_rows_are_found_by_name(demo_corpus: Path, saved):
    info = load_corpus_info(demo_corpus)
    first, *others = info.vocabulary.symbols[2:-1]
    ours = [*info.vocabulary.symbols[:2], *reversed(others), "NEW", info.vocabulary.symbols[-1]]
    other = replace(info, vocabulary=Vocabulary(ours))
    model = _model(demo_corpus, other)
    drawn = model.token_embed.weight.clone()
    lines = initialise(model, other, saved)
    assert lines == ["tokens that start fresh: NEW", f"tokens that are left behind: {first}"]
    theirs = saved.weights["token_embed.weight"]
    for row, symbol in enumerate(ours):
        wanted = drawn[row] if symbol == "NEW" else theirs[info.vocabulary.symbols.index(symbol)]
        assert model.token_embed.weight[row].equal(wanted), symbol
    own = model.state_dict()
    rest = set(own) - {"token_embed.weight"}
    assert rest and all(own[name].equal(saved.weights[name]) for name in rest)


def test_what_does_not_fit_is_told_or_refused(demo_corpus: Path, saved):
    info = load_corpus_info(demo_corpus)
    lines = initialise(_model(demo_corpus, info, postnet_channels=16), info, saved)
    assert lines[0].startswith("weights that start fresh: postnet.")
    with pytest.raises(ConfigError, match="has d_model 32, this model 16$"):
        initialise(_model(demo_corpus, info, d_model=16), info, saved)
    louder = replace(info, features=replace(info.features, f_min=0.0, f0_min=60.0))
    said = "other mels: f_min 80.0 there, 0.0 here; prepare the corpus with --f-min 80.0$"
    with pytest.raises(ConfigError, match=said):
        initialise(_model(demo_corpus, info), louder, saved)


def test_other_statistics_are_told_and_this_corpus_own_are_used(demo_corpus: Path, saved):
    info = load_corpus_info(demo_corpus)
    theirs = info.statistics
    assert initialise(_model(demo_corpus, info), info, saved) == []
    mean = theirs.mel_mean + 0.5 * theirs.mel_std
    mean[3] -= 2 * theirs.mel_std[3]
    other = replace(theirs, mel_mean=mean, mel_std=1.5 * theirs.mel_std, pitch_mean=np.log(100.0))
    here = replace(info, statistics=other, features=replace(info.features, f0_min=60.0))
    lines = initialise(model := _model(demo_corpus, info), here, saved)
    hz = np.exp(theirs.pitch_mean)
    assert lines == [
        "the mel's mean lies +0.50 deviations from there in the median of its bins (at most "
        f"-1.50), its deviation is 1.50 times that; the mean pitch is {hz:.0f} Hz there, 100 Hz "
        "here: everything is normalised by the statistics of this corpus",
        f"pitch was searched for elsewhere (f0_min {info.features.f0_min} there, 60.0 here): taken "
        "as it is",
    ]
    assert all(p.equal(saved.weights[n]) for n, p in model.state_dict().items())


def test_one_voice_becomes_three(
    trained_run: Path, speakers_corpus: Path, tmp_path: Path, capsys, monkeypatch
):
    """The whole way: train from another run, with what SNIPER saw, and speak as one of them."""
    from sniper.sparsity import Sniper

    scored, inner = {}, Sniper.score

    def score(self, *args, **kwargs):
        scored.update({n: p.detach().clone() for n, p in self.model.named_parameters()})
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Sniper, "score", score)
    data = {"kind": "ljspeech", "prepared": str(speakers_corpus), "speakers": "column"}
    config = tiny(speakers_corpus / "corpus", tmp_path / "run", data=data, train={"epochs": 1})
    (tmp_path / "c.yaml").write_text(dump(config))
    arguments = ["--config", str(tmp_path / "c.yaml"), "--init", str(trained_run)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"starts from the weights of {trained_run}\n" in out
    assert "weights that start fresh: speaker_embed.weight\n" in out
    # Of several speakers the command to speak with names one.
    assert f"sniper.synthesize --checkpoint {tmp_path / 'run'} --speaker anna " in out
    theirs = checkpoint.load(trained_run, "best", weights_only=True).weights
    assert len(scored) > 30
    assert all(p.equal(theirs[n]) for n, p in scored.items() if n != "speaker_embed.weight")
    assert main(arguments) == 0 and "finished already" in capsys.readouterr().out

    text = ["The grey horse slept.", "--checkpoint", str(tmp_path / "run")]
    mels = {}
    for who in ("anna", "clara"):
        assert synthesize([*text, "--mel", str(tmp_path / who), "--speaker", who]) == 0
        mels[who] = (tmp_path / f"{who}.npy").read_bytes()
    assert mels["anna"] != mels["clara"]
    assert synthesize([*text, "--mel", str(tmp_path / "first")]) == 0
    assert "note: spoken by anna, the first of 3" in capsys.readouterr().err
    assert (tmp_path / "first.npy").read_bytes() == mels["anna"]
    assert synthesize([*text, "--mel", str(tmp_path / "x"), "--speaker", "anne"]) == 1
    assert "the model has no 'anne', but anna among its 3" in capsys.readouterr().err
    assert synthesize([text[0], "--checkpoint", str(trained_run), "--mel", "x", "--speaker=a"]) == 1
    assert "the model has no 'a', but none with a name" in capsys.readouterr().err


def test_pitch_is_that_of_the_speaker(speakers_corpus: Path):
    info = load_corpus_info(speakers_corpus)
    torch.manual_seed(0)
    from sniper.tts.speaker import Speaker

    speaker = Speaker(_model(speakers_corpus, info, 3), info)
    assert info.statistics_of("ben").pitch_mean == info.speakers["ben"].pitch_mean
    with pytest.raises(ValueError, match="speakers: expected the speakers' numbers"):
        speaker.model.infer(torch.ones(1, 3, dtype=torch.int64))


def test_a_run_of_one_speaker_says_nothing_of_speakers(trained_run: Path):
    meta = json.loads((checkpoint.find(trained_run) / "meta.json").read_text())
    assert "speakers" not in meta["speech"]
    assert load_speaker(trained_run).who() is None
