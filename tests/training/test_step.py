# SPDX-License-Identifier: Apache-2.0
"""A recorded step trains as one that is not, through every change of the masks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from simulated import SimulatedRecorder
from torch import nn

from sniper import Sniper
from sniper.layers import BlockSparseLinear
from sniper.layers.masked import BlockMaskedLayer
from sniper.ops import selfcheck, timings, use_backend
from sniper.training.graphs import CudaRecorder, NotRecorded, Values
from sniper.training.settings import ConfigError
from sniper.training.step import TrainingStep, _held_by, noam, peak_memory, pick_recorder
from sniper.tts.corpus.batch import Batch
from sniper.tts.model.config import FastSpeech2Config
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.model.variance import PredictorConfig

VOCABULARY, MELS = 20, 16
SHAPES = ((3, 6, 40), (2, 5, 24), (3, 6, 40), (2, 5, 24), (1, 4, 16), (3, 6, 40))
SCHEDULE = {0: 0.7, 1: 0.4, 2: 0.0}


def make_model() -> FastSpeech2:
    torch.manual_seed(0)
    predictor = PredictorConfig(layers=1, channels=32)
    config = FastSpeech2Config(
        vocab_size=VOCABULARY,
        n_mels=MELS,
        d_model=32,
        heads=2,
        encoder_layers=1,
        decoder_layers=1,
        ffn_dim=64,
        duration_predictor=predictor,
        pitch_predictor=predictor,
        energy_predictor=predictor,
        postnet_layers=2,
        postnet_channels=32,
    )
    return FastSpeech2(config)


def make_batch(seed: int, size: int, tokens: int, frames: int) -> Batch:
    """Two utterances or more: the last is short, so that there is padding."""
    generator = torch.Generator().manual_seed(seed)
    each = frames // tokens
    durations = torch.full((size, tokens), each)
    durations[:, -1] += frames - each * tokens
    token_lengths, mel_lengths = torch.full((size,), tokens), torch.full((size,), frames)
    if size > 1:
        durations[-1, 2:] = 0
        token_lengths[-1], mel_lengths[-1] = 2, 2 * each
    real = torch.arange(tokens) < token_lengths[:, None]
    return Batch(
        ids=[f"{seed}-{i}" for i in range(size)],
        tokens=torch.randint(1, VOCABULARY, (size, tokens), generator=generator) * real,
        token_lengths=token_lengths,
        mel=torch.randn(size, frames, MELS, generator=generator),
        mel_lengths=mel_lengths,
        durations=durations,
        pitch=torch.randn(size, tokens, generator=generator) * real,
        energy=torch.randn(size, tokens, generator=generator) * real,
    )


BATCHES = [make_batch(i, *shape) for i, shape in enumerate(SHAPES)]


class Run:
    """A model under SNIPER with its step; trains the batches once a stage."""

    def __init__(
        self,
        recorded: bool,
        device: str = "cpu",
        recorder: type[SimulatedRecorder] = SimulatedRecorder,
        must_record: bool = False,
        **settings,
    ):
        self.model = make_model().to(device).train()
        options = {"block_size": 16, "max_param_sparsity": 0.9, **settings}
        self.sniper = Sniper(self.model, SCHEDULE, **options)
        first = BATCHES[0].to(device)
        self.sniper.score([first], lambda model, batch: model.loss(batch)[0])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)
        self.recorder = None
        if recorded:
            cuda = device == "cuda"
            self.recorder = CudaRecorder(torch.device(device)) if cuda else None
            self.recorder = self.recorder or recorder(self.model)
        self.step = TrainingStep(
            self.model,
            self.optimizer,
            grad_clip=1.0,
            stage=lambda: self.sniper.sparsity,
            recorder=self.recorder,
            must_record=must_record,
        )

    def train(self, accumulation: int = 1) -> list[float]:
        """All stages; returns the losses."""
        torch.manual_seed(1)
        losses = []
        for epoch in SCHEDULE:
            self.sniper.step(epoch, self.optimizer)
            for number, batch in enumerate(BATCHES, 1):
                losses.append(float(self.step.backward(batch, 1 / accumulation)["total"]))
                if number % accumulation == 0:
                    self.step.clip()
                    self.step.update()
        return losses


@pytest.mark.parametrize(
    ("settings", "accumulation"),
    [
        ({}, 1),
        ({}, 2),
        ({"block_size": None}, 1),
        ({"block_size": None, "paper_exact": True}, 2),
    ],
    ids=["blocks-1", "blocks-2", "elements-1", "paper-2"],
)
def test_recorded_trains_bit_for_bit_as_not_recorded(settings: dict, accumulation: int):
    plain, recorded = Run(False, **settings), Run(True, **settings)
    assert plain.train(accumulation) == recorded.train(accumulation)
    theirs, ours = plain.model.state_dict(), recorded.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    # Three shapes at each of three sparsities, every batch replayed.
    assert recorded.recorder.recordings == 3 * len(SCHEDULE)
    assert recorded.recorder.replays == len(SCHEDULE) * len(BATCHES)
    assert recorded.step.graphs.recordings == recorded.recorder.recordings


def test_other_backends_and_masks_of_ones_own_are_recorded_anew():
    run = Run(True)
    run.sniper.step(0, run.optimizer)

    def train() -> int:
        before = run.recorder.recordings
        run.step.backward(BATCHES[0], 1.0)
        return run.recorder.recordings - before

    assert [train(), train()] == [1, 0]
    with use_backend("dense"):
        assert [train(), train()] == [1, 0]
    assert [train(), train()] == [1, 0]
    layer = next(m for m in run.model.modules() if isinstance(m, BlockSparseLinear))
    layer.set_block_mask(torch.ones(layer.block_mask_shape, dtype=torch.bool))
    assert [train(), train()] == [1, 0]
    layer.set_block_mask(None)
    assert [train(), train()] == [1, 0]
    timings.outdate()
    assert [train(), train()] == [1, 0]


def test_what_has_moved_is_recorded_anew():
    """A buffer that had to grow, gradients set to None, weights that lie elsewhere."""
    run, plain = Run(True), Run(False)
    for each in (run, plain):
        each.sniper.step(0, each.optimizer)
    stack = next(m for m in run.model.modules() if hasattr(m, "encoding"))

    def train(batch: Batch) -> int:
        before = run.recorder.recordings
        torch.manual_seed(2)
        got = float(run.step.backward(batch, 1.0)["total"])
        torch.manual_seed(2)
        assert got == float(plain.step.backward(batch, 1.0)["total"])
        return run.recorder.recordings - before

    for each in (run, plain):
        for m in each.model.modules():
            if hasattr(m, "encoding"):  # as if it had been made for short sequences
                m.encoding = m.encoding[: BATCHES[0].mel.shape[1]].clone()
    assert [train(BATCHES[0]), train(BATCHES[0])] == [1, 0]
    frames = stack.encoding.shape[0]
    longer = make_batch(9, 2, 8, 3 * frames)
    assert [train(longer), train(longer)] == [1, 0]  # outgrows the encoding while it is recorded
    assert [train(BATCHES[0]), train(BATCHES[0])] == [1, 0]
    run.optimizer.zero_grad(set_to_none=True)
    assert [train(BATCHES[0]), train(BATCHES[0])] == [1, 0]
    kept = [p.data for p in run.model.parameters()]  # its memory stays taken
    for p in run.model.parameters():
        p.data = p.data.clone(memory_format=torch.preserve_format)
    assert [train(BATCHES[0]), train(BATCHES[0])] == [1, 0] and kept


def test_what_was_replaced_is_recorded_anew():
    """A gradient, a parameter, a buffer or a module by another one of the same values."""
    run = Run(True)
    run.sniper.step(0, run.optimizer)
    before, kept = run.recorder.recordings, []

    def train() -> int:
        run.step.backward(BATCHES[0], 1.0)
        return run.recorder.recordings - before

    assert [train(), train()] == [1, 1]
    layer = run.model.mel_out
    kept.append(layer.weight.grad)
    layer.weight.grad = layer.weight.grad.clone()
    assert [train(), train()] == [2, 2]
    kept.append(layer.bias)
    layer.bias = nn.Parameter(layer.bias.detach().clone())
    assert [train(), train()] == [3, 3] and layer.bias.grad is not None
    norm = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm1d))
    kept.append(norm.running_mean)
    norm.running_mean = norm.running_mean.clone()
    assert [train(), train()] == [4, 4]
    run.model.mel_out = copy.deepcopy(layer)
    assert [train(), train()] == [5, 5] and kept


def test_all_that_a_model_holds_is_looked_at_once():
    model = make_model()
    model.twice = model.mel_out  # a module in two places
    model.none, model.frozen = None, nn.Linear(2, 2).requires_grad_(False)
    model.register_buffer("nothing", None)
    model.register_parameter("nobody", None)
    Sniper(model, SCHEDULE, block_size=16)
    parameters, buffers, layers = _held_by(model)

    def ids(tensors) -> list[int]:
        return sorted(map(id, tensors))

    assert ids(parameters) == ids(model.parameters())
    assert ids(buffers) == ids(model.buffers())
    assert ids(layers) == ids(m for m in model.modules() if isinstance(m, BlockMaskedLayer))
    assert layers


def test_values_of_a_graph_that_is_gone_are_not_to_be_read():
    run = Run(True)
    run.sniper.step(0, run.optimizer)
    values = run.step.backward(BATCHES[0], 1.0)
    timings.outdate()
    run.step.backward(BATCHES[0], 1.0)
    assert values["total"].isnan()


def test_waiting_inside_a_recording_is_refused():
    run = Run(True)
    run.sniper.step(0, run.optimizer)
    layer = next(m for m in run.model.modules() if isinstance(m, BlockSparseLinear))
    layer.register_forward_hook(lambda module, args, y: print(float(y.detach().sum())))
    with pytest.raises(AssertionError, match="waits for the device inside a recording"):
        run.step.backward(BATCHES[0], 1.0)


def test_recording_leaves_no_trace():
    """Gradients of an earlier micro-batch, BatchNorm's statistics and the generator stay."""
    run = Run(True)
    run.sniper.step(0, run.optimizer)
    run.step.backward(BATCHES[0], 0.5)
    grads = [p.grad.clone() for p in run.model.parameters()]
    buffers = [b.clone() for b in run.model.buffers()]
    generator = torch.get_rng_state()
    run.step._undone(lambda: run.step._gradients(BATCHES[1], 0.5))
    assert all(map(torch.equal, grads, (p.grad for p in run.model.parameters())))
    assert all(map(torch.equal, buffers, run.model.buffers()))
    assert torch.equal(generator, torch.get_rng_state())


def test_without_a_recorder_gradients_are_freed():
    run = Run(False)
    run.sniper.step(0, run.optimizer)
    run.step.backward(BATCHES[0], 1.0)
    assert float(run.step.clip()) > 0
    run.step.update()
    assert all(p.grad is None for p in run.model.parameters())


def test_frozen_parameters_get_no_gradients():
    run = Run(True)
    run.model.token_embed.weight.requires_grad_(False)
    run.sniper.step(0, run.optimizer)
    run.step.backward(BATCHES[0], 1.0)
    run.step.update()
    assert run.model.token_embed.weight.grad is None


def test_a_gpu_whose_replays_go_wrong_records_nothing(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def trusted(x, block_size, family):
        asked.append((x.dtype, block_size, family))
        return False

    monkeypatch.setattr(selfcheck, "trusted", trusted)
    run = Run(True)
    run.step._must_record, run.step.device = True, torch.device("cuda", 0)
    with pytest.raises(NotRecorded, match="this GPU's check leaves out what is recorded"):
        run.step.backward(BATCHES[0], 1.0)
    assert asked == [(torch.float32, 16, selfcheck.RECORDED)]


def test_graphs_are_for_gpus_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert pick_recorder(cpu, "auto") is pick_recorder(cpu, "off") is None
    assert pick_recorder(cuda, "off") is None
    with pytest.raises(ConfigError, match="train.cuda_graphs: on expects a CUDA device, got a CPU"):
        pick_recorder(cpu, "on")
    made = []
    monkeypatch.setattr(
        "sniper.training.step.CudaRecorder", lambda device: made.append(device) or "it"
    )
    assert pick_recorder(cuda, "auto") == pick_recorder(cuda, "on") == "it"
    assert made == [cuda, cuda]


class Failing(SimulatedRecorder):
    """Records a few times, then no more."""

    def record(self, work: Callable[[], Values]) -> tuple[Callable[[], None], Values]:
        if self.recordings == 4:
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().record(work)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_goes_on_without_graphs_when_recording_fails(
    accumulation: int, recwarn: pytest.WarningsRecorder
):
    plain, run = Run(False), Run(True, recorder=Failing)
    assert run.train(accumulation) == plain.train(accumulation)
    theirs, ours = plain.model.state_dict(), run.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert run.recorder.recordings == 4 and run.step.graphs is None
    said = [str(w.message) for w in recwarn if "without CUDA graphs" in str(w.message)]
    assert len(said) == 1 and "train.cuda_graphs=off" in said[0] and "not permitted" in said[0]


def test_graphs_that_must_be_are_an_error_when_recording_fails():
    run = Run(True, recorder=Failing, must_record=True)
    with pytest.raises(NotRecorded, match="not permitted"):
        run.train()


def test_peak_memory_is_what_the_process_has_held():
    before = peak_memory(torch.device("cpu"))
    size = 2 * before  # bytes: no earlier peak reaches that
    torch.ones(size, dtype=torch.uint8)
    assert size <= peak_memory(torch.device("cpu")) <= size + 2 * before


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"block_size": None}], ids=["blocks", "elements"])
def test_a_gpu_trains_the_same_with_graphs(settings: dict, monkeypatch: pytest.MonkeyPatch):
    """Without dropout: the generator's position in a graph is torch's business."""
    # Which convolutions cuDNN rounds to tf32 depends on what it finds fastest.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    losses = {}
    for recorded in (False, True):
        run = Run(recorded, "cuda", **settings)
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run.model.encoder.eval(), run.model.decoder.eval()  # attention's dropout
        losses[recorded] = run.train()
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert losses[True][-1] < losses[True][0]


@pytest.mark.gpu
def test_a_gpu_step_never_waits():
    run = Run(True, "cuda")
    run.sniper.step(0, run.optimizer)
    batches = [batch.pin_memory() for batch in BATCHES]

    def train() -> None:
        for batch in batches:
            run.step.backward(batch, 1.0)
            run.step.clip()
            run.step.update()

    train()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_noam_is_the_formula():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = noam(optimizer, d_model=64, warmup=4)
    used = []
    for _ in range(16):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # 2 * 64^-0.5 * min(s^-0.5, s * 4^-1.5): up to s = 4, then down with the root.
    assert used[:4] == [0.03125, 0.0625, 0.09375, 0.125]
    assert used[15] == 0.0625
    assert used[8] == pytest.approx(0.25 / 3)


def test_a_replay_that_reads_other_memory_is_refused():
    """A buffer that is replaced behind the step's back, and a number that has changed."""
    run = Run(True)
    run.sniper.step(0, run.optimizer)
    mask = [torch.ones(MELS)]
    scale = [1.0]
    run.model.mel_out.register_forward_hook(lambda module, args, y: y * mask[0] * scale[0])
    run.step.backward(BATCHES[0], 1.0)
    run.step.backward(BATCHES[0], 1.0)
    before, mask[0] = mask[0], torch.ones(MELS)
    with pytest.raises(AssertionError, match="recorded .*aten::mul.*, replayed"):
        run.step.backward(BATCHES[0], 1.0)
    mask[0], scale[0] = before, 2.0
    with pytest.raises(AssertionError, match="recorded .*aten::mul.* 1.0.*, replayed .* 2.0"):
        run.step.backward(BATCHES[0], 1.0)
