# SPDX-License-Identifier: Apache-2.0
"""Several processes train what one would, end together, and take up each other's runs."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import spawn
from ranks import environment, free_port, together, train
from simulated import SimulatedRecorder
from speech import command, differences, everything, tiny

from sniper.ops import gradients
from sniper.sparsity.distributed import checksum
from sniper.train import main as train_command
from sniper.training import checkpoint, ranks
from sniper.training.config import Config, dump, from_dict
from sniper.training.data import train_batches
from sniper.training.progress import NotFinite
from sniper.training.ranks import ALONE, Ended, joined
from sniper.training.run import _refuse_other_ranks
from sniper.training.settings import ConfigError
from sniper.training.step import TrainingStep
from sniper.training.trainer import Trainer
from sniper.tts.corpus.batch import Batch
from sniper.tts.corpus.dataset import BucketBatchSampler, FeatureDataset
from sniper.tts.model.fastspeech2 import FastSpeech2

# Without dropout, whose draws differ between ranks, and at a learning rate at which rounding does
# not grow: at larger ones two runs of one process diverge as much if a gradient's last bit differs.
_PREDICTOR = {"layers": 1, "channels": 32, "dropout": 0.0}
PLAIN: dict[str, Any] = {
    **{
        f"{stack}_{kind}": 0.0
        for stack in ("encoder", "decoder")
        for kind in ("dropout", "position_dropout", "attention_dropout")
    },
    **{f"{name}_predictor": _PREDICTOR for name in ("duration", "pitch", "energy")},
    "postnet_dropout": 0.0,
}
SPARSE, DENSE = {0: 0.6, 2: 0.3, 4: 0.0}, {0: 0.0}
EPOCHS = 6  # of 5 batches


def config(corpus: str | Path, output: Path, schedule: dict[int, float], **train: Any) -> Config:
    train = {"epochs": EPOCHS, "lr": 0.005, **train}
    sparsity = {"schedule": schedule, "max_lr_scale": 2.0, "prime_moments": 16.0}
    return tiny(Path(corpus), output, model=PLAIN, sparsity=sparsity, train=train)


def refusal(call: Any) -> str:
    try:
        call()
    except (ConfigError, NotFinite, Ended) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def one_process(rank: int, corpus: str, folder: str, ports: list[int]) -> None:
    """What each of three does; findings lie in files."""
    next_port, root = iter(ports), Path(folder)
    for name, schedule in (("sparse", SPARSE), ("dense", DENSE)):
        settings = config(corpus, root / name, schedule)
        losses, two, three = [], next(next_port), next(next_port)
        # In the middle of an epoch at each sparsity; and 3 ranks have more than one batch holds.
        if rank < 2:
            with together(rank, 2, two) as some:
                losses += train(settings, some, 7)[1]
        if rank == 0:
            losses += train(settings, ALONE, 18)[1]
        with together(rank, 3, three) as some:
            trainer, more = train(settings, some)
        # No DDP is around it: gradients of active blocks go where they stay.
        assert all(p in gradients._without_ddp for p in trainer.model.parameters())
        if rank == 0:
            torch.save(losses + more, root / f"{name}.pt")
        state = {n: [t] for n, t in trainer.model.state_dict().items()}
        (root / f"{name}-{rank}").write_text(hex(checksum(state)))
    found = _refusals(rank, corpus, root, next_port)
    torch.save(found, root / f"found-{rank}.pt")


def _refusals(rank: int, corpus: str, root: Path, ports: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cpu = torch.device("cpu")
    with together(rank, 3, next(ports)) as some:
        seeds = {"seed": int(rank == 2), "workers": rank}  # the second may differ
        other = config(corpus, root / "other", SPARSE, **seeds)
        found["settings"] = refusal(lambda: _refuse_other_ranks(other, cpu, some))
        found["weights"] = refusal(lambda: train(other, some))

        broken = config(corpus, root / "broken", SPARSE, epochs=1)
        dataset = FeatureDataset(f"{corpus}/train.safetensors")
        batch = next(iter(train_batches(dataset, broken.train.max_frames, None, 0)))
        found["bad"] = [dataset.ids[i] for i in batch[1::3]]  # what rank 1 has of it
        loss = FastSpeech2.loss

        def poisoned(model: FastSpeech2, batch: Batch) -> tuple:
            total, terms = loss(model, batch)
            return (total * float("nan") if batch.ids == found["bad"] else total), terms

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FastSpeech2, "loss", poisoned)
            found["not finite"] = refusal(lambda: train(broken, some))
    more = {"max_frames_per_rank": 430, "exchange": "bf16"}
    each = config(corpus, root / "each", SPARSE, epochs=2, **more)
    two, three = next(ports), next(ports)
    with pytest.MonkeyPatch.context() as patch:
        seen: list[list[str]] = []
        patch.setattr(TrainingStep, "backward", _noting(TrainingStep.backward, seen))
        if rank < 2:
            with together(rank, 2, two) as some:
                train(each, some, 3)
        if rank == 0:
            train(each, ALONE, 5)
        with together(rank, 3, three) as some:
            train(each, some)
    found["seen"] = seen
    for name, recorder in (("recorded", SimulatedRecorder), ("not recorded", NotRecording)):
        settings = config(corpus, root / name, {0: 0.6, 1: 0.0}, epochs=2, max_frames=700)
        with pytest.MonkeyPatch.context() as patch, together(rank, 3, next(ports)) as some:
            made = _record(patch, recorder)
            trainer, found[name] = train(settings, some)
        found[f"{name} state"] = dict(trainer.model.state_dict())
        found[f"{name} times"] = [made[0].recordings, made[0].replays]
    port = next(ports)
    found["failure"] = refusal(lambda: _fails(rank, port))
    return found


class NotRecording(SimulatedRecorder):
    """Runs the work alone."""

    def warm_up(self, work: Any) -> None:
        pass

    def record(self, work: Any) -> Any:
        values: dict[str, torch.Tensor] = {}
        return lambda: values.update(work()), values


def _record(patch: pytest.MonkeyPatch, recorder: Any) -> list[SimulatedRecorder]:
    """Has trainers record their steps as on a GPU; the recorders."""
    made: list[SimulatedRecorder] = []

    def step(model: FastSpeech2, *args: Any, recorder: Any, **kwargs: Any) -> TrainingStep:
        recorder.model = model
        made.append(recorder)
        return TrainingStep(model, *args, recorder=recorder, **kwargs)

    patch.setattr("sniper.training.trainer.pick_recorder", lambda device, graphs: recorder())
    patch.setattr("sniper.training.trainer.TrainingStep", step)
    return made


def _noting(backward: Any, seen: list[list[str]]) -> Any:
    def noting(step: TrainingStep, batch: Batch, share: float) -> Any:
        seen.append(batch.ids)
        return backward(step, batch, share)

    return noting


def _fails(rank: int, port: int) -> None:
    with together(rank, 3, port) as some:
        if rank == 1:
            raise ConfigError("says rank 1")
        some.gather(None)


@pytest.fixture(scope="module")
def folder(demo_corpus: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(one_process, 3, str(demo_corpus), str(folder), [free_port() for _ in range(10)])
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("name", ["sparse", "dense"])
def test_two_then_one_then_three_ranks_learn_what_one_does(
    name: str, folder: Path, demo_corpus: Path, tmp_path: Path
):
    """Through two changes of sparsity, with BatchNorm, stopped in the middle of epochs."""
    schedule = SPARSE if name == "sparse" else DENSE
    alone, losses = train(config(demo_corpus, tmp_path, schedule), ALONE)
    together_ = torch.load(folder / f"{name}.pt", weights_only=True)
    assert len(losses) == len(together_) == 5 * EPOCHS
    assert max(abs(a - b) for a, b in zip(losses, together_, strict=True)) < 1e-5
    assert losses[-1] < losses[0] / 2
    # The same utterances once each, whatever the ranks: frames of the epochs are equal.
    rows = checkpoint.load(folder / name).meta["progress"]["history"]
    for row, own in zip(rows, alone.progress.history, strict=True):
        assert (row["frames"], row["sparsity"], row["density"]) == (
            own["frames"],
            own["sparsity"],
            own["density"],
        )
        assert row["valid"]["total"] == pytest.approx(own["valid"]["total"], abs=1e-4)
        assert row["train"]["total"] == pytest.approx(own["train"]["total"], abs=1e-5)
    assert len({(folder / f"{name}-{rank}").read_text() for rank in range(3)}) == 1


def test_ranks_that_differ_are_refused_with_what_differs(found: list[dict[str, Any]]):
    for each in found:
        assert each["settings"] == (
            "ConfigError: ranks: expected the same train.seed on every rank, got 0 on rank 0 and 1 "
            "on rank 2; start every rank with the same settings"
        )
        assert each["weights"].startswith("ConfigError: ranks: expected the same weights at the")


def test_frames_of_each_rank_and_other_ranks_in_the_middle_of_an_epoch(found, demo_corpus: Path):
    """Three updates of two ranks, two of one, the rest of three: each utterance once an epoch."""
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    lengths = dict(zip(dataset.ids, dataset.mel_lengths.tolist(), strict=True))
    updates = len(found[0]["seen"])
    second = len(BucketBatchSampler(dataset.mel_lengths, 430, parts=3))  # of three ranks alone
    # Rank 0 was there always, rank 1 left out two, rank 2 came last.
    assert [len(each["seen"]) for each in found] == [updates, updates - 2, updates - 5]
    everyone = [ids for each in found for ids in each["seen"][: len(each["seen"]) - second]]
    assert sorted(id for ids in everyone for id in ids) == sorted(dataset.ids)
    last = [ids for each in found for ids in each["seen"][-second:]]
    assert sorted(id for ids in last for id in ids) == sorted(dataset.ids)
    assert all(max(lengths[i] for i in ids) * len(ids) <= 430 for ids in everyone + last if ids)


def test_recorded_steps_of_ranks_exchange_what_others_do(found: list[dict[str, Any]]):
    """Ranks record at different times, and where one has no utterance it has nothing to replay."""
    for each in found:
        assert each["recorded"] == each["not recorded"] == found[0]["recorded"]
        for name, value in each["recorded state"].items():
            assert torch.equal(value, each["not recorded state"][name]), name
            assert torch.equal(value, found[0]["recorded state"][name]), name
    times = [each["recorded times"] for each in found]
    assert times[0][1] > times[2][1] >= times[2][0] >= 2  # some are too small for the last rank


def test_every_rank_names_the_utterances_of_the_one_whose_loss_is_not_finite(found):
    messages = {each["not finite"] for each in found}
    assert len(messages) == 1
    (message,) = messages
    assert message.startswith("NotFinite")
    assert f"with the utterances {', '.join(found[0]['bad'])};" in message


def test_what_one_rank_says_ends_all(found: list[dict[str, Any]]):
    assert {each["failure"] for each in found} == {"Ended: a rank has failed with status 1"}


def _dies_behind_the_last_update(rank: int, folder: str, port: int) -> None:
    ranks._SILENCE = 1.0
    said = io.StringIO()
    with contextlib.redirect_stderr(said), together(rank, 3, port) as some:
        some.gather(None)
        if rank == 1:
            os._exit(0)
        if rank == 2:
            time.sleep(3)  # busy for longer, and heard of
    (Path(folder) / str(rank)).write_text(said.getvalue())


def test_a_rank_that_died_behind_the_last_update_is_not_waited_for(tmp_path: Path):
    begun = time.monotonic()
    spawn(_dies_behind_the_last_update, 3, str(tmp_path), free_port())
    assert time.monotonic() - begun < 60
    assert (tmp_path / "0").read_text() == (
        "warning: all is done and saved, but ranks that have not ended: 1 of 3, of which nothing "
        "was heard for 1 s\n"
    )
    assert (tmp_path / "2").read_text() == ""


def test_commands_that_differ_end_with_one_line(demo_corpus: Path, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(dump(tiny(demo_corpus, tmp_path / "run")))
    port = free_port()
    started = [
        command(
            "train", "--config", tmp_path / "tiny.yaml", f"train.lr={rank + 1}",
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment(rank, 2, port)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert [out for out, _ in said] == ["", ""] and said[1][1] == ""
    assert said[0][1] == (
        "error: rank 0 of 2: ranks: expected the same train.lr on every rank, got 1.0 on rank 0 "
        "and 2.0 on rank 1; start every rank with the same settings\n"
    )
    assert not (tmp_path / "run").exists()


WRONG = {
    "no master": ({"RANK": "0", "WORLD_SIZE": "2"}, "without MASTER_ADDR, MASTER_PORT"),
    "no size": ({"RANK": "0"}, "RANK in the environment without WORLD_SIZE, MASTER_ADDR"),
    "no number": ({**environment(0, 2, 1), "RANK": "first"}, "RANK expected a whole number"),
    "beyond": (environment(2, 2, 1), "expected RANK below WORLD_SIZE, got 2 of 2"),
    "port": (environment(0, 2, 70000), "MASTER_PORT expected 1 to 65535, got 70000"),
    "nobody": (environment(1, 2, 1), "rank 1 of 2 has not met the others at 127.0.0.1:1"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG.keys())
def test_an_environment_that_makes_no_sense_is_one_error(given, said, monkeypatch):
    for name in environment(0, 1, 1):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "JOIN_SECONDS", 1)
    with pytest.raises(ConfigError, match=said), joined(lambda error: ("", 1)):
        pass


def test_one_process_needs_no_environment(monkeypatch):
    for name in environment(0, 1, 1):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "somewhere")  # as a scheduler leaves it
    with joined(lambda error: ("", 1)) as alone:
        assert not alone.several and alone.first and alone.local is None
        assert alone.gather(3) == [3] and alone.any(True, False) == [True, False]


def test_more_ranks_than_utterances(demo_corpus: Path, tmp_path: Path):
    train, valid = (FeatureDataset(demo_corpus / f"{s}.safetensors") for s in ("train", "valid"))
    with pytest.raises(ConfigError, match="got 99 ranks and 21 utterances in .*: start fewer"):
        Trainer(tiny(demo_corpus, tmp_path), train, valid, train.info, ranks=ranks.Ranks(5, 99))


KILLED = """
import os, signal, sys
from sniper import train
from sniper.command import exit_with
from sniper.training.trainer import Trainer
inner = Trainer._update
def update(self, *args):
    done = inner(self, *args)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and self.progress.update == 8 and self.ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
Trainer._update = update
exit_with(lambda: train.main(sys.argv[1:]))
"""


def _through(rank: int, folder: str, port: int) -> None:
    """What torchrun would start, were nothing to go wrong."""
    os.environ.update(environment(rank, 2, port))
    with Path(f"{folder}/said-{rank}").open("w") as said, contextlib.redirect_stdout(said):
        assert train_command(["--config", f"{folder}/through.yaml", "--fresh"]) == 0


def test_killed_rank_is_started_again_and_the_bits_are_the_same(demo_corpus: Path, tmp_path: Path):
    """By torchrun, with dropout and --fresh; other ranks neither hang nor print."""
    (tmp_path / "killed.py").write_text(KILLED)
    for name in ("through", "killed"):
        (tmp_path / f"{name}.yaml").write_text(dump(tiny(demo_corpus, tmp_path / name)))
    spawn(_through, 2, str(tmp_path), free_port())
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    line += [f"--master_port={free_port()}", "--max-restarts=1", str(tmp_path / "killed.py")]
    line += ["--config", str(tmp_path / "killed.yaml"), "--fresh"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr
    said = "".join((tmp_path / f"said-{rank}").read_text() for rank in range(2))
    for out, starts in ((said, 1), (done.stdout, 2)):
        line = "2 ranks: updates of at most 1,300 padded frames, 650 on each"
        assert out.count(line) == starts and out.count("sample.wav says") == 1
    assert differences(everything(tmp_path / "killed"), everything(tmp_path / "through")) == []


GPU = {"device": "cuda", "precision": "fp32", "cuda_graphs": "off"}


def _on_one_gpu(rank: int, corpus: str, folder: str, port: int) -> None:
    """NCCL refuses two ranks on one GPU, so gloo carries what lies there too."""
    settings = config(corpus, Path(folder) / "gpu", SPARSE, **GPU)
    os.environ.update({**environment(rank, 2, port), "LOCAL_RANK": "0"})
    with joined(lambda error: (str(error), 1)) as some:
        store = torch.distributed.FileStore(f"{folder}/store", 2)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
        trainer, losses = train(settings, some)
    state = {n: [t] for n, t in trainer.model.state_dict().items()}
    torch.save((losses, checksum(state)), f"{folder}/{rank}.pt")


@pytest.mark.gpu
def test_two_ranks_on_a_gpu_learn_what_one_does(demo_corpus: Path, tmp_path: Path):
    spawn(_on_one_gpu, 2, str(demo_corpus), str(tmp_path), free_port())
    (losses, state), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert other == (losses, state)
    settings = config(demo_corpus, tmp_path / "alone", SPARSE, **GPU)
    _, alone = train(settings, ALONE)
    # Sums on a GPU are in no fixed order, which training makes more of.
    assert losses[:5] == pytest.approx(alone[:5], rel=1e-4)
    assert losses == pytest.approx(alone, rel=0.05)


def test_settings_of_ranks_have_limits():
    assert from_dict({"train": {"exchange": "bf16"}}).train.exchange == "bf16"
    for wrong in ({"exchange": "fp16"}, {"timeout_minutes": 0}, {"max_frames_per_rank": 0}):
        with pytest.raises(ConfigError):
            from_dict({"train": wrong})
