# SPDX-License-Identifier: Apache-2.0
"""What is compared: arms, each a config of `sniper.train` and what differs in it, times seeds.

A matrix is a YAML file; sniper/compare/matrices/*.yaml are the built-in ones:

    title: What the report says at its top
    config: demo                        # preset or file of sniper.train that the arms start from
    settings: {train: {epochs: 16}}     # for all arms
    seeds: [0, 1, 2]
    reference: dense                    # the arm that the others are compared with
    arms:
      - {name: dense, sparsity: {schedule: {0: 0.0}}}
      - {name: half, label: half of it, note: for the report, sparsity: {schedule: {0: 0.5}}}
      - {name: other, config: ljspeech-sniper}          # starts from another preset
      - {name: few, seeds: [0, 1], train: {lr: 0.5}}    # not with all seeds
    claims: []                          # optional; sniper/compare/claims.py shows the format
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sniper.compare.claims import Claim, read_claim
from sniper.training.config import Config, ConfigError, flat, load, settings_of
from sniper.training.settings import as_override, parse, read_text
from sniper.tts.files import with_home

MATRICES = Path(__file__).parent / "matrices"
_SECTIONS = ("data", "features", "model", "sparsity", "train")
_SINGLE = ("sample_text",)  # settings that stand in no section
# A matrix gives these to each run itself.
_OWN = ("name", "output", "train.seed", "train.threads")


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        name: of its folder, its CSV rows and `--arms`.
        label: for people.
        note: one line for the report.
        config: preset or file of `sniper.train` that it starts from.
        layers: of `key=value`, each over the ones before and all over that config: what the matrix
            says for all arms, for this one, and what the command line says.
        seeds: those of the matrix that it is trained with; None: all.
    """

    name: str
    label: str
    note: str
    config: str
    layers: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...] | None = None

    @property
    def overrides(self) -> tuple[str, ...]:
        """The layers as one."""
        return tuple(itertools.chain(*self.layers))


@dataclass(frozen=True)
class Matrix:
    """Arms times seeds.

    Args:
        name: of the built-in matrix or the file.
        title: of the report.
        arms: in the order of the report.
        seeds: each arm is trained with each; runs of one seed share initial weights and the order
            of the data.
        reference: name of the arm that the others are compared with.
        claims: that the report holds against what was measured.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    reference: str
    claims: tuple[Claim, ...] = ()

    def config(self, arm: Arm, seed: int, folder: Path, threads: int) -> Config:
        """The settings of one run.

        Raises:
            ConfigError: naming the arm.
        """
        # A folder that is called ~ has to stay one.
        output = f"./{folder}" if str(folder).startswith("~") else str(folder)
        own = (f"name={arm.name}-seed-{seed}", as_override("output", output))
        # Behind the arm's own settings, since runs beside each other must share the cores as the
        # comparison says.
        own += (f"train.seed={seed}", f"train.threads={threads}")
        try:
            return load(arm.config, *arm.layers, own)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name}: {error}") from None


def load_matrix(
    name_or_path: str,
    *,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> Matrix:
    """Reads a built-in matrix or a YAML file.

    Args:
        seeds: in place of the file's, for all arms.
        arms: names of those to keep; None: all.
        overrides: `key=value` for every arm, on top of its own settings.

    Raises:
        ConfigError: a file that is not there or says something else than a matrix, an arm that is
            not known or twice there, no reference arm, settings that `sniper.train` refuses.
    """
    path = MATRICES / f"{name_or_path}.yaml"
    if not path.exists():
        path = Path(with_home(name_or_path))
    data = _read(path, name_or_path)
    for key in flat(settings_of(overrides)):
        _refuse_own(key, "override")
    shared = _as_overrides(data.get("settings", {}), f"{path.name}: settings")
    found = [
        _arm(entry, data.get("config"), shared, tuple(overrides), path)
        for entry in _list(data, "arms", path)
    ]
    names = [arm.name for arm in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path.name}: expected different names of arms, got {name} twice")
    for name in arms or ():
        if name not in names:
            raise ConfigError(f"--arms: expected some of {', '.join(names)}, got {name!r}")
    kept = tuple(arm for arm in found if arms is None or arm.name in arms)
    reference = data.get("reference", names[0])
    if reference not in [arm.name for arm in kept]:
        listed = ", ".join(arm.name for arm in kept)
        raise ConfigError(
            f"{path.name}: expected the reference arm {reference!r} among the arms, got {listed}"
        )
    own = _seeds(data.get("seeds", [0]) if seeds is None else list(seeds), path)
    if seeds is not None:
        kept = tuple(replace(arm, seeds=None) for arm in kept)
    for arm in kept:
        if not set(arm.seeds or own) <= set(own):
            raise ConfigError(
                f"{path.name}: arm {arm.name}: expected seeds among {list(own)}, got "
                f"{list(arm.seeds or ())}"
            )
    matrix = Matrix(
        name=path.stem,
        title=str(data.get("title", path.stem)),
        arms=kept,
        seeds=own,
        reference=reference,
        claims=_claims(data, names, kept, path),
    )
    # A setting that is refused must show now, not after the arms before it have trained.
    for arm in kept:
        matrix.config(arm, matrix.seeds[0], Path("unused"), 1)
    return matrix


def _read(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        built_in = ", ".join(sorted(p.stem for p in MATRICES.glob("*.yaml")))
        raise ConfigError(f"--config: expected a matrix ({built_in}) or a file, got {name!r}")
    # By the reader of the settings, which refuses a key that is there twice.
    data = parse(read_text(path), str(path))
    if not isinstance(data, dict) or "arms" not in data:
        raise ConfigError(f"{path}: expected a mapping with `config` and `arms`")
    known = {"title", "config", "settings", "seeds", "reference", "arms", "claims"}
    # x- keys hold YAML anchors that several arms share, as in Compose files.
    unknown = sorted(k for k in data if k not in known and not str(k).startswith("x-"))
    if unknown:
        raise ConfigError(f"{path}: unknown {unknown[0]!r}: known are {', '.join(sorted(known))}")
    return data


def _list(data: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = data[key]
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{path}: {key}: expected a list that is not empty, got {value!r}")
    return value


def _claims(
    data: dict[str, Any], names: Sequence[str], kept: Sequence[Arm], path: Path
) -> tuple[Claim, ...]:
    """Those of arms that are kept."""
    entries = data.get("claims", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: claims: expected a list, got {entries!r:.120}")
    try:
        found = [read_claim(entry, names) for entry in entries]
    except ValueError as error:
        raise ConfigError(f"{path}: claims: {error}") from None
    there = {arm.name for arm in kept}
    return tuple(claim for claim in found if {claim.arm, claim.than} <= there)


def _seeds(seeds: Any, path: Path) -> tuple[int, ...]:
    whole = isinstance(seeds, list) and all(type(s) is int and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds: expected different whole numbers, got {seeds!r}")
    return tuple(seeds)


def _arm(
    entry: Any, config: Any, shared: tuple[str, ...], last: tuple[str, ...], path: Path
) -> Arm:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ConfigError(f"{path}: expected an arm with a name, got {entry!r}")
    name = entry["name"]
    # The name becomes a folder: no slash, and not .. alone.
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise ConfigError(f"{path}: expected an arm's name of letters, digits, . _ -, got {name!r}")
    rest = {k: v for k, v in entry.items() if k not in ("name", "label", "note", "config", "seeds")}
    config = entry.get("config", config)
    if not isinstance(config, str):
        raise ConfigError(f"{path}: arm {name}: expected `config`, there or for all, got none")
    own = _as_overrides(rest, f"{path}: arm {name}")
    beside = path.parent / config  # as a config's base lies beside it
    return Arm(
        name=name,
        label=str(entry.get("label", name)),
        note=str(entry.get("note", "")),
        config=str(beside) if config.endswith((".yaml", ".yml")) else config,
        layers=(shared, own, last),
        seeds=_seeds(entry["seeds"], path) if "seeds" in entry else None,
    )


def _as_overrides(sections: Any, where: str) -> tuple[str, ...]:
    """`{train: {epochs: 3}}` as `("train.epochs=3",)`."""
    if not isinstance(sections, dict):
        raise ConfigError(f"{where}: expected a mapping, got {sections!r}")
    result: list[str] = []
    for section, settings in sections.items():
        if section in _SINGLE:
            result.append(as_override(section, settings))
            continue
        if section not in _SECTIONS or not isinstance(settings, dict):
            known = ", ".join((*_SECTIONS, *_SINGLE))
            raise ConfigError(f"{where}: expected settings of {known}, got {section}: {settings!r}")
        for key, value in settings.items():
            _refuse_own(f"{section}.{key}", where)
            result.append(as_override(f"{section}.{key}", value))
    return tuple(result)


def _refuse_own(key: str, where: str) -> None:
    if key in _OWN:
        raise ConfigError(
            f"{where}: {key} is the matrix's own; use --seeds, --threads or --output, or rename "
            "the arm"
        )
