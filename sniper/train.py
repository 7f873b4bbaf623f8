# SPDX-License-Identifier: Apache-2.0
"""Train FastSpeech2 with SNIPER.

    python -m sniper.train                                     # the demo
    python -m sniper.train --config ljspeech-sniper data.root=/data/LJSpeech-1.1
    python -m sniper.train --config my.yaml train.epochs=3

The same command again resumes where the run stood. Exit status: 0 finished, 1 stopped by an error,
2 wrong arguments, settings or data, 130 stopped by Ctrl-C or SIGTERM (saved).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sniper.training.config import Config
    from sniper.training.trainer import Trainer

# Changing these does not change what is learned, or only for how long. That the data are the same
# wherever they lie, the trainer checks by their statistics; masks are carried over to other blocks.
_FREE = {
    "name",
    "output",
    "sample_text",
    "data.root",
    "data.prepared",
    "sparsity.block_size",
    "train.epochs",
    "train.device",
    "train.autotune",
    "train.cuda_graphs",
    "train.workers",
    "train.threads",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_minutes",
    "data.workers",
}


def _parser() -> argparse.ArgumentParser:
    from sniper.training.settings import PRESETS

    presets = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="python -m sniper.train",
        description="Train FastSpeech2 with SNIPER; the same command again resumes.",
        epilog="Exit status: 0 finished, 1 stopped by an error, 2 wrong arguments, settings or "
        "data, 130 stopped by Ctrl-C or SIGTERM (saved).",
    )
    parser.add_argument(
        "--config", default="demo", metavar="NAME_OR_PATH", help=f"a YAML file or one of: {presets}"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete the run's checkpoints and start anew"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as train.epochs=3 output=runs/x"
    )
    return parser


def prepare_data(config: Config) -> Path:
    """The folder of the prepared features, made now if it is not there.

    Raises:
        SpeechError: it cannot be made, or was made with other settings.
    """
    from sniper.prepare import prepare_demo, prepare_ljspeech
    from sniper.tts.errors import SpeechError

    data, features = config.data, config.feature_config()
    shared = {"features": features, "valid": data.valid, "seed": data.seed, "workers": data.workers}
    demo = data.kind == "demo"
    out = Path(data.prepared or (data.root if demo else f"{data.root.rstrip('/')}-prepared"))
    if not demo and (out / "corpus.json").exists():
        _refuse_other_features(config, out)
        return out  # prepared by hand, perhaps where the recordings are not
    try:
        if demo:
            return prepare_demo(out, utterances=data.utterances, **shared).folder
        return prepare_ljspeech(
            data.root, out, textgrids=data.textgrids, lexicon=data.lexicon, **shared
        ).folder
    except SpeechError as error:
        if "--force" not in str(error):
            raise
        key = "data.root" if demo else "data.prepared"
        raise SpeechError(
            f"{error}. Here --out is {key}; --force belongs to python -m sniper.prepare"
        ) from None


def _refuse_other_features(config: Config, folder: Path) -> None:
    from sniper.training.config import ConfigError
    from sniper.tts.corpus.dataset import load_corpus_info

    there = load_corpus_info(folder).features.to_json()
    for key, value in config.features.items():
        if there[key] != value:
            raise ConfigError(
                f"features.{key}: {folder} was prepared with {there[key]!r}, got {value!r}"
            )


def run(config: Config, fresh: bool = False) -> Trainer:
    """Trains what `config` describes, to the end.

    Args:
        fresh: delete what the output folder holds of an earlier run.

    Raises:
        SpeechError, ConfigError, CheckpointError, NotFinite, Interrupted: each with a message for
            the user.
    """
    from sniper.training.config import dump
    from sniper.training.parts import pick_device, set_up_torch
    from sniper.training.report import Observers, TensorBoard, Terminal
    from sniper.training.trainer import Trainer
    from sniper.tts.corpus.dataset import FeatureDataset

    # Whatever may be refused, before the data are prepared and before anything is deleted.
    pick_device(config.train.device)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if not fresh:
        _refuse_other_settings(config)
    data = prepare_data(config)
    train, valid = (FeatureDataset(data / f"{s}.safetensors") for s in ("train", "valid"))
    set_up_torch(config.train)
    trainer = Trainer(config, train, valid, train.info)
    if fresh:
        _delete(folder)
    resumed = trainer.resume()
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    _announce(trainer, train, resumed)
    settings = config.train
    observer = trainer.observer = Observers(
        Terminal(settings.epochs),
        TensorBoard(
            folder, trainer.progress.update, settings.log_every, settings.sample_every, valid
        ),
    )
    try:
        with _signals(lambda: _stop_soon(trainer)):
            trainer.fit()
    finally:
        observer.close()
    _finish(trainer, valid)
    return trainer


def _refuse_other_settings(config: Config) -> None:
    """Refuses to go on with a run that was begun with other settings."""
    from sniper.training import checkpoint
    from sniper.training.config import ConfigError, differences, from_dict

    folder = Path(config.output)
    if not checkpoint.exists(folder):
        return
    saved = checkpoint.read_meta(checkpoint.find(folder))["config"]
    changed = differences(from_dict(saved), config, _FREE)
    if changed:
        lines = [f"  {line}" for line in changed]
        raise ConfigError(
            "\n".join([f"{folder} holds a run with other settings:", *lines])
            + "\nuse another output=FOLDER, or --fresh to start anew"
        )


def _delete(folder: Path) -> None:
    for part in ("checkpoints", "tensorboard"):
        if (folder / part).exists():
            shutil.rmtree(folder / part)


def _announce(trainer: Trainer, train, resumed: bool) -> None:
    import torch

    config, progress = trainer.config, trainer.progress
    count = sum(p.numel() for p in trainer.model.parameters())
    hours = train.mel_lengths.sum() * train.info.features.hop_length
    hours = hours / train.info.features.sample_rate / 3600
    where = torch.cuda.get_device_name() if trainer.device.type == "cuda" else "CPU"
    threads = f", {torch.get_num_threads()} threads" if where == "CPU" else ""
    print(f"{config.name}: FastSpeech2, {count:,} parameters, on {where}{threads}")
    print(f"{len(train)} utterances, {hours:.2f} h of {train.info.speech}")
    kind = (
        "weights" if config.sparsity.block_size is None else f"{config.sparsity.block_size}-blocks"
    )
    print(f"sparsity of {kind}: {config.sparsity_schedule()}")
    if resumed and progress.epoch >= config.train.epochs:
        print(
            f"finished already, after {progress.epoch} epochs: a larger train.epochs trains on, "
            "--fresh starts anew"
        )
    elif resumed:
        print(f"resumed at epoch {progress.epoch + 1}, batch {progress.batch + 1}")


@contextlib.contextmanager
def _signals(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM do `act`."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: act()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _stop_soon(trainer: Trainer) -> None:
    """Finishes the update and saves; the second time stops at once."""
    if trainer.stop:
        raise KeyboardInterrupt
    trainer.stop = True
    # Not print: the signal may have come in the middle of one.
    os.write(2, b"\nstopping after this update; once more stops at once\n")


def _finish(trainer: Trainer, valid) -> None:
    from sniper.synthesize import load_speaker
    from sniper.training.report import write_results

    run = trainer.run
    speaker = load_speaker(run, "best", str(trainer.device))
    text = trainer.config.sample_text or valid.texts[0]
    held_out, said = write_results(trainer, speaker, valid, text)
    rows = trainer.progress.history
    print(
        f"validation loss {rows[0]['valid']['total']:.3f} after the first epoch, "
        f"{trainer.progress.best_loss:.3f} at best"
    )
    print(
        f"held-out {held_out.id}: mel L1 {held_out.mel_l1:.3f} against the ground truth; "
        f"the mean mel's is {held_out.mean_l1:.3f}"
    )
    print(f'sample.wav says: "{said}"')
    print(f"all in {run}/: sample.wav mel.png loss.png config.yaml checkpoints/ tensorboard/")
    print(f'speak:      python -m sniper.synthesize --checkpoint {run} "Some text." -o out.wav')
    print(f"follow:     tensorboard --logdir {run}/tensorboard")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        return _main(argv)
    except ImportError as error:
        if (error.name or "sniper").startswith("sniper"):
            raise
        print(f"error: {error}: pip install 'sniper-tts[demo]'", file=sys.stderr)
        return 2


def _main(argv: list[str] | None) -> int:
    options = _parser().parse_args(argv)

    from sniper.training.checkpoint import CheckpointError
    from sniper.training.config import ConfigError, load
    from sniper.training.progress import Interrupted, NotFinite
    from sniper.tts.errors import SpeechError

    again = "the same command" + (" without --fresh" if options.fresh else "")
    try:
        with _signals(_interrupt):
            run(load(options.config, options.overrides), options.fresh)
    except (NotFinite, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (SpeechError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        print(f"stopped, saved; {again} continues", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"stopped; {again} continues from what was saved", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
