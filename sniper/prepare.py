# SPDX-License-Identifier: Apache-2.0
"""Prepare speech for training.

    python -m sniper.prepare demo --out data/demo
    python -m sniper.prepare ljspeech --root LJSpeech-1.1 --out data/ljspeech
    python -m sniper.prepare ljspeech --root LJSpeech-1.1 --out data/ljspeech --shard 2/8
    python -m sniper.prepare ljspeech --root LJSpeech-1.1 --out data/ljspeech --merge
    python -m sniper.prepare lexicon words.dict --to data/ljspeech

A run that was stopped, however it ended, is continued by the same command. Exit status: 0 when the
feature files are there, even if some utterances had to be left out (they are listed); 1 when no
utterance is usable; 2 for wrong arguments, other settings in the output folder, files that changed
since it was finished, or a missing package; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sniper.command import exit_with, path_argument, positive, prepared
from sniper.tts.aligners.options import add_options, add_speakers, print_report, take_options

if TYPE_CHECKING:
    from sniper.tts.corpus.build import Prepared
    from sniper.tts.corpus.prepare import prepare_demo, prepare_ljspeech
    from sniper.tts.corpus.shards import Shard

__all__ = ["main", "prepare_demo", "prepare_ljspeech"]


def __getattr__(name: str) -> Any:
    # The functions behind the command; loaded when asked for, so that --help is there at once.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sniper.tts.corpus import prepare

    return getattr(prepare, name)


def _parser() -> argparse.ArgumentParser:
    from sniper.tts.audio.config import FeatureConfig

    parser = argparse.ArgumentParser(
        prog="python -m sniper.prepare",
        description="Prepare speech for training: features in one file per split.",
        epilog="Exit status: 0 prepared (utterances left out are listed), 1 no usable utterance, "
        "2 wrong arguments or settings or a missing package, 130 stopped by Ctrl-C. A stopped run "
        "is continued by the same command.",
    )
    # A parent's own --help would collide with that of the sub-commands.
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--out", required=True, type=path_argument, help="folder for the feature files"
    )
    shared.add_argument(
        "--valid", type=_count, help="utterances held out (default: 5 %%, at most 250)"
    )
    shared.add_argument(
        "--test", type=_count, help="utterances held out for a test split (default: 0)"
    )
    shared.add_argument("--seed", type=int, default=0, help="of split and sentences (default: 0)")
    shared.add_argument("--workers", type=positive, help="processes (default: one per CPU)")
    shared.add_argument(
        "--force",
        action="store_true",
        help="make everything in --out anew, but alignments of the same settings, which may have "
        "been corrected by hand (python -m sniper.align --force, or remove OUT/alignment)",
    )
    shared.add_argument(
        "--strict", action="store_true", help="exit status 2 where anything is left out or unusual"
    )
    shared.add_argument("--quiet", action="store_true", help="no progress bar")
    settings = shared.add_argument_group("features (a vocoder must agree with them)")
    for field in dataclasses.fields(FeatureConfig):
        # Of the default, since postponed evaluation makes text of the annotations.
        kind = {int: int, float: float}.get(type(field.default), str)
        name = "--" + field.name.replace("_", "-")
        help_text = f"default: {field.default}"
        settings.add_argument(name, type=kind, default=field.default, metavar="X", help=help_text)

    commands = parser.add_subparsers(dest="command", required=True, metavar="demo|ljspeech|lexicon")
    demo = commands.add_parser(
        "demo",
        parents=[shared],
        help="a synthetic corpus: espeak-ng speaks sentences of a small grammar",
        description="Make a synthetic corpus in OUT/corpus (wavs/, metadata.csv, "
        "alignments.jsonl) and prepare it. It is formant synthesis, no recording of a person.",
    )
    demo.add_argument("--utterances", type=positive, default=600, help="default: 600")
    demo.add_argument("--voice", default="en-us", help="espeak-ng voice, such as en-us+f2")
    corpus = commands.add_parser(
        "ljspeech",
        parents=[shared],
        help="recordings in LJSpeech's layout, aligned on the way where they are not",
        description="Prepare ROOT/metadata.csv (id|text or id|text|normalized), ROOT/wavs/ID.wav "
        "and TextGrids; without any, they are made in OUT/alignment, with a report. Utterances "
        "that cannot be used are left out and listed.",
    )
    corpus.add_argument("--root", required=True, type=path_argument, help="corpus folder")
    corpus.add_argument(
        "--textgrids",
        type=path_argument,
        help="folder of ID.TextGrid files, also up to three folders deeper, or an --out of "
        "sniper.align (default: TextGrid/, textgrids/, TextGrids/ or alignments/ in ROOT, else "
        "ROOT/alignments.jsonl, else they are made)",
    )
    add_speakers(corpus)
    alignment = corpus.add_argument_group(
        "alignment, where there are no TextGrids",
        "Of TextGrids that are there, --language and --phones say whose phonemes they have, where "
        "no align.json beside them does.",
    )
    add_options(alignment)
    corpus.add_argument(
        "--lexicon", type=path_argument, help="dictionary in MFA format for further words"
    )
    several = corpus.add_mutually_exclusive_group()
    several.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="prepare the I-th of N shares, in OUT/shards; each share may run in a process or on a "
        "machine of its own, at the same time",
    )
    several.add_argument(
        "--merge",
        action="store_true",
        help="put all shares together, otherwise with the same arguments; gives what is prepared "
        "at once",
    )
    words = commands.add_parser(
        "lexicon",
        help="add words to a prepared corpus or to a trained run, whose audio is not looked at",
        description="Add the words of a dictionary in MFA's format to the lexicon of a prepared "
        "corpus or of a run; they go before the pronunciations that are there.",
    )
    words.add_argument("lexicon", type=path_argument, help="dictionary in MFA format")
    words.add_argument(
        "--to",
        required=True,
        type=path_argument,
        metavar="FOLDER",
        help="of a prepared corpus, a run or a checkpoint",
    )
    return parser


def _add_words(lexicon: Path, to: Path) -> int:
    """Add a dictionary's words to what lies in the folder `to`; the exit status."""
    from sniper.tts.corpus.corpus_lexicon import add_to_corpus
    from sniper.tts.corpus.dataset import CORPUS
    from sniper.tts.errors import SpeechError
    from sniper.tts.text.lexicon import read_dictionary

    words = read_dictionary(lexicon)
    if (to / CORPUS).exists():
        print(f"{to}: {add_to_corpus(to, words)}")
        return 0
    if not any((to / name).exists() for name in ("checkpoints", "model.safetensors")):
        raise SpeechError(
            f"--to: expected the folder of a prepared corpus, a run or a checkpoint, got {to}"
        )
    # Only here: a corpus needs nothing of what trains.
    from sniper.training.checkpoint import CheckpointError
    from sniper.training.run_lexicon import add_to_run

    try:
        print(f"{to}: {add_to_run(to, words)}")
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _with_textgrids(options: dict[str, Any], progress: bool) -> dict[str, str] | None:
    """Align the corpus, or the share, where it has no alignments, or where --align asks for it.

    Returns:
        Why what could not be aligned could not; None where nothing was to be aligned.
    """
    from sniper.tts.aligners.folder import gather
    from sniper.tts.aligners.run import align_corpus
    from sniper.tts.corpus.corpus import has_alignments, list_utterances
    from sniper.tts.corpus.shards import find_shards
    from sniper.tts.errors import OtherSettings

    how = take_options(options)
    asked, given = "way" in how, options["textgrids"] is not None
    if given and asked:
        raise ValueError("--align makes TextGrids and --textgrids has them: give one of the two")
    # An explicit --align goes before alignments that lie in the corpus.
    if given or (has_alignments(options["root"]) and not asked):
        # Then they say whose phonemes these are.
        options |= {name: how.get(name) for name in ("language", "phones")}
        return None
    shared = {name: options[name] for name in ("root", "lexicon", "speakers", "seed", "workers")}
    shard, base = options["shard"], options["out"]
    if shard is not None:
        base = shard.folder(base)
    out = (base / "alignment").resolve()
    if options["merge"]:
        parts = [each.folder(base) / "alignment" for each in find_shards(base)]
        lines = list_utterances(options["root"], options["speakers"]).lines
        gather(parts, out, [line.id for line in lines])
    align = partial(align_corpus, out=out, **shared, **how, progress=progress, share=shard)
    try:
        # Without --force, which would undo what was corrected by hand: an alignment of the same
        # texts and recordings comes out as it is.
        aligned = align()
    except OtherSettings:
        if not options["force"]:
            raise
        aligned = align(force=True)
    # What was aligned before was reported then; of a share, the whole says it.
    if shard is None and (aligned.fresh or options["merge"]):
        # The list of what is left out comes once, at the end.
        print_report(aligned, problems=False)
    options["textgrids"] = None if shard is not None else aligned.textgrids
    return dict(aligned.report.problems)


def _shard(text: str) -> Shard:
    from sniper.tts.corpus.shards import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _prepare_shard(options: dict[str, Any], aligned: bool) -> int:
    """Prepare one share; the exit status."""
    from sniper.tts.corpus.prepare import prepare_ljspeech_shard

    # Of the whole, which --merge makes.
    for name in ("valid", "test", "seed", "lexicon", "language", "phones", "merge"):
        options.pop(name, None)
    count = prepare_ljspeech_shard(**options, aligned=aligned)
    shard, out = options["shard"], options["out"]
    print(f"{shard.folder(out)} prepared: {count} utterances; --merge puts all shares together")
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


def _report(made: Prepared, not_aligned: dict[str, str]) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in made.counts.items())
    verb = "prepared" if made.fresh else "was prepared already"
    print(f"{made.folder} {verb}: {counts} utterances, {made.seconds / 3600:.2f} h")
    if made.summary:
        print(made.summary)
    if made.problems:
        print(f"{len(made.problems)} left out:")
        for where, reason in made.problems:
            # Without a TextGrid of our own making, the reason is why there is none.
            print(f"  {where}: {not_aligned.get(where, reason)}")
        print("When they are mended, --force makes everything anew.")


def _report_health(made: Prepared, strict: bool) -> int:
    """Print what is unusual; the exit status."""
    for line in made.health:
        # Apart from the counts, which a script may read from standard output.
        print(f"health: {line}", file=sys.stderr)
    unusual = bool(made.health or made.problems)
    if strict and unusual:
        print("error: --strict, and the corpus is not as it should be", file=sys.stderr)
    return 2 if strict and unusual else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return prepared(lambda: _main(argv), argv)


def _main(argv: list[str] | None) -> int:
    from sniper.tts.audio.config import FeatureConfig
    from sniper.tts.corpus.prepare import merge_ljspeech_shards, prepare_demo, prepare_ljspeech

    options = vars(_parser().parse_args(argv))
    if options["command"] == "lexicon":
        return _add_words(options["lexicon"], options["to"])
    command, quiet = options.pop("command"), options.pop("quiet")
    strict = options.pop("strict")
    names = [field.name for field in dataclasses.fields(FeatureConfig)]
    features = FeatureConfig(**{name: options.pop(name) for name in names})
    not_aligned: dict[str, str] | None = None
    if command == "ljspeech":
        if options["merge"] and options["force"]:
            raise ValueError("--force makes a share anew: give it with --shard, not with --merge")
        not_aligned = _with_textgrids(options, not quiet)
        aligned = not_aligned is not None
        options |= {"features": features, "progress": not quiet}
        if options["shard"] is not None:
            return _prepare_shard(options, aligned)
        del options["shard"]
        if options.pop("merge"):
            for name in ("workers", "force", "progress"):
                del options[name]
            made = merge_ljspeech_shards(**options, aligned=aligned)
            _report(made, not_aligned or {})
            return _report_health(made, strict)
    run = prepare_demo if command == "demo" else prepare_ljspeech
    made = run(**{**options, "features": features, "progress": not quiet})
    _report(made, not_aligned or {})
    return _report_health(made, strict)


if __name__ == "__main__":
    exit_with(main)
