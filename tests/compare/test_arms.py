# SPDX-License-Identifier: Apache-2.0
"""Arms and matrices: what the built-in ones say, what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from speech import LATER_SETTINGS, make_trainer

from sniper import sparsify
from sniper.compare.arms import MATRICES, load_matrix
from sniper.compare.matrix import plan
from sniper.training.config import Config, ConfigError, differences, flat
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config


def _configs(name: str) -> dict[str, Config]:
    matrix = load_matrix(name)
    return {arm.name: matrix.config(arm, 3, Path("out"), 2) for arm in matrix.arms}


PREDICTORS = {
    f"model.{name}.{key}": value
    for name in ("duration_predictor", "pitch_predictor", "energy_predictor")
    for key, value in asdict(getattr(FastSpeech2Config(vocab_size=9), name)).items()
}


@pytest.mark.parametrize("name", sorted(p.stem for p in MATRICES.glob("*.yaml")))
def test_built_in_matrices_can_be_trained(name):
    for arm, config in _configs(name).items():
        assert config.name == f"{arm}-seed-3" and config.output == "out"
        assert config.train.seed == 3 and config.train.threads == 2


RESOLVED = json.loads(
    (Path(__file__).parents[1] / "training/golden/resolved.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", sorted(p.stem for p in MATRICES.glob("*.yaml")))
def test_an_arm_means_what_it_meant_when_its_results_were_made(name):
    matrix = load_matrix(name)
    names = {n.partition("/")[2] for n in RESOLVED if n.startswith(f"{name}/")}
    assert {arm.name for arm in matrix.arms} == names
    for arm in matrix.arms:
        config = matrix.config(arm, 0, Path("OUT"), 1)
        settings = flat(json.loads(json.dumps(config.to_dict())))
        pinned = {**LATER_SETTINGS, **RESOLVED["defaults"], **RESOLVED[f"{name}/{arm.name}"]}
        if pinned["sparsity.schedule_fractions"] is not None:
            # A preset's schedule was kept below fractions, where it did not count.
            pinned["sparsity.schedule"] = {"0": 0.0}
        # A predictor's mapping replaced the preset's: what it left out had its default.
        assert {**PREDICTORS, **settings} == {**PREDICTORS, **pinned}, arm.name


@pytest.mark.parametrize("name", ["demo", "real", "ljspeech"])
def test_the_arms_of_the_experiment(name):
    configs = _configs(name)
    first = {arm: config.sparsity_schedule().sparsity_at(0) for arm, config in configs.items()}
    expected = {
        "dense": 0.0,
        "sparse20": 0.2,
        "sparse40": 0.4,
        "sniper20": 0.2,
        "sniper40": 0.4,
        "sparse80-block": 0.8,
        "sniper80-block": 0.8,
    }
    more = ("dense-rates", "sniper80-long", "sniper80-gentle", "sniper80-gradient")
    more += ("dense-rates-half", "sniper80-plain-rate", "sniper80-block-longer")
    controls = {**dict.fromkeys(more, 0.8), "dense-short": 0.0}
    assert first == (expected if name == "ljspeech" else expected | controls)
    for arm, config in configs.items():
        last = config.sparsity_schedule().sparsity_at(config.train.epochs - 1)
        assert last == (first[arm] if arm.startswith("sparse") else 0.0)
        if not arm.startswith("dense"):
            paper = "80" not in arm
            assert config.sparsity.block_size == (None if paper else 64)
            assert config.sparsity.paper_exact == paper


@pytest.mark.parametrize("name", ["demo", "real"])
def test_controls_differ_from_what_they_control_in_one_thing(name):
    configs = _configs(name)

    def differ(one: str, other: str) -> list[str]:
        lines = differences(configs[one], configs[other], ("name",))
        return [line.split(":")[0] for line in lines]

    assert differ("sniper80-block", "dense-rates") == ["sparsity.prune"]
    assert differ("sniper80-block", "sniper80-gradient") == ["sparsity.growth"]
    assert differ("dense-rates", "dense-rates-half") == ["train.lr"]
    assert differ("sniper80-block", "sniper80-plain-rate") == ["sparsity.max_lr_scale"]
    assert differ("sniper80-block", "sniper80-long") == ["sparsity.schedule"]
    assert differ("sniper80-block", "sniper80-gentle") == ["sparsity.schedule"]
    assert differ("sniper80-block", "sniper80-block-longer") == ["train.epochs"]
    assert differ("dense", "dense-short") == ["train.epochs"]
    gentle = dict(configs["sniper80-gentle"].sparsity_schedule())
    asked = {e: round(0.8 * (1 - (e / 13) ** 3), 2) for e in range(14)}
    assert {e: gentle.get(e, 0.8) for e in range(14)} == asked | {0: 0.8, 1: 0.8, 2: 0.8}


def test_the_two_matrices_have_the_same_arms_and_claims():
    demo, real = load_matrix("demo"), load_matrix("real")
    assert [arm.name for arm in demo.arms] == [arm.name for arm in real.arms]
    assert demo.claims == real.claims and demo.seeds == real.seeds


def test_the_papers_schedules_scaled_to_the_demo():
    configs = _configs("demo")
    assert dict(configs["sniper40"].sparsity_schedule()) == {0: 0.4, 1: 0.2, 2: 0.1, 3: 0.0}
    assert dict(configs["sniper20"].sparsity_schedule()) == {0: 0.2, 1: 0.1, 2: 0.0}


def test_each_arm_of_the_ablation_differs_in_one_setting():
    configs = _configs("demo-ablation")
    base = configs.pop("block64")
    ignored = ("name",)
    cap = differences(base, configs.pop("cap"), ignored)  # two that exclude each other
    assert [line.split(":")[0] for line in cap] == [
        "sparsity.max_param_sparsity",
        "sparsity.spread",
    ]
    for arm, config in configs.items():
        assert len(differences(base, config, ignored)) == 1, arm


def test_blocks_of_both_sizes_take_the_same_layers():
    configs = _configs("demo-blocks")
    for small, large in (("block64", "block128"), ("block64-gentle", "block128-gentle")):
        (line,) = differences(configs[small], configs[large], ("name",))
        assert line == "sparsity.block_size: 64 there, 128 now"
    taken = []
    for size in (64, 128):
        model = FastSpeech2(
            FastSpeech2Config(**configs["block64"].to_dict()["model"], vocab_size=9)
        )
        taken.append(sparsify(model, size, exclude=configs["block64"].sparsity.exclude).taken)
    assert taken[0] == taken[1] and len(taken[0]) > 20


def _write(folder: Path, **changes) -> str:
    data = {"config": "demo", "arms": [{"name": "a"}, {"name": "b"}], **changes}
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return str(path)


def test_a_run_lies_in_the_very_folder(tmp_path, monkeypatch):
    """Whatever a setting would make of its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    for out in (Path("~/out"), Path(" a"), Path("'a'"), Path("null")):
        for run in plan(load_matrix(_write(tmp_path)), out, 1):
            assert run.config.output and Path(run.config.output) == run.folder


def test_a_matrix_in_the_home_folder(tmp_path, monkeypatch):
    _write(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_matrix("~/m.yaml").name == "m"


def test_settings_lie_on_each_other(tmp_path):
    arms = [{"name": "a"}, {"name": "b", "label": "B", "train": {"lr": 0.3, "epochs": 7}}]
    settings = {"train": {"epochs": 5, "lr": 0.5}, "model": {"ffn_dim": 384}}
    path = _write(tmp_path, arms=arms, settings=settings, seeds=[4])
    matrix = load_matrix(path, overrides=["train.epochs=9"])
    a, b = (matrix.config(arm, 4, Path("out"), 1) for arm in matrix.arms)
    assert (a.train.lr, b.train.lr) == (0.5, 0.3)
    assert (a.train.epochs, b.train.epochs) == (9, 9)
    assert a.model["ffn_dim"] == 384 and a.model["d_model"] == 192
    assert matrix.arms[1].label == "B" and matrix.arms[0].label == "a"
    assert matrix.reference == "a" and matrix.seeds == (4,)


@pytest.mark.parametrize("said", ['No: it\'s "here", # you\u00e9.', "5", "null and void"])
def test_what_is_spoken_at_the_end(tmp_path, said):
    """It stands in no section."""
    arms = [{"name": "a"}, {"name": "b", "sample_text": None}]
    matrix = load_matrix(_write(tmp_path, arms=arms, settings={"sample_text": said}))
    a, b = (matrix.config(arm, 0, Path("out"), 1) for arm in matrix.arms)
    assert (a.sample_text, b.sample_text) == (said, None)


def test_a_schedule_replaces_the_fractions_it_starts_from(tmp_path):
    arms = [{"name": "a", "config": "ljspeech-sniper", "sparsity": {"schedule": {0: 0.6}}}]
    matrix = load_matrix(_write(tmp_path, arms=arms))
    config = matrix.config(matrix.arms[0], 0, Path("out"), 1)
    assert dict(config.sparsity_schedule()) == {0: 0.6}


def test_the_schedule_of_the_upper_layer_counts(tmp_path):
    """The command line's over the arm's over the one of all arms, whichever kind each is."""
    fractions = {"sparsity": {"schedule_fractions": {0: 0.8, 0.5: 0.0}}}
    arms = [{"name": "a"}, {"name": "b", "sparsity": {"schedule": {0: 0.5}}}]
    path = _write(tmp_path, arms=arms, settings=fractions)

    def schedules(*overrides):
        matrix = load_matrix(path, overrides=["train.epochs=10", *overrides])
        configs = [matrix.config(arm, 0, Path("out"), 1) for arm in matrix.arms]
        return [dict(config.sparsity_schedule()) for config in configs]

    assert schedules() == [{0: 0.8, 5: 0.0}, {0: 0.5}]
    assert schedules("sparsity.schedule={0: 0.3}") == [{0: 0.3}, {0: 0.3}]
    assert schedules("sparsity={schedule_fractions: {0: 0.3}}") == [{0: 0.3}, {0: 0.3}]
    both = {"schedule": {0: 0.5}, "schedule_fractions": {0: 0.5}}
    with pytest.raises(ConfigError, match="arm a: overrides: sparsity: .* got both"):
        load_matrix(_write(tmp_path, arms=[{"name": "a", "sparsity": both}]))


def test_seeds_and_arms_can_be_chosen(tmp_path):
    matrix = load_matrix(_write(tmp_path, seeds=[0, 1]), seeds=[5], arms=["a"])
    assert matrix.seeds == (5,) and [arm.name for arm in matrix.arms] == ["a"]
    with pytest.raises(ConfigError, match="--arms: expected some of a, b, got 'c'"):
        load_matrix(_write(tmp_path), arms=["c"])
    with pytest.raises(ConfigError, match="reference arm 'a' among the arms, got b"):
        load_matrix(_write(tmp_path), arms=["b"])


def test_an_arm_may_have_fewer_seeds(tmp_path):
    arms = [{"name": "a"}, {"name": "b", "seeds": [1]}]
    matrix = load_matrix(_write(tmp_path, seeds=[0, 1], arms=arms))
    runs = [(run.arm.name, run.seed) for run in plan(matrix, tmp_path, 1)]
    assert runs == [("a", 0), ("a", 1), ("b", 1)]
    # Those of the command are for all.
    chosen = load_matrix(_write(tmp_path, seeds=[0, 1], arms=arms), seeds=[5])
    assert [(r.arm.name, r.seed) for r in plan(chosen, tmp_path, 1)] == [("a", 5), ("b", 5)]


def test_claims_of_arms_that_are_left_out_are_left_out_too(tmp_path):
    claims = [{"claim": "less", "arm": "b", "than": "a", "by": "loss"}]
    (claim,) = load_matrix(_write(tmp_path, claims=claims)).claims
    assert (claim.arm, claim.limit, claim.above) == ("b", 0.0, False)
    assert load_matrix(_write(tmp_path, claims=claims), arms=["a"]).claims == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": []}, "arms: expected a list that is not empty"),
        ({"arms": None}, "expected a mapping with `config` and `arms`"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "different names of arms, got a twice"),
        ({"arms": [{"label": "a"}]}, "expected an arm with a name"),
        ({"arms": [{"name": "../a"}]}, "letters, digits"),
        ({"arms": [{"name": "a", "epochs": 3}]}, "expected settings of data, .* got epochs: 3"),
        ({"arms": [{"name": "a", "train": {"seed": 3}}]}, "train.seed is the matrix's own"),
        ({"arms": [{"name": "a", "train": {"epoch": 3}}]}, "arm a: .* did you mean train.epochs"),
        ({"settings": {"train": 3}}, "settings: expected settings of"),
        ({"config": None}, "arm a: expected `config`"),
        ({"config": "nowhere.yaml"}, "arm a: config: expected a preset"),
        ({"seeds": [0, 0]}, "seeds: expected different whole numbers"),
        ({"seeds": [-1]}, "seeds: expected different whole numbers"),
        ({"arm": []}, "unknown 'arm'"),
        ({"reference": "c"}, "reference arm 'c'"),
        ({"arms": [{"name": "a", "seeds": [7]}]}, r"arm a: expected seeds among \[0\], got \[7\]"),
        ({"claims": {}}, "claims: expected a list"),
        ({"claims": [{"claim": "x", "arm": "z", "than": "a", "by": "loss"}]}, "claims: arm: .*'z'"),
    ],
)
def test_what_is_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        load_matrix(_write(tmp_path, **changes))


def test_files_that_are_no_matrix(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a matrix \(demo, .*got 'nothing'"):
        load_matrix("nothing")
    (tmp_path / "m.yaml").write_text("{")
    with pytest.raises(ConfigError, match="not YAML"):
        load_matrix(str(tmp_path / "m.yaml"))
    with pytest.raises(ConfigError, match="override: train.seed is the matrix's own"):
        load_matrix("demo", overrides=["train.seed=1"])
    with pytest.raises(ConfigError, match="override: train.threads is the matrix's own"):
        load_matrix("demo", overrides=["train={epochs: 3, threads: 2}"])


def test_runs_of_one_seed_begin_alike(matrix_file: Path, tmp_path: Path):
    """Same initial weights and same batches in every arm; others with another seed."""
    matrix = load_matrix(str(matrix_file))
    trainers = [
        make_trainer(matrix.config(arm, seed, tmp_path, 1))
        for arm, seed in ((matrix.arms[0], 0), (matrix.arms[1], 0), (matrix.arms[1], 1))
    ]
    weights = [trainer.model.state_dict() for trainer in trainers]
    batches = [list(trainer._batches) for trainer in trainers]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert batches[0] == batches[1] != batches[2]
    assert not torch.equal(weights[0]["mel_out.weight"], weights[2]["mel_out.weight"])
