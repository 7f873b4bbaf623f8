# SPDX-License-Identifier: Apache-2.0
"""Presets, files, overrides: what they mean, and what is said about those that mean nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from speech import LATER_SETTINGS

from sniper.training import config as module
from sniper.training.config import Config, differences, dump, from_dict, load, with_defaults_of
from sniper.training.settings import PRESETS, ConfigError
from sniper.tts.corpus.health import MAX_UTTERANCE_SECONDS

RESOLVED = json.loads((Path(__file__).parent / "golden/resolved.json").read_text())
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def test_presets_are_those_of_the_readme():
    assert NAMES == [
        "demo",
        "ljspeech-dense",
        "ljspeech-sniper",
        "ljspeech-sniper20",
        "ljspeech-sniper40",
        "ljspeech-sparse20",
        "ljspeech-sparse40",
        "small-corpus",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_preset_loads_and_its_dump_loads_again(name: str, tmp_path: Path):
    config = load(name)
    assert config.name == name
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(str(path)) == config
    # A checkpoint keeps it as JSON, which turns the schedule's epochs into text.
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", [name for name in NAMES if name in RESOLVED])
def test_a_preset_means_what_it_meant_when_its_runs_were_made(name: str):
    flat = module.flat(json.loads(json.dumps(load(name).to_dict())))
    assert flat == {**LATER_SETTINGS, **RESOLVED["defaults"], **RESOLVED[name]}


def test_presets_are_the_papers_runs():
    def schedule(name: str) -> dict:
        return dict(load(name).sparsity_schedule())

    assert schedule("ljspeech-dense") == {0: 0.0}
    assert schedule("ljspeech-sparse20") == {0: 0.2}
    assert schedule("ljspeech-sparse40") == {0: 0.4}
    assert schedule("ljspeech-sniper20") == {0: 0.2, 5: 0.1, 10: 0.0}
    assert schedule("ljspeech-sniper40") == {0: 0.4, 5: 0.2, 10: 0.1, 20: 0.0}
    for name in ("ljspeech-sparse20", "ljspeech-sniper40"):
        assert load(name).sparsity.block_size is None
        assert load(name).sparsity.paper_exact


def test_a_small_corpus_trains_as_it_was_tried():
    config = load("small-corpus")
    assert dict(config.sparsity_schedule()) == {0: 0.8, 6: 0.5, 10: 0.2, 14: 0.0}
    assert config.sparsity.block_size == 32 and config.model == load("demo").model
    # Patience counts at the last sparsity, and the run is long enough for it to run out.
    assert config.train.patience and config.train.epochs > 14 + config.train.patience
    features = config.feature_config()
    longest = MAX_UTTERANCE_SECONDS * features.sample_rate / features.hop_length
    assert config.train.max_frames >= longest, "what prepare does not call too long fits a batch"


def test_overrides():
    config = load(
        "demo",
        [
            "train.epochs=3",
            "train.lr=1e-1",
            "data.root=/data/My Speech",
            "train.batches_per_epoch=null",
            "sparsity.schedule={0: 0.5, 2: 0}",
            "model.d_model=64",
            "model.pitch_predictor.channels=32",
            "sparsity.exclude=[norm]",
            "sample_text={HH AH0 L OW1}",
            "features.log_base=10",
            "data.lexicon=null",
            "name=2001-13-45",
        ],
    )
    assert (config.train.epochs, config.train.lr) == (3, 0.1)
    assert config.data.root == "/data/My Speech"
    assert (config.sample_text, config.name) == ("{HH AH0 L OW1}", "2001-13-45")
    assert config.features == {"log_base": "10"} and config.data.lexicon is None
    assert config.train.batches_per_epoch is None
    assert config.sparsity.schedule == {0: 0.5, 2: 0.0}  # the preset's entries are gone
    assert config.sparsity.exclude == ["norm"]
    model = config.fastspeech2_config(vocab_size=40, n_mels=80)
    assert (model.d_model, model.pitch_predictor.channels) == (64, 32)
    assert model.pitch_predictor.stop_gradient  # from the preset


def test_fractions_replace_the_schedule_and_stretch_with_the_epochs():
    override = "sparsity.schedule_fractions={0: 0.8, 0.5: 0.4, 0.75: 0}"
    config = load("demo", [override, "train.epochs=8"])
    assert dict(config.sparsity_schedule()) == {0: 0.8, 4: 0.4, 6: 0.0}


FRACTIONS = "{0: 0.8, 0.5: 0.0}"


def test_the_schedule_that_is_given_last_counts(tmp_path: Path):
    """In place of whichever of the two lies below it, in a preset, a file or a layer."""

    def schedule(*layers: Sequence[str], name: str = "ljspeech-sniper") -> dict[int, float]:
        return dict(load(name, ["train.epochs=10"], *layers).sparsity_schedule())

    assert schedule(["sparsity.schedule={0: 0.5, 5: 0.0}"]) == {0: 0.5, 5: 0.0}
    assert schedule(["sparsity={schedule: {0: 0.5}, block_size: 32}"]) == {0: 0.5}
    fractions = [f"sparsity.schedule_fractions={FRACTIONS}"]
    assert schedule(["sparsity.schedule={0: 0.5}"], fractions) == {0: 0.8, 5: 0.0}
    assert schedule(fractions, ["sparsity.schedule={0: 0.5}"]) == {0: 0.5}
    file = tmp_path / "mine.yaml"
    file.write_text("base: ljspeech-sniper\nsparsity: {schedule: {0: 0.3}}\n")
    assert schedule(name=str(file)) == {0: 0.3}
    # What does not count is not in the settings, where a run would be compared by it.
    assert load("demo", fractions).sparsity.schedule == {0: 0.0}
    assert load(str(file)).sparsity.schedule_fractions is None


@pytest.mark.parametrize(
    "overrides",
    [
        [f"sparsity={{schedule: {{0: 0.5}}, schedule_fractions: {FRACTIONS}}}"],
        ["sparsity.schedule={0: 0.5}", f"sparsity.schedule_fractions={FRACTIONS}"],
        [f"sparsity.schedule_fractions={FRACTIONS}", "sparsity.schedule={0: 0.5}"],
    ],
)
def test_two_schedules_on_one_command_line_are_refused(overrides: list[str]):
    with pytest.raises(ConfigError, match="^overrides: sparsity: expected schedule or .* got both"):
        load("demo", overrides)


def test_two_schedules_in_one_file_are_refused(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"sparsity: {{schedule: {{0: 0.5}}, schedule_fractions: {FRACTIONS}}}\n")
    (tmp_path / "top.yaml").write_text("base: mine.yaml\nsparsity: {schedule: {0: 0.3}}\n")
    for path in (file, tmp_path / "top.yaml"):
        with pytest.raises(ConfigError, match=f"^{file}: sparsity: expected schedule or .* both"):
            load(str(path))


def test_a_run_that_was_saved_with_both_schedules_is_the_same_run():
    now = load("demo", [f"sparsity.schedule_fractions={FRACTIONS}"])
    before = now.to_dict()
    before["sparsity"]["schedule"] = {0: 0.8, 3: 0.0}
    assert differences(from_dict(before), now) == []


def test_a_setting_that_counts_in_place_of_a_presets(tmp_path: Path):
    demo = load("demo", ["sparsity.max_param_sparsity=0.6"])
    assert (demo.sparsity.max_param_sparsity, demo.sparsity.spread) == (0.6, None)
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\ntrain: {max_frames_per_rank: 900}\n")
    assert load(str(file)).train.max_frames_per_rank == 900
    frames = load(str(file), ["train.max_frames=700"]).train
    assert (frames.max_frames, frames.max_frames_per_rank) == (700, None)


def test_a_section_is_laid_over_the_presets_as_a_file_is(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\ntrain: {epochs: 3}\nmodel: {pitch_predictor: {layers: 1}}\n")
    sections = ["train={epochs: 3}", "model={pitch_predictor: {layers: 1}}"]
    assert load("demo", sections) == load(str(file))
    both = load("demo", ["train.lr=0.5", "train={epochs: 3}", "train.warmup=9", "train={}"]).train
    assert (both.lr, both.epochs, both.warmup) == (0.5, 3, 9)
    assert both.max_frames == load("demo").train.max_frames


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.epoch=3", "did you mean train.epochs?"),
        ("trian.epochs=3", "did you mean train?"),
        ("model.dmodel=3", "did you mean model.d_model?"),
        ("model.vocab_size=3", "model.vocab_size"),
        ("features.hop_lenght=3", "did you mean features.hop_length?"),
        ("data.qqq=1", "known are data.kind, data.lexicon"),
        ("base=demo", "unknown setting base"),
    ],
)
def test_unknown_settings_name_the_nearest(override: str, nearest: str):
    with pytest.raises(ConfigError) as error:
        load("demo", [override])
    assert nearest in str(error.value)
    assert "unknown setting" in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=three", "train.epochs: expected a whole number, got 'three'"),
        ("train.epochs=010", "train.epochs: expected a whole number, got '010'"),
        ("train.epochs=1:30", "train.epochs: expected a whole number, got '1:30'"),
        ("train.lr=1:30", "train.lr: expected a number, got '1:30'"),
        ("train.seed=2001-01-01", "train.seed: expected a whole number, got '2001-01-01'"),
        ("train.epochs=2.5", "train.epochs: expected a whole number, got 2.5"),
        ("train.epochs=true", "train.epochs: expected a whole number, got true"),
        ("train.epochs=null", "train.epochs: expected a whole number, got null"),
        ("train.epochs=0", "train.epochs: expected at least 1, got 0"),
        ("train.lr=0", "train.lr: expected a number above 0, got 0"),
        ("train.lr=.nan", "train.lr: expected a number above 0, got nan"),
        ("train.lr=fast", "train.lr: expected a number, got 'fast'"),
        ("sparsity.prime_moments=much", "sparsity.prime_moments: expected a number, got 'much'"),
        ("sparsity.prime_moments=null", "sparsity.prime_moments: expected a number, got null"),
        ("train.grad_clip=-1", "train.grad_clip: expected at least 0, got -1"),
        ("train.seed=-1", "train.seed: expected at least 0, got -1"),
        ("train.precision=fp16", "train.precision: expected one of fp32, tf32, bf16, got 'fp16'"),
        ("train.device=gpu", "train.device: expected one of auto, cpu, cuda, cuda:N, got 'gpu'"),
        ("train.device=cuda:", "train.device: expected one of auto, cpu, cuda, cuda:N"),
        ("train.threads=100000", "train.threads: expected at most 1024, got 100000"),
        ("train.workers=1000", "train.workers: expected at most 256, got 1000"),
        ("train.seed=1" + "0" * 30, "train.seed: expected at most 9223372036854775807, got 1000"),
        ("train.epochs=1" + "0" * 5000, "override train.epochs: not YAML: Exceeds the limit"),
        ("train.epochs=0x" + "f" * 5000, "got a number of thousands of digits"),
        ("train.cuda_graphs=maybe", "train.cuda_graphs: expected one of auto, on, off, got"),
        ("train.cuda_graphs=1", "train.cuda_graphs: expected one of auto, on, off, got '1'"),
        ("train.checkpoint_minutes=.nan", "train.checkpoint_minutes: expected at least 0, got nan"),
        ("output=a\0b", "output: expected a path, got 'a\\x00b'"),
        ("data.root=", "data.root: expected a path, got ''"),
        ("train=3", "train: expected a mapping, got 3"),
        ("data.kind=vctk", "data.kind: expected one of demo, ljspeech, got 'vctk'"),
        ("data.valid=0", "data.valid: expected at least 1, got 0"),
        ("data.utterances=1000000", "data.utterances: expected at most 100000, got 1000000"),
        ("sparsity.restore_init=1", "sparsity.restore_init: expected true or false, got 1"),
        ("sparsity.restore_init='no'", "sparsity.restore_init: expected true or false, got 'no'"),
        ("sparsity.scale_lr=1", "unknown setting sparsity.scale_lr"),
        ("sparsity.block_size=0", "sparsity.block_size: expected at least 1, got 0"),
        ("sparsity.max_param_sparsity=75", "sparsity.max_param_sparsity: expected at most 1"),
        ("sparsity.spread=-1", "sparsity.spread: expected at least 0, got -1"),
        ("sparsity.max_lr_scale=0.5", "sparsity.max_lr_scale: expected at least 1, got 0.5"),
        ("sparsity.schedule={0: 0.8, 0: 0.4}", "sparsity.schedule, line 1: 0 is there twice"),
        ("sparsity.schedule={0: 0.8, '0': 0.4}", "sparsity.schedule: expected each key once"),
        ("sparsity.schedule=" + "[" * 3000, "line 1: expected settings at most 20 levels deep"),
        ("sparsity.exclude=norm", "sparsity.exclude: expected a list, got 'norm'"),
        ("sparsity.score_batches=0", "sparsity.score_batches: expected at least 1, got 0"),
        ("sparsity.schedule=0.8", "sparsity.schedule: expected a mapping, got 0.8"),
        ("sparsity.schedule={0: 80}", "write 0.8 for 80 %"),
        ("sparsity.schedule={1: 0.5}", "expected an entry for epoch 0"),
        ("sparsity.schedule={0: 0.2, 1: 0.4}", "sparsity must not rise"),
        ("sparsity.schedule={0.5: 0.2}", "sparsity.schedule: expected a whole number, got 0.5"),
        ("model.d_model=many", "model.d_model: expected a whole number, got 'many'"),
        ("model.d_model=0", "model: d_model: expected an integer of at least 1, got 0"),
        ("model.d_model=1000000", "model.d_model: expected at most 65536, got 1000000"),
        ("model.encoder_pre_norm='no'", "model.encoder_pre_norm: expected true or false, got 'no'"),
        ("model.decoder_dropout=true", "model.decoder_dropout: expected a number, got true"),
        ("model.ffn_kernel_sizes=[3]", "model.ffn_kernel_sizes: expected a list of 2, got [3]"),
        (
            "model.postnet_batch_norm=null",
            "model.postnet_batch_norm: expected true or false, got null",
        ),
        ("model.heads=7", "model: heads: expected a divisor of d_model"),
        ("model.pitch_predictor=5", "model.pitch_predictor: expected a mapping, got 5"),
        ("model.pitch_predictor={size: 5}", "unknown setting model.pitch_predictor.size"),
        (
            "model.pitch_predictor={layers: 1.5}",
            "model.pitch_predictor.layers: expected a whole number",
        ),
        ("features.hop_length=0", "features: hop_length must be a positive whole number"),
        ("features.f_min=low", "features.f_min: expected a number, got 'low'"),
        ("features.f_min=.nan", "features.f_min: expected a finite number, got nan"),
        ("features.sample_rate=1000000000", "features.sample_rate: expected at most 1000000"),
        ("features=3", "features: expected a mapping, got 3"),
        ("name.x=3", "name: expected text, got {'x': 3}"),
        ("train.epochs", "override: expected key=value, got 'train.epochs'"),
        ("=3", "override: expected key=value, got '=3'"),
        ("train.epochs=[1", "override train.epochs: not YAML"),
    ],
)
def test_bad_values_are_named(override: str, said: str):
    with pytest.raises(ConfigError) as error:
        load("demo", [override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_base_is_a_preset_or_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.yaml").write_text(
        "base: demo\nname: mine\ntrain: {epochs: 7}\nsparsity: {schedule: {0: 0.5}}\n"
    )
    (tmp_path / "again.yaml").write_text("base: mine.yaml\nname: again\n")
    monkeypatch.chdir("/")
    config = load(str(tmp_path / "again.yaml"), ["train.warmup=5"])
    assert (config.name, config.train.epochs, config.train.warmup) == ("again", 7, 5)
    assert config.sparsity.schedule == {0: 0.5}
    assert config.model == load("demo").model


@pytest.mark.parametrize(("text", "value"), [("true", 1.0), ("16", 16.0), ("1e1", 10.0)])
def test_a_switch_that_became_a_factor(text: str, value: float):
    assert load("demo", [f"sparsity.prime_moments={text}"]).sparsity.prime_moments == value


def _as_saved_before(name: str) -> dict:
    """A preset's settings as runs were saved when some keys were others."""
    data = json.loads(json.dumps(load(name).to_dict()))
    data["sparsity"]["scale_lr"] = True
    data["train"]["cuda_graphs"] = True
    return data


@pytest.mark.parametrize("name", NAMES)
def test_runs_saved_before_are_the_same_runs(name: str, capsys: pytest.CaptureFixture):
    assert differences(from_dict(_as_saved_before(name)), load(name)) == []
    assert from_dict(_as_saved_before(name)) == load(name)
    assert capsys.readouterr().err == ""  # nobody wrote these by hand


def test_old_keys_mean_what_they_meant_and_say_their_new_name(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    module._note.cache_clear()
    path = tmp_path / "old.yaml"
    path.write_text(
        "base: demo\nsparsity: {scale_lr: false, prime_moments: true}\ntrain: {cuda_graphs: no}\n"
    )
    config = load(str(path))
    assert config.sparsity.max_lr_scale is None and config.sparsity.prime_moments == 1.0
    assert config.train.cuda_graphs == "off"
    said = "note: sparsity.scale_lr is now sparsity.max_lr_scale, where null is not to scale\n"
    assert capsys.readouterr().err == said
    assert load("demo", ["sparsity.scale_lr=true"]).sparsity.max_lr_scale == 2.0


@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("on", "on"), ("off", "off"), ("true", "auto"), ("false", "off")],
)
def test_whether_steps_are_recorded(text: str, value: str, tmp_path: Path):
    assert load("demo", [f"train.cuda_graphs={text}"]).train.cuda_graphs == value
    path = tmp_path / "my.yaml"
    path.write_text(f"base: demo\ntrain: {{cuda_graphs: {text}}}\n")
    assert load(str(path)).train.cuda_graphs == value


def test_the_defaults_are_those_that_won_and_a_cap_alone_is_the_papers():
    sparsity = Config().sparsity
    assert (sparsity.spread, sparsity.restore_init) == (0.1, False)
    assert (sparsity.prime_moments, sparsity.max_lr_scale) == (16.0, 2.0)
    assert from_dict({"sparsity": {"max_param_sparsity": 0.9}}).sparsity.spread is None
    both = from_dict({"sparsity": {"max_param_sparsity": 0.9, "spread": 0.2}})
    assert both.sparsity.spread == 0.2


def test_a_run_goes_on_with_the_defaults_it_was_begun_with():
    saved = from_dict({"sparsity": {"spread": None, "restore_init": True, "max_lr_scale": 10.0}})
    now = from_dict({"sparsity": {"max_lr_scale": 3.0, "score_batches": 7}})
    as_begun = with_defaults_of(now, saved)
    assert as_begun.sparsity.spread is None and as_begun.sparsity.restore_init
    # What somebody asks for stays, and so does what never had another default.
    assert as_begun.sparsity.max_lr_scale == 3.0 and as_begun.sparsity.score_batches == 7
    assert [line.split(":")[0] for line in differences(saved, as_begun)] == [
        "sparsity.max_lr_scale",
        "sparsity.score_batches",
    ]


@pytest.mark.parametrize(
    ("preset", "given", "idle"),
    [
        ("demo", "train.max_frames_per_rank=1000", ("train", "max_frames", 2000)),
        ("ljspeech-sparse20", "sparsity.spread=0.2", ("sparsity", "max_param_sparsity", 1.0)),
    ],
)
def test_what_did_not_count_beside_another_is_no_difference(preset, given, idle):
    """Older versions saved it."""
    section, key, value = idle
    now = load(preset, [given])
    saved = now.to_dict()
    saved[section][key] = value
    assert differences(from_dict(saved), now) == []


def test_a_default_of_the_model_that_is_given_is_no_difference():
    before = load("demo")
    now, other = (load("demo", [f"model.postnet_kernel_size={size}"]) for size in (5, 3))
    assert before.model != now.model and differences(before, now) == []
    assert differences(before, other) == ["model.postnet_kernel_size: None there, 3 now"]


def test_differences_name_both_sides():
    before, now = load("demo"), load("demo", ["train.lr=0.5", "model.ffn_dim=64", "name=x"])
    assert differences(before, now, ["name"]) == [
        "model.ffn_dim: 768 there, 64 now",
        "train.lr: 1.0 there, 0.5 now",
    ]


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch):
    """As in a shell; a folder called ~ would invite "rm -r ~"."""
    monkeypatch.setenv("HOME", "/home/anna")
    config = load("small-corpus", ["output=~/runs/x", "data.prepared=~/data", "init=runs/~x"])
    assert (config.output, config.data.prepared) == ("/home/anna/runs/x", "/home/anna/data")
    assert config.init == "runs/~x"
