# SPDX-License-Identifier: Apache-2.0
"""SNIPER inside Lightning's Trainer."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning
import lightning_ranks
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader

from sniper import LearningRateScale, Sniper
from sniper.integrations.lightning import SniperCallback

BLOCK = 16
SCHEDULE = {0: 0.7, 1: 0.4, 3: 0.0}


@pytest.fixture(autouse=True)
def without_advice(one_thread: None):
    """Lightning's advice about workers is not for tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.second = nn.Linear(64, 32)
        self.calls = 0

    def training_step(self, batch, batch_idx):
        self.calls += 1
        loss = (self.second(self.first(batch).relu()) - batch.flip(1)).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Watch(Callback):
    """What was in force at each step, and the rate that Adam used."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(self._rates)
        self.first = pl_module.first

    def _rates(self, optimizer, args, kwargs):
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        self.seen.append((self.first.density, rates[id(self.first.weight)]))


def data() -> torch.Tensor:
    """Four equal batches: Lightning resumes in the middle of an epoch with its first batch, where
    the loader keeps no state.
    """
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(1)).repeat(4, 1)


def fit(folder, callback, *others, module=None, epochs=4, ckpt_path=None, **options):
    torch.manual_seed(0)
    module = Module() if module is None else module
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback, *others],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(module, DataLoader(data(), batch_size=4), ckpt_path=ckpt_path)
    return trainer, module


def make_callback(**options) -> SniperCallback:
    return SniperCallback(SCHEDULE, **{"block_size": BLOCK, **options})


def test_the_schedule_the_rates_and_the_log_of_a_run(tmp_path):
    watch, callback = Watch(), make_callback(score_batches=3, lr_scale=LearningRateScale(max=10.0))
    trainer, module = fit(tmp_path, callback, watch)
    assert module.calls == 3 + 16  # scoring, then training
    assert len(watch.seen) == 16
    densities = [d for d, _ in watch.seen[::4]]
    assert densities[0] < densities[1] == densities[2] < densities[3] == 1.0
    for density, rate in watch.seen:
        assert rate == pytest.approx(1e-2 / density)
    assert trainer.callback_metrics["loss"] < 1.5
    assert "log" not in vars(module)


def test_scores_are_those_of_the_training_data(tmp_path):
    torch.manual_seed(0)
    module = Module()
    plain = Sniper(copy.deepcopy(module), SCHEDULE, block_size=BLOCK)
    fit(tmp_path, make_callback(score_batches=2), module=module, epochs=1)
    plain.score(data().split(4)[:2], lambda m, b: m.training_step(b, 0))
    plain.step(0)
    for name in ("first", "second"):
        mask = getattr(plain.model, name).block_mask
        assert torch.equal(getattr(module, name).block_mask, mask)


@pytest.mark.parametrize("options", [{}, {"block_size": None, "paper_exact": True}])
@pytest.mark.parametrize("step", [6, 8])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, options, step):
    def saver():
        return ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)

    _, whole = fit(tmp_path, make_callback(**options), saver(), enable_checkpointing=True)
    path = tmp_path / f"step={step}.ckpt"
    saved = torch.load(path, weights_only=True)
    pruned = saved["state_dict"]["first.weight"] == 0
    assert pruned.float().mean() == pytest.approx(1 - 0.6, abs=0.15)
    again = Module()
    for p in again.parameters():
        nn.init.zeros_(p)  # nothing of the start is needed
    callback = make_callback(**options)
    fit(tmp_path, callback, saver(), module=again, ckpt_path=path, enable_checkpointing=True)
    for (name, got), wanted in zip(again.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(got, wanted), name
    assert again.calls == 16 - step  # it was not scored anew


def test_fit_again_goes_on(tmp_path):
    callback = make_callback()
    trainer, module = fit(tmp_path, callback, epochs=2)
    assert callback.sniper.sparsity == 0.4
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, DataLoader(data(), batch_size=4))
    assert callback.sniper.sparsity == 0.0
    assert trainer.current_epoch == 4


def test_the_trainers_epochs_count_and_a_new_trainer_says_what_to_do(tmp_path):
    callback = make_callback()
    with pytest.warns(UserWarning, match="ended at sparsity 40%; the schedule goes on to 0% at ep"):
        _, module = fit(tmp_path, callback, epochs=2)
    with pytest.raises(ValueError, match=r"left at 0.4: .* call callback.sniper.detach\(\) first"):
        fit(tmp_path, callback, module=module)
    callback.sniper.detach()
    fit(tmp_path, callback, module=module)
    assert callback.sniper.sparsity == 0.0


class BatchAlone(Module):
    """A step without an index, which returns a dictionary."""

    def training_step(self, batch):
        return {"loss": super().training_step(batch, 0)}


class ByHand(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class NoLoss(Module):
    def training_step(self, batch, batch_idx):
        return None


def test_other_training_steps(tmp_path):
    callback = make_callback()
    fit(tmp_path, callback, module=BatchAlone(), epochs=1)
    assert callback.sniper.sparsity == 0.7
    with pytest.raises(ValueError, match="optimization is manual, got None"):
        fit(tmp_path, make_callback(), module=ByHand(), epochs=1)
    loss_fn = lambda m, batch: m.second(m.first(batch).relu()).square().mean()  # noqa: E731
    callback, watch = make_callback(loss_fn=loss_fn), Watch()
    fit(tmp_path, callback, watch, module=ByHand(), epochs=1)
    assert callback.sniper.sparsity == 0.7 and watch.seen[0][1] > 1e-2
    with pytest.raises(ValueError, match="expected training_step to return a loss, got NoneType"):
        fit(tmp_path, make_callback(), module=NoLoss(), epochs=1)


def test_what_cannot_be(tmp_path):
    trainer, _ = fit(tmp_path, Callback(), epochs=1)
    path = tmp_path / "plain.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(ValueError, match="plain.ckpt, which has no masks"):
        fit(tmp_path, make_callback(), ckpt_path=path)

    class FSDPStrategy:
        pass

    with pytest.raises(ValueError, match="got FSDPStrategy, which shards them"):
        make_callback().on_fit_start(SimpleNamespace(strategy=FSDPStrategy()), Module())


def test_a_checkpoint_is_the_plain_modules_also_for_testing(tmp_path):
    trainer, module = fit(tmp_path, make_callback(), epochs=1)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    plain = Module.load_from_checkpoint(tmp_path / "it.ckpt")
    assert type(plain.first) is nn.Linear
    assert torch.equal(plain.first.weight, module.first.weight)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("ranks")
    start: list[str] = []  # Lightning starts the other one itself
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, *start, "lightning_ranks.py", folder],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_rank_whose_batches_are_skipped_in_scoring_stops_both(two_ranks):
    for found in two_ranks:
        assert "a loss for every batch on every rank, got None for some" in found["skips"]


def test_two_ranks_have_one_model(two_ranks):
    for name, found in two_ranks[0].items():
        if name == "skips":
            continue
        other = two_ranks[1][name]
        assert_same(found["weights"], other["weights"])
        assert len(found["masks"]) == (2 if name == "resumed" else 4)
        for a, b in zip(found["masks"], other["masks"], strict=True):
            assert_same(a, b)


def test_two_ranks_exchange_what_is_active(two_ranks):
    plain, packed, half = (two_ranks[0][name] for name in ("plain", "packed", "half"))
    assert_same(plain["weights"], packed["weights"])
    assert plain["sent"] == [None] * 4
    first, second, third, last = packed["sent"]
    assert first < 0.3 * last and first < second == third < last
    assert half["sent"] == [sent / 2 for sent in packed["sent"]]
    assert any((half["weights"][n] != w).any() for n, w in plain["weights"].items())


def test_two_ranks_resume(two_ranks):
    assert_same(two_ranks[0]["resumed"]["weights"], two_ranks[0]["packed"]["weights"])


def test_two_ranks_learn_what_one_does(two_ranks, tmp_path):
    # On equal utterances the mean over ranks has the bits of one rank's.
    one = lightning_ranks.fit(tmp_path, "one", devices=1, data=lightning_ranks.data(True)[:8])
    assert_same(two_ranks[0]["alike"]["weights"], one["weights"])


def test_the_finder_of_a_learning_rate_goes_before_training(tmp_path):
    """It goes back to a checkpoint of before the first step, which has no masks."""
    finder = lightning.pytorch.callbacks.LearningRateFinder(num_training_steps=4)
    callback, module = make_callback(), Module()
    module.lr = 0.1  # what it looks for
    trainer, _ = fit(tmp_path, callback, finder, module=module)
    assert callback.sniper.sparsity == 0.0 and trainer.current_epoch == 4


class Prepared(Module):
    """Batches are made ready before they are transferred, one of them is skipped."""

    def __init__(self):
        super().__init__()
        self.means = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch + 100

    def training_step(self, batch, batch_idx):
        self.means.append(float(batch.mean()))
        return None if batch_idx == 1 else super().training_step(batch - 100, batch_idx)


def test_batches_are_prepared_and_skipped_as_in_training(tmp_path):
    callback, module = make_callback(score_batches=2), Prepared()
    fit(tmp_path, callback, module=module, epochs=1)
    assert module.means[:2] == module.means[2:4] and min(module.means) > 90
    assert callback.sniper.sparsity == 0.7


def test_several_loaders_are_combined_as_in_training(tmp_path):
    class Pairs(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[0] + batch[1], batch_idx)

    module = Pairs()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[make_callback()],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loaders = [DataLoader(data()[:n], batch_size=4) for n in (8, 16)]
    trainer.fit(module, CombinedLoader(loaders, "min_size"))
    assert module.calls == 2 + 2  # pairs that are scored, and that are trained on
