# SPDX-License-Identifier: Apache-2.0
"""The training loop: epochs of updates under SNIPER's schedule, validated, saved, resumed."""

from __future__ import annotations

import contextlib
import functools
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sniper.layers.selection import unmatched
from sniper.ops import gradients
from sniper.optim import Adam
from sniper.sparsity import Fixed, Following, LearningRateScale, NewWeights, Sniper
from sniper.sparsity.distributed import checksum
from sniper.sparsity.exchange import GradientExchange
from sniper.training import checkpoint, restore
from sniper.training.average import WeightAverage
from sniper.training.batch_norm import share_batch_norms
from sniper.training.config import Config
from sniper.training.data import (
    end_workers,
    grouped,
    loading_error,
    make_loader,
    static_shapes,
    train_batches,
    valid_batches,
)
from sniper.training.device import pick_device
from sniper.training.finetune import initialise
from sniper.training.progress import (
    EpochEnd,
    Interrupted,
    NotFinite,
    Observer,
    OutOfMemory,
    Progress,
    flat_epochs,
    is_done,
)
from sniper.training.ranks import ALONE, Ranks
from sniper.training.settings import ConfigError
from sniper.training.step import TrainingStep, noam, peak_memory, pick_recorder
from sniper.tts.corpus.batch import Batch
from sniper.tts.corpus.dataset import CorpusInfo, FeatureDataset
from sniper.tts.corpus.parts import BatchParts
from sniper.tts.errors import reworded
from sniper.tts.model.fastspeech2 import FastSpeech2


class Trainer:
    """Trains one FastSpeech2.

    Args:
        config: the run's settings.
        train, valid: datasets of the two splits.
        info: vocabulary, features and statistics, carried in checkpoints.
        observer: is told of updates and epochs.
        initial: of another run, whose weights are taken over; see `initialise`.
        ranks: this process and those that train the same model, each on its part of every batch.

    Attributes:
        batches_per_epoch: micro-batches of an epoch, over all ranks.
        batches_per_pass: the same of a pass over the data.
        inherited: lines on what that run did not have, or what is left behind.

    Raises:
        ConfigError: settings that do not fit the data or the machine.
    """

    def __init__(
        self,
        config: Config,
        train: FeatureDataset,
        valid: FeatureDataset,
        info: CorpusInfo,
        observer: Observer | None = None,
        initial: checkpoint.Checkpoint | None = None,
        ranks: Ranks = ALONE,
    ):
        settings = config.train
        self.config, self.info = config, info
        self.run = Path(config.output)
        self.observer = observer or Observer()
        self.ranks = ranks
        self.device = pick_device(settings.device, ranks.local)
        self.progress = Progress()
        self.stop = False  # set from a signal handler
        # Before the model, so that runs of one seed start from the same weights.
        torch.manual_seed(settings.seed)
        model_config = config.fastspeech2_config(
            len(info.vocabulary), info.features.n_mels, len(info.speakers)
        )
        self.model = FastSpeech2(model_config)
        self.inherited = [] if initial is None else initialise(self.model, info, initial)
        self.model.to(self.device)
        if ranks.several:
            share_batch_norms(self.model)
        self.sniper = make_sniper(self.model, config)
        self.average = None if settings.ema is None else WeightAverage(self.model, settings.ema)
        # One group in the model's order, whatever is masked: so a checkpoint fits any block size.
        params = self.model.parameters()
        recorder = pick_recorder(self.device, settings.cuda_graphs)
        # Recorded graphs add to gradients that stay where they are.
        clear = recorder is None
        self.optimizer = Adam(params, lr=settings.lr, clear=clear, fused=True)
        self.scheduler = noam(self.optimizer, model_config.d_model, settings.warmup)
        self.step = TrainingStep(
            self.model,
            self.optimizer,
            settings.precision,
            settings.grad_clip,
            stage=partial(getattr, self.sniper, "sparsity", None),
            recorder=recorder,
            must_record=settings.cuda_graphs == "on",
        )
        # Every rank goes through the same batches and takes its part of each: so a batch, its
        # length bucket and the number of updates are the same on all, and where a run stands is
        # one number, whatever the number of ranks.
        max_frames, parts, bound = settings.max_frames, 1, "max_frames"
        if settings.max_frames_per_rank is not None:
            max_frames, parts = settings.max_frames_per_rank, ranks.size
            bound = "max_frames_per_rank"
        per_epoch, seed = settings.batches_per_epoch, settings.seed
        self._batches = train_batches(train, max_frames, per_epoch, seed, parts, ranks.size, bound)
        self.batches_per_epoch = self._batches.per_epoch
        self.batches_per_pass = self._batches.per_pass
        cuda = self.device.type == "cuda"
        workers = settings.workers if settings.workers is not None else (4 if cuda else 1)
        # What is asked for batches: the corpus, or this rank's part of it.
        self._train = BatchParts(train, ranks.rank, ranks.size) if ranks.several else train

        def loader() -> DataLoader:
            # A graph is of one shape, so a few shapes have to do for all batches.
            shapes = None if recorder is None else static_shapes(train, self._batches, ranks.size)
            return make_loader(self._train, self._batches, workers, pin_memory=cuda, shapes=shapes)

        self._make_loader, self._loader = loader, loader()
        # How the running epoch was dealt before another number of ranks took it up.
        self._dealt: list[tuple[int, int]] = []
        # Validation is short; a second set of workers would only hold memory.
        held_out = list(valid_batches(valid, max_frames))[ranks.rank :: ranks.size]
        self._valid_loader = make_loader(valid, held_out, 0, pin_memory=cuda)
        self._unchecked: list[tuple[list[str], Tensor]] = []
        self._saved_at = time.monotonic()
        self._exchange: GradientExchange | None = None
        if ranks.several:
            dtype = torch.bfloat16 if settings.exchange == "bf16" else torch.float32
            self._exchange = GradientExchange(self.sniper, dtype)
            for p in self.model.parameters():
                gradients.without_ddp(p)
            self._check_weights("at the start")
            restore.seed_rank(settings.seed, 0, ranks.rank)

    def resume(self) -> bool:
        """Takes up the run's last checkpoint, if there is one; before anything else.

        Raises:
            CheckpointError: it cannot be read, or holds what no run saves.
            ConfigError: it is of other speech, or the settings ask for what its masks cannot give.
        """
        saved = self.ranks.from_first(
            lambda: checkpoint.load(self.run) if checkpoint.exists(self.run) else None
        )
        if saved is None:
            return False
        restore.refuse_other_speech(saved, self.info, self.run)
        self.info = restore.with_saved_words(saved, self.info)
        progress = restore.saved_progress(saved)
        self._take_up_epoch(saved, progress)
        count = self._batches.of_epoch(progress.epoch)
        if progress.batch > count:
            found = f"progress: batch {progress.batch} of {count} in an epoch"
            raise checkpoint.damaged(saved.path, "meta.json", found)
        begun = progress.update > 0
        # Weights before masks, which zero what they prune; masks before moments, whose order in
        # memory follows the weights.
        restore.restore_weights(saved, self.model)
        if self.sniper is not None:
            restore.restore_sniper(saved, self.sniper, begun, self.config.train.epochs)
        if self.average is not None:
            restore.restore_average(saved, self.average)
        restore.restore_optimizer(saved, self.optimizer, begun)
        restore.restore_scheduler(saved, self.scheduler, progress.update)
        restore.restore_generators(saved, self.device, self.config.train.seed, self.ranks)
        self.progress = progress
        self._refuse_rise()
        return True

    def _take_up_epoch(self, saved: checkpoint.Checkpoint, progress: Progress) -> None:
        """Where batches depend on the number of ranks, and it was another: has the epoch go on
        with the utterances that are left of it.
        """
        before, size = saved.meta.get("ranks", 1), self.ranks.size
        if self.config.train.max_frames_per_rank is None or not progress.batch:
            return
        dealt = restore.dealt_before(saved, progress, size)
        if not dealt:
            return
        if self.config.train.batches_per_epoch is not None:
            raise ConfigError(
                f"train.max_frames_per_rank: batches of {before} ranks are others than of {size}, "
                f"and with train.batches_per_epoch an epoch is no pass over the data: go on with "
                f"{before} ranks to the end of epoch {progress.epoch + 1}"
            )
        self._dealt = dealt
        self._batches.take_up(progress.epoch, dealt)
        self._loader = self._make_loader()

    def _check_weights(self, which: str) -> None:
        """Refuses ranks that train different weights.

        Raises:
            ConfigError: with the checksums of two.
        """
        state = {name: [value] for name, value in self.model.state_dict().items()}
        self.ranks.check_same(
            {f"weights {which}": f"{checksum(state):#x}"},
            "all ranks must compute alike: the same versions, processors and settings",
        )

    @property
    def batches_with_fewer_utterances_than_ranks(self) -> int:
        """How many batches of a pass over the data leave some rank without an utterance."""
        return sum(len(batch) < self.ranks.size for batch in self._batches.one_pass())

    def _refuse_rise(self) -> None:
        """Refuses more epochs that would make the model sparser again, since a schedule by
        fractions stretches with `train.epochs`.
        """
        if self.sniper is None or self.done:
            return
        epoch, present = self.progress.epoch, self.sniper.sparsity
        asked = self.sniper.schedule.sparsity_at(epoch)
        if present is not None and asked > present:
            raise ConfigError(
                f"train.epochs: with {self.config.train.epochs} epochs the schedule asks for "
                f"sparsity {asked:g} in epoch {epoch + 1}, but the run is at {present:g} already; "
                "sparsity cannot rise, so choose fewer epochs or start anew"
            )

    def score(self) -> None:
        """Scores the weights at initialisation, unless that is done or the run is dense.

        Raises:
            NotFinite: a loss is NaN or infinite.
            ConfigError: a gradient is.
        """
        if self.sniper is None or self.sniper.scored:
            return
        started = time.monotonic()
        self.model.train()
        try:
            # The batches that training begins with: scoring sees no utterance that training would
            # not, if it is not shorter.
            self.sniper.score(self._few_batches(0), self._checked_loss)
        except ValueError as error:
            raise ConfigError(f"scoring: {error}") from None
        self.progress.score_seconds = time.monotonic() - started

    def _few_batches(self, epoch: int) -> Iterator[Batch]:
        """`sparsity.score_batches` from an epoch's first on."""
        few = self._batches.beginning(epoch, self.config.sparsity.score_batches)
        yield from make_loader(self._train, few, 0, pin_memory=False)

    def _checked_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = self.step.loss(batch)[0]
        self._unchecked.append((batch.ids, loss.detach()))
        self._check_finite()
        return loss

    def fit(self) -> None:
        """Runs the remaining epochs, fewer where `train.patience` runs out.

        Raises:
            NotFinite: a loss or gradient is NaN or infinite; the last checkpoint is from before.
            OutOfMemory: a GPU has too little for a step; the last checkpoint is from before.
            LoadingFailed: a worker died, or could not load a batch.
            SpeechError: the data were damaged since they were opened.
            Interrupted: `stop` was set; everything up to there is saved.
        """
        try:
            self.score()
            while not self.done:
                self.run_epoch()
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory(self._too_large(error)) from error
        except Exception as error:
            found = loading_error(error, self._train.path)
            if found is None:
                raise
            raise found from None
        finally:
            self.close()

    def close(self) -> None:
        """Ends the processes that load batches, as `fit` does; another epoch starts others."""
        end_workers(self._loader)

    @property
    def done(self) -> bool:
        """Whether nothing is left to train: all epochs, or no patience."""
        return is_done(self.progress, self.config)

    def run_epoch(self) -> dict[str, Any]:
        """Trains, validates and saves one epoch, or what is left of it.

        Returns:
            epoch, updates so far, sparsity, density, train and valid losses by term, frames,
            seconds (of training only), frames/s, the share of padding in what was computed, the
            process's peak memory so far, and apart the seconds of validation, of changing the
            sparsity and of the checkpoints since the row before; with `train.valid_every` also
            `within`: pairs of an update and the total validation loss after it.
        """
        progress = self.progress
        started = time.perf_counter()
        sparsity = 0.0
        if self.sniper is not None:
            self.model.train()
            batches = self._few_batches(progress.epoch)  # looked at where gradients decide
            with reworded(_in_settings_words):
                self.sniper.step(progress.epoch, self.optimizer, batches, self._checked_loss)
            sparsity = self.sniper.sparsity or 0.0  # as scheduled; the density says what is reached
        progress.change_seconds += time.perf_counter() - started
        # A resumed epoch goes on behind its last batch, in the same order.
        self._batches.seek(progress.epoch, progress.batch)
        self.observer.epoch_begins(progress, len(self._batches), sparsity)
        self._train_epoch()
        started = time.perf_counter()
        valid = self.validate()
        row = {
            "epoch": progress.epoch,
            "update": progress.update,
            "sparsity": sparsity,
            "density": self.density(),
            "train": {k: v / max(progress.batch, 1) for k, v in progress.loss_sums.items()},
            "valid": valid,
            "frames": progress.frames,
            "seconds": progress.seconds,
            "valid_seconds": time.perf_counter() - started,
            "change_seconds": progress.change_seconds,
            "save_seconds": progress.save_seconds,
            "frames_per_second": progress.frames / max(progress.seconds, 1e-9),
            "padding": 1 - progress.frames / max(progress.padded_frames, 1),
            "peak_memory_gib": peak_memory(self.device) / 2**30,
            "lr": self.scheduler.get_last_lr()[0],
        }
        if progress.within:
            row["within"] = progress.within
        progress.history.append(row)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        self._dealt = []
        progress.seconds, progress.loss_sums, progress.within = 0.0, {}, []
        progress.frames = progress.padded_frames = 0
        progress.change_seconds = progress.save_seconds = 0.0
        if self.ranks.several:
            self._check_weights(f"after epoch {progress.epoch}")
        best = row["valid"]["total"] < progress.best_loss
        progress.best_loss = min(progress.best_loss, row["valid"]["total"])
        self.save(best)
        flat = flat_epochs(progress.history)
        with self._speaking():
            self.observer.epoch_ended(EpochEnd(row, progress.update, self.done, flat, self.model))
        return row

    def _speaking(self) -> contextlib.AbstractContextManager[None]:
        """The model holds what is to speak: the average, where there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def density(self) -> float:
        """Share of the model's weights that are active."""
        if self.sniper is None:
            return 1.0
        sizes = {n: p.numel() for n, p in self.model.named_parameters()}
        pruned = sum(sizes[n] * (1 - d) for n, d in self.sniper.densities().items())
        return 1 - pruned / sum(sizes.values())

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss terms on the held-out utterances, teacher-forced, weighted by frames.

        Raises:
            NotFinite: a loss is NaN or infinite.
        """
        self.model.eval()
        sums: dict[str, Tensor] = {}
        frames = 0
        with self._speaking():
            for batch in self._valid_loader:
                total, terms = self.step.loss(batch)
                for name, value in {"total": total, **terms}.items():
                    # Weighted by frames, or a short batch would count as much as a long one.
                    sums[name] = sums.get(name, 0) + value.double() * batch.n_frames
                frames += batch.n_frames
                self._unchecked.append((batch.ids, total))
        self.model.train()
        self._check_finite()
        # A rank may have had no batch. In the order of the ranks, so that all get the same bits.
        parts = self.ranks.gather((frames, {name: float(v) for name, v in sums.items()}))
        names = next(iter(values for count, values in parts if count))
        frames = sum(count for count, _ in parts)
        return {n: sum(values.get(n, 0.0) for _, values in parts) / frames for n in names}

    def save(self, best: bool = False) -> None:
        """Writes a checkpoint of this very moment; every rank has to call it."""
        self._check_finite()
        started = self._saved_at = time.monotonic()
        cuda = self.device.type == "cuda"
        own = (torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if cuda else None)
        generators = self.ranks.gather(own)
        with self._speaking():
            if self.sniper is not None:
                # With paper_exact an update moves pruned weights, and whoever reads a checkpoint
                # knows no masks.
                self.sniper.zero_pruned()
            if self.ranks.first:
                self._write(generators, best)
        if self.ranks.first:
            self.progress.save_seconds += time.monotonic() - started

    def _write(self, generators: list[Any], best: bool) -> None:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sniper": self.sniper.state_dict() if self.sniper else None,
            "rng": generators[0][0],
            "cuda_rng": generators[0][1],
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        meta = {
            "config": self.config.to_dict(),
            "speech": self.info.to_json(),
            "progress": asdict(self.progress),
        }
        if self.ranks.several:
            meta["ranks"] = self.ranks.size
            state["rng_of_ranks"] = generators
        if self._dealt:
            meta["dealt"] = self._dealt
        weights = self.model.state_dict()
        checkpoint.save(self.run, self.progress.update, weights, state, meta, best)

    def _train_epoch(self) -> None:
        progress, settings = self.progress, self.config.train
        self.model.train()
        # Carried on in float64, so that an epoch in two parts adds up to the same bits as in one.
        names = ("total", *self.model.loss_terms)
        begun = [progress.loss_sums.get(name, 0.0) for name in names]
        sums = torch.tensor(begun, dtype=torch.float64).to(self.device)
        for group in grouped(self._loader, len(self._batches), settings.accumulation):
            started = time.perf_counter()
            rows = []
            for batch in group:
                # Divided by the size of this very group, as the last one of an epoch may be
                # smaller.
                values = self.step.backward(batch, 1 / len(group))
                # A copy: a graph writes the next batch's losses to the same place.
                rows.append(torch.stack([values[name] for name in names]))
                self._unchecked.append((batch.ids, values["total"].clone()))
                utterances, frames = len(batch), batch.n_frames or 0
                if batch.totals is not None:
                    utterances, frames = batch.totals[:2].tolist()  # of all ranks together
                progress.frames += frames
                progress.padded_frames += utterances * batch.mel.shape[1]
                progress.batch += 1
            losses = self._of_all_ranks(torch.stack(rows))
            self._update([name for batch in group for name in batch.ids])
            sums = functools.reduce(torch.add, losses.double(), sums)
            mean = functools.reduce(torch.add, losses / len(group))
            self.observer.updated(progress, dict(zip(names, mean, strict=True)))
            progress.seconds += time.perf_counter() - started
            self._validate_within()
            stop, must_save = self._must_save()
            if must_save:
                progress.loss_sums = dict(zip(names, sums.tolist(), strict=True))
                self.save()
            if stop:
                self.ranks.any(True)  # nobody ends while rank 0 still writes
                raise Interrupted
        started = time.perf_counter()
        progress.loss_sums = dict(zip(names, sums.tolist(), strict=True))  # waits for a GPU
        progress.seconds += time.perf_counter() - started
        self._check_finite()

    def _validate_within(self) -> None:
        """Validates where `train.valid_every` asks for it before the end of the epoch."""
        progress, every = self.progress, self.config.train.valid_every
        ends = progress.batch == self._batches.of_epoch(progress.epoch)
        if every is not None and not ends and progress.update % every == 0:
            progress.within.append([progress.update, self.validate()["total"]])

    def _of_all_ranks(self, losses: Tensor) -> Tensor:
        """Adds up the gradients of all ranks; gives the losses of all of them together.

        Gradients are added up in one exchange behind the backward pass, not by DDP within it: a
        recorded graph then ends before the exchange, micro-batches exchange once an update, and
        what is pruned is not sent. What that costs is an exchange that nothing else hides.
        """
        if self._exchange is not None:
            # Losses of parts are divided by counts of the whole, so sums are what is meant.
            self._exchange.sum([p for p in self.model.parameters() if p.requires_grad])
            losses = self.ranks.sum(losses)
        return losses

    def _update(self, ids: list[str]) -> None:
        self._unchecked.append((ids, self.step.clip()))
        if self._looks():
            self._check_finite()
        self.step.update()
        if self.average is not None:
            self.average.update()
        self.scheduler.step()
        self.progress.update += 1

    def _looks(self) -> bool:
        """Whether it is time to look at values and at other ranks; on a GPU doing so at every
        update would wait for it each time.
        """
        every = 1 if self.device.type == "cpu" else self.config.train.log_every
        return self.progress.update % every == 0

    def _check_finite(self) -> None:
        good: list[bool] = []
        if self._unchecked:
            good = torch.stack([v for _, v in self._unchecked]).isfinite().tolist()
        # By utterance, because that is what a user can look at and take out.
        bad = [ids for (ids, _), fine in zip(self._unchecked, good, strict=True) if not fine]
        first = good.index(False) if bad else len(good)
        self._unchecked.clear()
        (failed,) = self.ranks.any(bool(bad))
        if failed:
            # After the exchange all ranks have NaN; the loss that was the first is the cause.
            _, bad = min(self.ranks.gather((first, bad)))
            progress = self.progress
            last = str(checkpoint.find(self.run)) if checkpoint.exists(self.run) else "none"
            if progress.history:  # what was saved may be finite and worth nothing
                loss = progress.history[-1]["valid"]["total"]
                last += f", with a validation loss of {loss:.4g} ({progress.best_loss:.4g} at best)"
            raise NotFinite(
                f"the loss or its gradient is not finite in epoch {progress.epoch + 1}, after "
                f"{progress.update} updates, with the utterances {', '.join(bad[0])}; "
                f"last checkpoint: {last}"
            )

    def _too_large(self, error: Exception) -> str:
        """What a step needs, what lowers it, and where the run stands."""
        settings, progress = self.config.train, self.progress
        lower = f"a smaller train.max_frames (now {settings.max_frames}) with a larger "
        lower += f"train.accumulation (now {settings.accumulation}) in a new output folder"
        if self.step.graphs is not None:
            lower = f"train.cuda_graphs=off, which continues this run, or {lower}"
        used = peak_memory(self.device) / 2**30
        words = " ".join(str(error).split()).removesuffix(".")[:300]
        where = "none was saved"
        if checkpoint.exists(self.run):
            where = f"{checkpoint.find(self.run)}, from which the same command continues"
        return (
            f"the GPU is out of memory in epoch {progress.epoch + 1}, after {progress.update} "
            f"updates: a step of train.max_frames={settings.max_frames} takes more than the "
            f"{used:.1f} GiB that this process could get ({words}). "
            f"Needs less: {lower}. Last checkpoint: {where}"
        )

    def _must_save(self) -> tuple[bool, bool]:
        """Whether to stop, and whether to save now."""
        minutes = (time.monotonic() - self._saved_at) / 60
        due = minutes > self.config.train.checkpoint_minutes
        if self.ranks.several:
            if not self._looks():
                return False, False
            # A signal may have reached one of them alone, and clocks differ.
            self.stop, due = self.ranks.any(self.stop, due and self.ranks.first)
        return self.stop, self.stop or due


# What a warning of `Sniper`'s tells to change, and what that is called here.
_IN_SETTINGS = {
    r"cap=Following\(([^()]*)\)": r"sparsity.spread=\1",
    r"Fixed\(max_param_sparsity=([^()]*)\)": r"sparsity.max_param_sparsity=\1",
    r"a smaller block_size": "a smaller sparsity.block_size",
    r"score on more batches": "score on more batches (sparsity.score_batches)",
}


def _in_settings_words(text: str) -> str:
    for argument, setting in _IN_SETTINGS.items():
        text = re.sub(argument, setting, text)
    return text


def make_sniper(model: nn.Module, config: Config) -> Sniper | None:
    """SNIPER as the config has it, or None for a dense run.

    Raises:
        ConfigError: settings that do not fit each other or the model.
    """
    schedule, settings = config.sparsity_schedule(), config.sparsity
    # Nothing is scored or masked then, and the model is torch's own.
    if schedule.sparsities == (0.0,):
        return None
    lost = unmatched(model, settings.exclude)
    if lost:  # a preset names parts that an override may have taken away
        warnings.warn(f"sparsity.exclude: no parameter matches {', '.join(lost)}", stacklevel=2)
    spread, most = settings.spread, settings.max_lr_scale
    try:
        return Sniper(
            model,
            schedule,
            block_size=settings.block_size,
            exclude=[pattern for pattern in settings.exclude if pattern not in lost],
            cap=Fixed(settings.max_param_sparsity) if spread is None else Following(spread),
            new_weights=NewWeights(settings.restore_init, float(settings.prime_moments)),
            lr_scale=None if most is None else LearningRateScale(most),
            paper_exact=settings.paper_exact,
            growth=settings.growth,
            prune=settings.prune,
        )
    except ValueError as error:
        raise ConfigError(f"sparsity: {error}") from None
