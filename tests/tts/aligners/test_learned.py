# SPDX-License-Identifier: Apache-2.0
"""The learned aligner: it learns, goes on where it was stopped, and says what it cannot do."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from sniper.tts.aligners import learned
from sniper.tts.aligners.learned import AUDIO, FRAME_SECONDS, Example, Training, load_trained
from sniper.tts.aligners.tokens import SILENCE
from sniper.tts.errors import SpeechError, UtteranceError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Utterances of eight "phones", each a band of its own, with the durations they have."""
    folder = tmp_path_factory.mktemp("mels")
    rng = np.random.default_rng(0)
    examples, durations = [], []
    for number in range(32):
        phones = rng.permutation(list("abcdefgh")).tolist()
        lengths = rng.integers(3, 12, len(phones))
        mel = rng.normal(-4, 0.1, (int(lengths.sum()), AUDIO.n_mels))
        start = 0
        for phone, length in zip(phones, lengths, strict=True):
            band = 10 * "abcdefgh".index(phone)
            mel[start : start + length, band : band + 10] += 3
            start += length
        path = folder / f"{number}.npy"
        np.save(path, mel.astype(np.float16))
        examples.append(Example(tuple(phones), path, len(mel)))
        durations.append(lengths)
    return examples, durations


def test_it_finds_the_borders(corpus, tmp_path):
    examples, durations = corpus
    training = Training(examples[:24], tmp_path / "a.pt", "key", steps=100)
    losses = list(training.run())
    assert len(losses) == 100
    trained = load_trained(tmp_path / "a.pt", 100)
    wrong = 0
    for example, exact in zip(examples[24:], durations[24:], strict=True):  # never seen
        found, likelihood = trained.durations(example.tokens, np.load(example.mel).astype("f4"))
        wrong += np.abs(np.cumsum(found) - np.cumsum(exact)).sum()
        assert likelihood < 0
    assert wrong / 56 < 1.5, "frames per border"
    mel = np.load(examples[0].mel).astype("f4")
    _, right = trained.durations(examples[0].tokens, mel)
    _, mixed = trained.durations(examples[0].tokens[::-1], mel)
    assert mixed < right - 0.1, "a transcript that does not match"
    with pytest.raises(UtteranceError, match="was not trained with: x z; python"):
        trained.durations(("a", "z", "x"), mel)
    with pytest.raises(UtteranceError, match="30 phones, but its audio 5 frames"):
        trained.durations(("a",) * 30, mel[:5])


def test_what_is_too_long_is_not_called_unknown():
    """It is never trained on, so its phones may be in no other text; --force would be no help."""
    aligner = learned.LearnedAligner(["a"], np.zeros(AUDIO.n_mels), np.ones(AUDIO.n_mels))
    with pytest.raises(UtteranceError, match="3 phones, but its audio 2 frames"):
        aligner.durations(("z", "z", "z"), np.zeros((2, AUDIO.n_mels), np.float32))


def test_a_pause_is_quiet(monkeypatch):
    """The network cannot tell a vowel from the silence behind it; the loudness can."""
    aligner = learned.LearnedAligner(["k", "a", SILENCE], np.zeros(80), np.ones(80))
    loud = np.repeat([0.0, 1.0, 0.0], [10, 20, 10])
    mel = np.full((40, AUDIO.n_mels), -8, np.float32) + 6 * loud[:, None].astype(np.float32)
    assert np.array_equal(learned.loudness(mel), loud)
    log_prob = torch.full((1, 40, 4), -9.0)
    log_prob[0, :10, 0] = log_prob[0, 10:14, 1] = log_prob[0, 14:, 3] = 0.0
    log_prob[0, 14:, 2] = -0.5  # a little less likely than the pause
    monkeypatch.setattr(aligner.network, "forward", lambda *_: log_prob)
    found, _ = aligner.durations((SILENCE, "k", "a", SILENCE), mel)
    assert found.tolist() == [10, 4, 16, 10]
    even = np.zeros_like(mel)  # without any loudness nothing is known of pauses
    assert not learned.loudness(even).any()
    assert aligner.durations((SILENCE, "k", "a", SILENCE), even)[0][3] > 10


def test_a_stopped_training_gives_the_same_weights(corpus, tmp_path, monkeypatch):
    examples, _ = corpus
    monkeypatch.setattr(learned, "_SAVE_EVERY", 4)
    monkeypatch.setattr(learned, "_MAX_BATCH_FRAMES", 300)  # several batches an epoch
    whole = Training(examples, tmp_path / "a.pt", "key", steps=10)
    list(whole.run())
    stopped = Training(examples, tmp_path / "b.pt", "key", steps=10)
    for _ in zip(range(6), stopped.run(), strict=False):
        pass
    assert load_trained(tmp_path / "b.pt", 10) is None
    again = Training(examples, tmp_path / "b.pt", "key", steps=10)
    assert again.step == 4
    assert len(list(again.run())) == 6
    for name, value in whole.aligner.network.state_dict().items():
        assert torch.equal(value, again.aligner.network.state_dict()[name]), name


def test_checkpoints_of_others_and_damaged_ones_are_begun_anew(corpus, tmp_path):
    examples, _ = corpus
    path = tmp_path / "a.pt"
    list(Training(examples[:4], path, "key", steps=2).run())
    with pytest.warns(UserWarning, match="trained on other recordings or texts"):
        assert Training(examples[:4], path, "other", steps=2).step == 0
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.warns(UserWarning, match="a.pt cannot be used"):
        assert Training(examples[:4], path, "key", steps=2).step == 0


def test_ctrl_c_while_a_checkpoint_is_read_does_not_begin_anew(corpus, tmp_path, monkeypatch):
    examples, _ = corpus
    list(Training(examples[:4], tmp_path / "a.pt", "key", steps=2).run())
    read = torch.load

    def swallow(*args, **settings):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("no such archive") from None
        return read(*args, **settings)

    monkeypatch.setattr(torch, "load", swallow)
    with pytest.raises(KeyboardInterrupt):
        load_trained(tmp_path / "a.pt", 2)


def test_borders_lie_between_frames_and_short_pauses_go(corpus, tmp_path, monkeypatch):
    examples, _ = corpus
    list(Training(examples[:4], tmp_path / "a.pt", "key", steps=1).run())
    aligner = load_trained(tmp_path / "a.pt", 1)
    durations = np.array([2, 3, 1, 4, 5, 1])
    monkeypatch.setattr(aligner, "durations", lambda tokens, mel: (durations, -1.0))
    silence = ("", ("sil",))
    spoken = (silence, ("ab", ("a",)), silence, ("cd", ("c", "d")), silence)
    text, _ = aligner.align(np.zeros(16 * AUDIO.hop_length), spoken)
    borders = [round(i.end / FRAME_SECONDS, 6) for i in text.phones]
    assert [i.label for i in text.phones] == ["", "a", "c", "d", ""]
    assert borders == [1.5, 5.5, 9.5, 14.5, 16], "the pause of one frame went to the phone before"
    assert text.frames == 12


def test_nothing_to_train_on(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, AUDIO.n_mels)))
    with pytest.raises(SpeechError, match="as many frames as phones"):
        Training([Example(("a", "b", "c"), tmp_path / "a.npy", 2)], tmp_path / "a.pt", "key")
