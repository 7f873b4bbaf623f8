# SPDX-License-Identifier: Apache-2.0
"""The sections of a run's settings: types, limits, defaults and what each setting means."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sniper.training.validation import (
    Number,
    PathText,
    Settings,
    Switch,
    Text,
    show,
    sizes_of,
)
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.model.config import FastSpeech2Config

MOST_WORKERS, MOST_THREADS = 256, 1024
_MANY = 1_000_000_000  # no limit but that of what a counter holds
_SEED = 2**63 - 1  # torch's generators take no more


class DataConfig(Settings):
    """Where speech comes from."""

    kind: Literal["demo", "ljspeech"] = Field(
        "demo",
        description="`demo` (synthesised by espeak-ng on the spot) or `ljspeech` (a folder in its "
        "layout).",
    )
    root: PathText = Field(
        "data/demo", description="The corpus folder; for `demo` where it is made."
    )
    prepared: PathText | None = Field(
        None, description="Folder of the prepared features; null: beside the corpus."
    )
    textgrids: PathText | None = Field(
        None, description="Folder of the TextGrids; null: found under `root`."
    )
    lexicon: PathText | None = Field(
        None,
        description="Pronunciation dictionary for synthesis, beside what the TextGrids give.",
    )
    speakers: Literal["none", "column", "folder"] = Field(
        "none",
        description="Who speaks: `column` (the last one of metadata.csv) or `folder` (in the ids); "
        "VCTK's and LibriTTS' folders are known without.",
    )
    utterances: int = Field(400, ge=1, le=100_000, description="Sentences of the demo corpus.")
    # The best checkpoint is the best on held-out speech, so there must be some.
    valid: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="Held-out utterances; null: 5 % of the corpus, at most 250.",
    )
    seed: int = Field(0, ge=-_SEED, le=_SEED, description="Of the demo sentences and the split.")
    workers: int | None = Field(
        None, ge=1, le=MOST_WORKERS, description="Processes that prepare; null: one a core."
    )


def _factor(value: Any) -> Any:
    # This was a switch before it became a factor, and older runs hold true for 1.
    return float(value) if isinstance(value, bool) else value


def _from_json(kind: type) -> BeforeValidator:
    def key(value: Any) -> Any:
        if isinstance(value, str):
            try:
                return kind(value)  # JSON has turned the numbers into text
            except ValueError:
                pass
        return value

    return BeforeValidator(key)


Epoch = Annotated[int, _from_json(int)]
Fraction = Annotated[float, _from_json(float)]


def _keys_once(value: Any) -> Any:
    if isinstance(value, dict) and len({str(key) for key in value}) < len(value):
        raise ValueError(f"expected each key once, got {show(value)}")
    return value


KeysOnce = BeforeValidator(_keys_once)


class SparsityConfig(Settings):
    """SNIPER's settings; see `sniper.Sniper`. Most of its defaults did best in the ablation on the
    demo corpus. The factor on the learning rate did not: without it a run was no worse. Presets of
    the paper's runs set the paper's values."""

    schedule: Annotated[dict[Epoch, Number], KeysOnce] = Field(
        default_factory=lambda: {0: 0.0},
        description="`{epoch: sparsity}`; the last entry at or before an epoch counts.",
    )
    schedule_fractions: Annotated[dict[Fraction, Number] | None, KeysOnce] = Field(
        None,
        description="The same by fraction of training, in place of `schedule`; a file gives one of "
        "the two, and it counts in place of both of its base's.",
    )
    block_size: int | None = Field(
        64,
        ge=1,
        le=4096,
        description="Edge of the blocks that are kept or pruned as a whole; null: single weights.",
    )
    max_param_sparsity: Number = Field(
        0.75,
        ge=0,
        le=1,
        description="Fixed cap, as the authors' code has one: no parameter is made sparser. The "
        "paper's runs have 1, which is no cap. Counts where `spread` is null, as it is by default "
        "once this is given.",
    )
    spread: Number | None = Field(
        0.1,
        ge=0,
        le=1,
        description="Following cap: no parameter is made sparser than `s + spread * (1 - s)` at "
        "sparsity s, and the model is as sparse as the schedule says.",
    )
    restore_init: Switch = Field(
        False, description="Newly active weights take their initial values; otherwise 0."
    )
    prime_moments: Annotated[Number, BeforeValidator(_factor)] = Field(
        16.0,
        ge=0,
        description="Newly active weights start with the mean of their parameter's second moments "
        "times this; 0: from 0.",
    )
    max_lr_scale: Number | None = Field(
        2.0,
        ge=1,
        description="A parameter's learning rate is multiplied by `min(this, 1 / density)`; null: "
        "not scaled.",
    )
    growth: Literal["score", "gradient"] = Field(
        "score",
        description="Which weights come back when the sparsity is lowered: those with the largest "
        "`score` at initialisation, as in the paper, or those with the largest `gradient` at that "
        "moment, over `score_batches` batches.",
    )
    prune: Switch = Field(
        True,
        description="Off: nothing is pruned and only learning rates are scaled, as if it were; a "
        "control for comparisons.",
    )
    paper_exact: Switch = Field(
        False,
        description="Leave the gradients of pruned weights alone, as the authors' code does; needs "
        "`block_size: null`.",
    )
    exclude: list[Text] = Field(
        default_factory=lambda: ["norm", "embed"],
        description="Names, or patterns of names, of parameters that are never pruned.",
    )
    score_batches: int = Field(
        20,
        ge=1,
        le=_MANY,
        description="Training batches that weights are scored on, past the end of an epoch that "
        "has fewer; at most a pass over the data, or an epoch where that is longer.",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_cap_alone_is_fixed(cls, data: Any) -> Any:
        # The paper's cap had no other beside it: configs that set it alone mean it alone.
        if isinstance(data, dict) and "max_param_sparsity" in data and "spread" not in data:
            return {**data, "spread": None}
        return data

    @model_validator(mode="before")
    @classmethod
    def _what_counts_alone(cls, data: Any) -> Any:
        data = _alone(data, "schedule_fractions", "schedule")
        return _alone(data, "spread", "max_param_sparsity")


def _alone(data: Any, counts: str, idle: str) -> Any:
    """A section without the setting that does not count beside another. Runs were saved with what a
    preset has of it; they are the same runs as those that are saved without.
    """
    if isinstance(data, dict) and data.get(counts) is not None:
        return {key: value for key, value in data.items() if key != idle}
    return data


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise ValueError(f"expected one of auto, cpu, cuda, cuda:N, got {value!r}")
    return value


def _graphs(value: Any) -> Any:
    # This was a switch before it had three words; true recorded where it could, as auto does.
    words = {True: "auto", "true": "auto", False: "off", "false": "off"}
    return words.get(value, value) if isinstance(value, (bool, str)) else value


class TrainConfig(Settings):
    """Optimisation and the loop."""

    epochs: int = Field(10, ge=1, le=_MANY, description="Length of the run.")
    patience: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="Stop after so many epochs at the schedule's last sparsity without a lower "
        "validation loss; null: train to the end.",
    )
    batches_per_epoch: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="Micro-batches of an epoch; null: one pass over the data.",
    )
    max_frames: int = Field(
        11000,
        ge=1,
        le=_MANY,
        description="Padded mel frames of a micro-batch, at most, over all ranks together: what is "
        "learned does not depend on how many there are.",
    )
    max_frames_per_rank: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="The same of each rank's part, in place of `max_frames`: batches grow with the "
        "number of ranks.",
    )
    accumulation: int = Field(1, ge=1, le=_MANY, description="Micro-batches of an update.")
    lr: Number = Field(
        1.0,
        gt=0,
        description="Noam: `lr * d_model^-0.5 * min(s^-0.5, s * warmup^-1.5)` at update s.",
    )
    warmup: int = Field(4000, ge=1, le=_MANY, description="Updates until the rate is highest.")
    grad_clip: Number = Field(
        1.0, ge=0, allow_inf_nan=True, description="Largest gradient norm; 0: no clipping."
    )
    ema: Number | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights, such as 0.99: the average is "
        "validated and saved as what speaks, the weights themselves are trained. null: none.",
    )
    valid_every: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="Validate after so many updates within an epoch too, besides at its end; what "
        "that takes is not counted as training.",
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="`fp32`, `tf32` (matmuls on a GPU) or `bf16` (autocast)."
    )
    device: Annotated[Text, AfterValidator(_device)] = Field(
        "auto", description="`cpu`, `cuda`, `cuda:N`; `auto` takes a GPU if there is one."
    )
    autotune: Switch = Field(
        False,
        description="On a GPU, time all tile sizes of our kernels for each layer once; takes "
        "minutes.",
    )
    cuda_graphs: Annotated[Literal["auto", "on", "off"], BeforeValidator(_graphs)] = Field(
        "auto",
        description="On a GPU, record each batch shape's forward and backward once and replay it: "
        "`auto` goes on without when recording fails, `on` stops.",
    )
    exchange: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Of several ranks: in what gradients travel and are added up. Only active "
        "blocks do.",
    )
    timeout_minutes: Number = Field(
        10.0,
        gt=0,
        le=10_000,
        description="Of several ranks: how long one waits for another before the run ends.",
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=MOST_WORKERS,
        description="Data processes of each rank; null: 4 for a GPU, 1 for a CPU.",
    )
    threads: int | None = Field(
        None, ge=1, le=MOST_THREADS, description="CPU threads of torch; null: torch's own choice."
    )
    seed: int = Field(0, ge=0, le=_SEED, description="Of weights, order and dropout.")
    log_every: int = Field(
        10, ge=1, le=_MANY, description="Updates between two TensorBoard points."
    )
    sample_every: int = Field(
        5,
        ge=1,
        le=_MANY,
        description="Epochs between two mel plots and audio samples in TensorBoard.",
    )
    checkpoint_minutes: Number = Field(
        10.0,
        ge=0,
        allow_inf_nan=True,
        description="A checkpoint at least this often, beside the one after each epoch.",
    )

    @model_validator(mode="before")
    @classmethod
    def _what_counts_alone(cls, data: Any) -> Any:
        return _alone(data, "max_frames_per_rank", "max_frames")


# Largest whole numbers in these sections; above them memory ends before anything is checked.
FeatureSettings = sizes_of(FeatureConfig, 1_000_000)
ModelSettings = sizes_of(FastSpeech2Config, 65_536, leave_out=("vocab_size", "n_mels", "speakers"))


def _given(section: Settings) -> dict[str, Any]:
    """What a file says, without what it leaves to the dataclass; lists as YAML has them."""
    return section.model_dump(mode="json", exclude_unset=True)


if TYPE_CHECKING:
    FeatureSection = ModelSection = dict[str, Any]
else:
    FeatureSection = Annotated[FeatureSettings, AfterValidator(_given)]
    ModelSection = Annotated[ModelSettings, AfterValidator(_given)]
