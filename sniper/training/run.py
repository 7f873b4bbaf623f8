# SPDX-License-Identifier: Apache-2.0
"""One run from its settings to its results: what `python -m sniper.train` does."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from sniper import _C, __version__
from sniper.ops import selfcheck
from sniper.ops.backends.triton import launch
from sniper.training import checkpoint
from sniper.training.config import Config, differences, dump, flat, with_defaults_of
from sniper.training.device import check_precision, pick_device, set_up_torch, why_no_cuda
from sniper.training.files import only_run, write_file
from sniper.training.prepared import refuse_other_data, refuse_other_features
from sniper.training.ranks import ALONE, Ranks
from sniper.training.restore import saved_config
from sniper.training.settings import ConfigError
from sniper.training.speaker import load_speaker
from sniper.training.step import pick_recorder
from sniper.training.trainer import Trainer
from sniper.tts.audio.vocoder import Vocoder, load_vocoder
from sniper.tts.corpus.dataset import CORPUS, FeatureDataset
from sniper.tts.corpus.prepare import prepare_demo, prepare_ljspeech
from sniper.tts.errors import SpeechError
from sniper.tts.files import for_shell, in_the_way
from sniper.tts.processes import held_signals, signals

# Changing these does not change what is learned, or only for how long. That the data are the same
# wherever they lie, the trainer checks by their statistics; masks are carried over to other blocks.
FREE = {
    "name",
    "output",
    "sample_text",
    "init",
    "vocoder",
    "data.root",
    "data.prepared",
    "sparsity.block_size",
    "train.epochs",
    "train.patience",
    "train.device",
    "train.autotune",
    "train.cuda_graphs",
    "train.workers",
    "train.threads",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_minutes",
    "train.timeout_minutes",
    "data.workers",
}
# What may differ between ranks, since it says how each does its own part.
OF_EACH_RANK = ("train.workers", "train.threads", "data.workers")


@contextlib.contextmanager
def open_run(
    config: Config, fresh: bool = False, ranks: Ranks = ALONE, relayed: bool = False
) -> Iterator[Trainer]:
    """What `config` describes, made ready: `with open_run(config) as trainer: trainer.fit()`.

    Prepares the data, takes up what the output folder holds, and writes the results when the block
    ends without an error. Whoever trains calls the trainer itself, so that a traceback shows the
    way from the command to the fault and nothing else.

    Args:
        fresh: delete what the output folder holds of an earlier run.
        ranks: this process and those that train with it; rank 0 alone writes and prints.
        relayed: whoever started this process passes signals on, so that one may come twice: the
            second does not stop at once.

    Raises:
        SpeechError, ConfigError, CheckpointError, NotFinite, OutOfMemory, LoadingFailed,
            Interrupted: each with a message for the user.
        RankLost: another rank has ended.
    """
    # Whatever may be refused, before the data are prepared and before anything is deleted.
    device = pick_device(config.train.device, ranks.local)
    check_precision(device, config.train.precision)
    if device.type == "cpu":
        pick_recorder(device, config.train.cuda_graphs)
    ranks.connect(device, config.train.timeout_minutes)
    _refuse_other_ranks(config, device, ranks)
    folder = Path(config.output)
    if not ranks.first:
        trainer, _, _ = _take_up(config, folder, fresh, ranks)
        with signals(lambda: _stop_soon(trainer, relayed)):
            yield trainer
        return
    with _made(folder), only_run(folder):
        trainer, valid, vocoder = _take_up(config, folder, fresh, ranks)
        with _observed(trainer, valid, vocoder), signals(lambda: _stop_soon(trainer, relayed)):
            yield trainer
        _finish(trainer, valid)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A run's folder; one that was not there and stays empty, since the run is refused, goes."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"output: expected a folder, got {in_the_way(error)}") from None
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _refuse_other_ranks(config: Config, device: torch.device, ranks: Ranks) -> None:
    """Refuses ranks that would compute something else than this one.

    Raises:
        ConfigError: other code, other settings, or processors that round differently.
    """
    if not ranks.several:
        return
    cuda = device.type == "cuda"
    chip = torch.cuda.get_device_name(device) if cuda else _C.cpu.instruction_set()
    code = {"sniper": f"{__version__} ({_digest_of_code()})", "torch": torch.__version__}
    ranks.check_same(code, "install the same on every machine")
    processor = {"processor": f"{device.type} {chip}"}
    ranks.check_same(
        processor, "take machines of one kind; SNIPER_CPU=NAME takes fewer instructions"
    )
    # One by one, so that the setting is named that differs.
    settings = {key: repr(value) for key, value in flat(config.to_dict()).items()}
    for own in OF_EACH_RANK:
        del settings[own]
    ranks.check_same(settings, "start every rank with the same settings")


def _digest_of_code() -> str:
    """Eight digits that tell two states of this package from each other."""
    digest = hashlib.blake2b(digest_size=4)
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    digest.update(Path(_C.__file__).read_bytes())
    return digest.hexdigest()


def _digest_of_corpus(data: Path) -> str:
    """Of its description, which carries the checksums of the rest."""
    path = data / CORPUS
    if not path.is_file():
        return "nothing"
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _take_up(
    config: Config, folder: Path, fresh: bool, ranks: Ranks
) -> tuple[Trainer, FeatureDataset, Vocoder | None]:
    """The trainer where the run stands, the held-out utterances, and who speaks its samples."""
    if not fresh:
        config = ranks.from_first(lambda: _as_begun(config, folder))
    begun = ranks.from_first(lambda: not fresh and checkpoint.exists(folder))
    if ranks.first and config.init is not None and not begun:
        _refuse_init(Path(config.init), folder, fresh)

    def speech() -> Path:
        data = prepare_data(config)
        # Older versions did not look when a run began, and whether its speech is still the same
        # the trainer asks.
        if not begun:
            refuse_other_data(config, data)
        return data

    data = ranks.from_first(speech)
    if ranks.several:
        there = {f"corpus in {data}": _digest_of_corpus(data)}
        ranks.check_same(there, "copy it to every machine, or share it")
    train, valid = (FeatureDataset(data / f"{s}.safetensors") for s in ("train", "valid"))
    set_up_torch(config.train)

    def weights_to_start_from() -> checkpoint.Checkpoint | None:
        # Only for a run that begins: one that goes on has weights of its own.
        if config.init is None or begun:
            return None
        try:
            return checkpoint.load(Path(config.init), "best", weights_only=True)
        except checkpoint.CheckpointError as error:
            raise ConfigError(f"init: {error}") from None

    initial = ranks.from_first(weights_to_start_from)
    vocoder = None
    if ranks.first:
        device = pick_device(config.train.device, ranks.local)
        vocoder = load_vocoder(config.vocoder, train.info.features, device)
    with held_signals():
        # The first optimizer loads it, and parts of it that are C++ abort the process when an
        # exception of Python comes through them.
        import_module("torch._dynamo")
    trainer = Trainer(config, train, valid, train.info, initial=initial, ranks=ranks)
    # Only now: whatever could have refused the new run has been asked.
    if fresh and ranks.first:
        _delete(folder)
    resumed = trainer.resume()
    if ranks.first:
        write_file(folder / "config.yaml", dump(config).encode())
        _announce(trainer, train, resumed)
    return trainer, valid, vocoder


def _refuse_init(init: Path, folder: Path, fresh: bool) -> None:
    """Refuses one that is missing, before the data are prepared, which may take long, or that
    `fresh` would delete from `folder` before anything has taken its place.
    """
    try:
        found = checkpoint.find(init, "best")
    except checkpoint.CheckpointError as error:
        raise ConfigError(f"init: {error}") from None
    if fresh and checkpoint.would_delete(folder, found):
        raise ConfigError(
            f"init: {init} holds the weights that --fresh deletes from {folder}; use another "
            "output=FOLDER"
        )


@contextlib.contextmanager
def _observed(trainer: Trainer, valid: FeatureDataset, vocoder: Vocoder | None) -> Iterator[None]:
    """Shows the run in the terminal and in TensorBoard, whatever becomes of it."""
    from sniper.training.report import Observers, TensorBoard, Terminal  # who measures needs none

    settings = trainer.config.train
    terminal = Terminal(settings.epochs)
    board = TensorBoard(
        trainer.run,
        trainer.progress.update,
        settings.log_every,
        settings.sample_every,
        valid,
        vocoder,
    )
    observer = trainer.observer = Observers(terminal, board)
    try:
        yield
    finally:
        observer.close()


def prepare_data(config: Config) -> Path:
    """The folder of the prepared features, made now if it is not there.

    Raises:
        SpeechError, ConfigError: it cannot be made, or was made with other settings.
    """
    data, features = config.data, config.feature_config()
    shared = {"features": features, "valid": data.valid, "seed": data.seed, "workers": data.workers}
    demo = data.kind == "demo"
    out = Path(data.prepared or (data.root if demo else f"{data.root.rstrip('/')}-prepared"))
    if not demo and (out / "corpus.json").exists():
        refuse_other_features(config, out)
        return out  # prepared by hand, perhaps where the recordings are not
    try:
        if demo:
            return prepare_demo(out, utterances=data.utterances, **shared).folder
        return prepare_ljspeech(
            data.root,
            out,
            textgrids=data.textgrids,
            lexicon=data.lexicon,
            speakers=data.speakers,
            **shared,
        ).folder
    except SpeechError as error:
        if "--force" not in str(error):
            raise
        key = "data.root" if demo and not data.prepared else "data.prepared"
        raise SpeechError(
            f"{error}. Here --out is {key}; --force belongs to python -m sniper.prepare"
        ) from None


def _as_begun(config: Config, folder: Path) -> Config:
    """The settings with which a run goes on.

    Raises:
        ConfigError: it was begun with others.
    """
    if not checkpoint.exists(folder):
        return config
    path = checkpoint.find(folder)
    saved = saved_config(checkpoint.Checkpoint(path, {}, {}, checkpoint.read_meta(path)))
    # A default that a newer version has changed is no change that the user has made.
    config = with_defaults_of(config, saved)
    if config.init not in (None, saved.init):
        print(
            f"note: init={config.init} is not looked at: {folder} holds a run, which goes on with "
            "its own weights; use another output=FOLDER, or --fresh to start anew"
        )
    # What config.yaml says is how the run began.
    config = config.model_copy(update={"init": saved.init})
    changed = differences(saved, config, FREE)
    if changed:
        lines = [f"  {line}" for line in changed]
        raise ConfigError(
            "\n".join([f"{folder} holds a run with other settings:", *lines])
            + "\nuse another output=FOLDER, or --fresh to start anew"
        )
    return config


def _delete(folder: Path) -> None:
    """Removes what an earlier run has left, and nothing that somebody else keeps there."""
    checkpoint.delete(folder)
    board = folder / "tensorboard"
    for path in board.glob("events.out.tfevents.*"):
        # Event files are TensorBoard's own, named by time and host; what else lies there stays.
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        board.rmdir()


def _announce(trainer: Trainer, train: FeatureDataset, resumed: bool) -> None:
    config, progress = trainer.config, trainer.progress
    count = sum(p.numel() for p in trainer.model.parameters())
    hours = train.mel_lengths.sum() * train.info.features.hop_length
    hours = hours / train.info.features.sample_rate / 3600
    print(f"{config.name}: FastSpeech2, {count:,} parameters, on {_place(trainer)}")
    print(f"{len(train)} utterances, {hours:.2f} h of {train.info.speech}")
    if config.init is not None and not resumed:
        print("\n".join([f"starts from the weights of {config.init}", *trainer.inherited]))
    print(_what_runs(trainer))
    kind = (
        "weights" if config.sparsity.block_size is None else f"{config.sparsity.block_size}-blocks"
    )
    print(f"sparsity of {kind}: {config.sparsity_schedule()}")
    if trainer.ranks.several:
        print(_how_batches_are_shared(trainer))
    remains = ends_sparse(config)
    if remains:
        print(remains)
    if resumed and trainer.done:
        more = "train.epochs" if progress.epoch >= config.train.epochs else "train.patience"
        print(
            f"finished already, after {progress.epoch} epochs: a larger {more} trains on, "
            "--fresh starts anew"
        )
    elif resumed:
        print(f"resumed at epoch {progress.epoch + 1}, batch {progress.batch + 1}")


def _what_runs(trainer: Trainer) -> str:
    """Which kernels, how the step is launched, and what a GPU's check has left out; checks it now
    if nobody has. `sniper.doctor` says more.
    """
    if trainer.sniper is None or trainer.sniper.block_size is None:
        return "products by torch: no blocks are pruned"
    if trainer.device.type == "cpu":
        return f"products by our {_C.cpu.instruction_set()} kernels or torch, whichever is faster"
    why_not = launch.why_not(trainer.device.index)
    if why_not is not None:
        return f"products by torch: {why_not}"
    steps = "recorded as CUDA graphs" if trainer.step.graphs is not None else "launched one by one"
    precision = trainer.config.train.precision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the line below says it
        verdicts = selfcheck.check(trainer.device, precision, trainer.sniper.block_size)
    left_out = {name: v.message for name, v in verdicts.items() if not v.ok}
    checked = "all passed their check"
    if left_out:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        checked = f"left out by their check: {', '.join(left_out)} ({reasons})"
    return (
        f"products by Triton kernels or torch, whichever is faster; steps {steps}\n"
        f"Triton kernels for {precision} in {trainer.sniper.block_size}-blocks: {checked}"
    )


def _how_batches_are_shared(trainer: Trainer) -> str:
    """What an update sees on all ranks together and on each, and what follows from that."""
    settings, size = trainer.config.train, trainer.ranks.size
    at_most = settings.max_frames
    if settings.max_frames_per_rank is not None:
        at_most = size * settings.max_frames_per_rank
    at_most *= settings.accumulation
    updates = -(-trainer.batches_per_epoch // settings.accumulation)
    whole = settings.batches_per_epoch is None
    seen = "with every utterance in one of them" if whole else "as train.batches_per_epoch says"
    rate = settings.lr * trainer.model.config.d_model**-0.5 * settings.warmup**-0.5
    lines = [
        f"{size} ranks: updates of at most {at_most:,} padded frames, {at_most // size:,} on each; "
        f"learning rate up to {rate:.2g}, reached at update {settings.warmup:,}; {updates:,} "
        f"updates an epoch, {seen}"
    ]
    few = trainer.batches_with_fewer_utterances_than_ranks
    if few:
        lines.append(
            f"note: {few} of {trainer.batches_per_pass} batches have fewer utterances than there "
            "are ranks, and some ranks wait; a larger train.max_frames gives all of them some"
        )
    return "\n".join(lines)


def _place(trainer: Trainer) -> str:
    if trainer.device.type == "cuda":
        return torch.cuda.get_device_name(trainer.device)
    place = f"CPU, {torch.get_num_threads()} threads"
    if trainer.config.train.device == "auto":
        place += f" ({why_no_cuda()})"
    return place


def ends_sparse(config: Config) -> str | None:
    """That a run ends sparse and why, in one line; None where it ends dense."""
    schedule, epochs = config.sparsity_schedule(), config.train.epochs
    left = schedule.sparsity_at(epochs - 1)
    if not left:
        return None
    never = [f"{sparsity:.0%} at epoch {epoch}" for epoch, sparsity in schedule if epoch >= epochs]
    if never:
        why = f"the schedule's {', '.join(never)} comes after the last of {epochs} epochs"
    else:
        why = "the schedule does not come down to 0"
    return f"note: training ends {left:.0%} sparse: {why}"


def _stop_soon(trainer: Trainer, relayed: bool) -> None:
    """Finishes the update and saves; the second time stops at once, unless signals are `relayed`:
    then it comes from the terminal or the scheduler, and once more from whoever has started this
    process, who also knows how to stop at once.
    """
    relayed = relayed or trainer.ranks.several
    if trainer.stop and not relayed:
        raise KeyboardInterrupt
    told, trainer.stop = trainer.stop, True
    if not told and trainer.ranks.first:
        more = b"" if relayed else b"; once more stops at once"
        # Not print: the signal may have come in the middle of one. What showed it may be gone: a
        # terminal that was closed, or `tee`, which Ctrl-C ends too.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this update" + more + b"\n")


def _finish(trainer: Trainer, valid: FeatureDataset) -> None:
    from sniper.training.report import write_results

    run, rows = trainer.run, trainer.progress.history
    speaker = load_speaker(run, "best", str(trainer.device), trainer.config.vocoder)
    text = trainer.config.sample_text or valid.texts[0]
    held_out, said = write_results(run, rows, speaker, valid, text)
    print(
        f"validation loss {rows[0]['valid']['total']:.3f} after the first epoch, "
        f"{trainer.progress.best_loss:.3f} at best"
    )
    print(
        f"held-out {held_out.id}: mel L1 {held_out.mel_l1:.3f} against the ground truth; "
        f"the mean mel's is {held_out.mean_l1:.3f}"
    )
    print(f'sample.wav says: "{said}"; {speaker.vocoder.about}')
    print(f"all in {run}/: sample.wav mel.png loss.png config.yaml checkpoints/ tensorboard/")
    who = speaker.who() if len(speaker.info.speakers) > 1 else None
    of = f" --speaker {shlex.quote(who)}" if who else ""
    where = f"--checkpoint {for_shell(run)}{of}"
    print(f'speak:      python -m sniper.synthesize {where} "Some text." -o out.wav')
    print(f"follow:     tensorboard --logdir {for_shell(run)}/tensorboard")
