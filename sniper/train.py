# SPDX-License-Identifier: Apache-2.0
"""Train FastSpeech2 with SNIPER.

    python -m sniper.train                                     # the demo
    python -m sniper.train --config ljspeech-sniper data.root=/data/LJSpeech-1.1
    python -m sniper.train --config my.yaml train.epochs=3

The same command again resumes where the run stood. Exit status: 0 finished, 1 stopped by an error,
2 wrong arguments, settings or data, 130 stopped by Ctrl-C (saved).
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sniper.config import Config
    from sniper.trainer import Trainer

# Changing these does not change what is learned, or only for how long.
_FREE = {
    "output",
    "sample_text",
    "train.epochs",
    "train.device",
    "train.workers",
    "train.threads",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_minutes",
    "data.workers",
}


def _parser() -> argparse.ArgumentParser:
    from sniper.config import PRESETS

    presets = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="python -m sniper.train",
        description="Train FastSpeech2 with SNIPER; the same command again resumes.",
        epilog="Exit status: 0 finished, 1 stopped by an error, 2 wrong arguments, settings or "
        "data, 130 stopped by Ctrl-C (saved).",
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
    """The folder of the prepared features, made now if it is not there."""
    from sniper.prepare import prepare_demo, prepare_ljspeech
    from sniper.tts.audio import FeatureConfig

    data = config.data
    features = FeatureConfig.from_json(config.features)
    shared = {"features": features, "valid": data.valid, "seed": data.seed, "workers": data.workers}
    if data.kind == "demo":
        out = Path(data.prepared or data.root)
        return Path(prepare_demo(out, utterances=data.utterances, **shared).folder)
    out = Path(data.prepared or f"{data.root.rstrip('/')}-prepared")
    if (out / "corpus.json").exists():
        return out  # prepared by hand, perhaps where the recordings are not
    prepared = prepare_ljspeech(
        data.root, out, textgrids=data.textgrids, lexicon=data.lexicon, **shared
    )
    return Path(prepared.folder)


def run(config: Config) -> Trainer:
    """Trains what `config` describes, to the end.

    Raises:
        SpeechError, ConfigError, CheckpointError, NotFinite, Interrupted: each with a message for
            the user.
    """
    from sniper.parts import set_up_torch
    from sniper.report import Observers, TensorBoard, Terminal
    from sniper.trainer import Trainer
    from sniper.tts.dataset import FeatureDataset

    folder = prepare_data(config)
    train, valid = (FeatureDataset(folder / f"{s}.safetensors") for s in ("train", "valid"))
    set_up_torch(config.train)
    _write_config(config)
    trainer = Trainer(config, train, valid, train.info)
    resumed = trainer.resume()
    _announce(trainer, train, resumed)
    settings = config.train
    observer = Observers(
        Terminal(settings.epochs),
        TensorBoard(
            trainer.run,
            trainer.progress.update,
            settings.log_every,
            settings.sample_every,
            valid,
        ),
    )
    trainer.observer = observer
    handlers = _on_signals(trainer)
    try:
        trainer.fit()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        observer.close()
    _finish(trainer, valid)
    return trainer


def _write_config(config: Config) -> None:
    """Writes RUN/config.yaml; refuses a folder whose run had other settings."""
    import yaml

    from sniper import checkpoint
    from sniper.config import ConfigError, dump

    path = Path(config.output) / "config.yaml"
    if checkpoint.exists(path.parent) and path.exists():
        before = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
        now = _flat(yaml.safe_load(dump(config)))
        changed = sorted(k for k in {*before, *now} - _FREE if before.get(k) != now.get(k))
        if changed:
            lines = [f"  {k}: {before.get(k)!r} there, {now.get(k)!r} now" for k in changed]
            raise ConfigError(
                "\n".join([f"{path.parent} holds a run with other settings:", *lines])
                + "\nuse another output=FOLDER, or --fresh to start anew"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(config), encoding="utf-8")


def _flat(data: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        whole = not isinstance(value, dict) or name.startswith(("model", "sparsity.schedule"))
        flat.update({name: value} if whole else _flat(value, f"{name}."))
    return flat


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
    if resumed:
        print(f"resumed at epoch {progress.epoch + 1}, batch {progress.batch}")


def _on_signals(trainer: Trainer) -> dict[int, object]:
    """Ctrl-C and SIGTERM finish the update and save; a second one stops at once."""

    def stop(number: int, frame: object) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True
        print("\nstopping after this update; once more stops at once", file=sys.stderr)

    return {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}


def _finish(trainer: Trainer, valid) -> None:
    from sniper.report import write_results
    from sniper.synthesize import load_speaker

    run = trainer.run
    speaker = load_speaker(run, "best", str(trainer.device))
    text = trainer.config.sample_text or valid.texts[0]
    held_out = write_results(trainer, speaker, valid, text)
    rows = trainer.progress.history
    print(
        f"validation loss {rows[0]['valid']['total']:.3f} after the first epoch, "
        f"{trainer.progress.best_loss:.3f} at best"
    )
    print(
        f"held-out {held_out.id}: mel L1 {held_out.mel_l1:.3f} against the ground truth; "
        f"the mean mel's is {held_out.mean_l1:.3f}"
    )
    print(f'sample.wav says: "{text}"')
    print(f"all in {run}/: sample.wav mel.png loss.png config.yaml checkpoints/ tensorboard/")
    print(f'speak:      python -m sniper.synthesize --checkpoint {run} "Some text." -o out.wav')
    print(f"follow:     tensorboard --logdir {run}/tensorboard")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    import shutil

    options = _parser().parse_args(argv)
    from sniper.tts.errors import SpeechError

    try:
        from sniper import checkpoint
        from sniper.config import load
        from sniper.trainer import Interrupted, NotFinite
    except ImportError as error:
        print(f"error: {error}: pip install 'sniper-tts[tts]'", file=sys.stderr)
        return 2
    try:
        config = load(options.config, options.overrides)
        if options.fresh:
            for part in ("checkpoints", "tensorboard"):
                shutil.rmtree(Path(config.output) / part, ignore_errors=True)
        run(config)
    except (NotFinite, checkpoint.CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (SpeechError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        saved = "saved; " if isinstance(error, Interrupted) else ""
        print(f"stopped, {saved}the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
