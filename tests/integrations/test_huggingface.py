# SPDX-License-Identifier: Apache-2.0
"""Hugging Face: its speech models made block-sparse, and SNIPER inside its Trainer."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_ranks
import pytest
import torch
from dropin import (
    BLOCK,
    check_against_masked_dense,
    check_sniper_trains,
    fastspeech2_conformer,
    models_loss,
    speecht5,
    vits,
    vits_loss,
)
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer as HFTrainer
from transformers import TrainerCallback, TrainingArguments
from transformers.training_args import ParallelMode

from sniper import BlockSparseConv1d, BlockSparseLinear, LearningRateScale, Sniper, sparsify
from sniper.integrations.huggingface import SniperCallback

MODELS = {
    "fastspeech2_conformer": (fastspeech2_conformer, models_loss),
    "speecht5": (speecht5, models_loss),
    "vits": (vits, vits_loss),
}

WITH_DEPTHWISE = ("fastspeech2_conformer",)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_equals_its_masked_dense_original(name):
    make, loss_fn = MODELS[name]
    tolerance = 1e-2 if name == "vits" else 1e-3  # its flows have splines
    report = check_against_masked_dense(*make(), loss_fn, tolerance=tolerance)
    assert report.parameter_share > 0.3 and report.flop_share > 0.3
    assert (report.depthwise > 0) == (name in WITH_DEPTHWISE)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_from_sparse_to_dense(name):
    make, loss_fn = MODELS[name]
    check_sniper_trains(*make(), loss_fn)


def test_a_conformers_convolutions():
    model, _ = fastspeech2_conformer()
    reasons = {m.name: m.reason for m in sparsify(model, 16).modules}
    at = "encoder.conformer_layers.0"
    assert reasons[f"{at}.conv_module.depthwise_conv"] == "groups 32"
    taken = ("conv_module.pointwise_conv1", "conv_module.pointwise_conv2", "feed_forward.conv1")
    for name in taken:
        assert reasons[f"{at}.{name}"] == ""
        assert type(model.get_submodule(f"{at}.{name}")) is BlockSparseConv1d
    assert type(model.get_submodule(f"{at}.self_attn.linear_pos")) is BlockSparseLinear


def test_weight_norm_and_transposed_convolutions_of_vits():
    model, _ = vits()
    computed = "its weight is computed (weight norm or another parametrization)"
    reasons = {m.name: m.reason for m in sparsify(model, 16).modules}
    assert reasons["flow.flows.0.wavenet.in_layers.0"] == computed
    assert reasons["decoder.upsampler.0"] == "class ConvTranspose1d is not supported"
    assert reasons["text_encoder.encoder.layers.0.feed_forward.conv_1"] == ""


def test_the_transposed_linear_of_gpt2_is_reported_and_left():
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=20, n_positions=16))
    layer = nn.Linear(32, 32)
    before = model.state_dict()
    report = sparsify(nn.ModuleDict({"gpt2": model, "head": layer}), 16)
    assert report.taken == ("head",)
    transposed = [m for m in report.modules if m.kind == "Conv1D"]
    assert len(transposed) == 4
    assert {m.reason for m in transposed} == {"its weight is transposed, [in, out]"}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=r"h.0.attn.c_attn: its weight is transposed"):
        sparsify(model, 16)


def test_tied_weights():
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=32, num_hidden_layers=1, **sizes))
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    reasons = {m.name: m.reason for m in sparsify(model, 16).modules}
    assert reasons["cls.predictions.decoder"] == "its weight is tied to another module's"
    assert reasons["cls.predictions.transform.dense"] == ""
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


SCHEDULE = {0: 0.7, 1: 0.4, 3: 0.0}


class Regression(nn.Module):
    """What a Trainer needs of a model: a loss from the batch's columns."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.second = nn.Linear(64, 32)

    def forward(self, x, labels=None):
        y = self.second(self.first(x).relu())
        return {"loss": (y - labels).square().mean() if labels is not None else None, "y": y}


def dataset(n: int = 16, labels: bool = True) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    items = [{"x": torch.randn(32, generator=generator)} for _ in range(n)]
    return [{**item, "labels": item["x"].flip(0)} if labels else item for item in items]


class Watch(TrainerCallback):
    """What was in force at the end of each step, and the rate that Adam used."""

    def __init__(self, callback: SniperCallback):
        self.callback, self.seen = callback, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if not hasattr(self, "_handle"):
            self._handle = optimizer.register_step_pre_hook(self._rates)

    def _rates(self, optimizer, args, kwargs):
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        self.rate = rates[id(self.callback.sniper.model.first.weight)]

    def on_step_end(self, args, state, control, **kwargs):
        sniper = self.callback.sniper
        self.seen.append((sniper.sparsity, sniper.model.first.density, self.rate))


def make_trainer(folder: Path, callback: SniperCallback, model=None, data=None, **changes):
    torch.manual_seed(0)
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return HFTrainer(
        model if model is not None else Regression(),
        TrainingArguments(**{**settings, **changes}),
        train_dataset=dataset() if data is None else data,
        callbacks=[callback],
    )


def make_callback(**options) -> SniperCallback:
    return SniperCallback(options.pop("schedule", SCHEDULE), block_size=BLOCK, **options)


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_the_schedule_and_the_rates_of_a_run(tmp_path):
    callback = make_callback(lr_scale=LearningRateScale(max=10.0))
    trainer = make_trainer(tmp_path, callback, gradient_accumulation_steps=2)
    watch = Watch(callback)
    trainer.add_callback(watch)
    trainer.train()
    assert [s for s, _, _ in watch.seen] == [0.7, 0.7, 0.4, 0.4, 0.4, 0.4, 0.0, 0.0]
    for _, density, rate in watch.seen:
        assert rate == pytest.approx(1e-2 / density)  # below the largest factor
    assert watch.seen[0][1] < watch.seen[2][1] < watch.seen[-1][1] == 1.0
    assert trainer.state.log_history[-1]["train_loss"] < 2.0


def test_scores_are_those_of_the_first_batches_of_the_training_data(tmp_path):
    torch.manual_seed(0)
    model = Regression()
    plain = Sniper(copy.deepcopy(model), SCHEDULE, block_size=BLOCK)
    callback = make_callback(score_batches=4)
    trainer = make_trainer(tmp_path, callback, model, num_train_epochs=1)
    trainer.train()
    batch = {k: torch.stack([d[k] for d in dataset()]) for k in ("x", "labels")}
    plain.score([batch], lambda m, b: m(**b)["loss"])  # the four batches of four, in any order
    plain.step(0)
    for name in ("first", "second"):
        mask = getattr(plain.model, name).block_mask
        assert torch.equal(getattr(trainer.model, name).block_mask, mask)


@pytest.mark.parametrize("stop", ["epoch", "middle"])
@pytest.mark.parametrize("options", [{}, {"block_size": None, "paper_exact": True}])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, stop, options):
    def callback() -> SniperCallback:
        return SniperCallback(SCHEDULE, **{"block_size": BLOCK, **options})

    saving = {"save_strategy": "steps", "save_steps": 8 if stop == "epoch" else 6}
    whole = make_trainer(tmp_path / "whole", callback(), **saving)
    whole.train()
    folder = tmp_path / "whole" / f"checkpoint-{saving['save_steps']}"
    assert {"sniper.pt", "model.safetensors", "optimizer.pt"} <= {p.name for p in folder.iterdir()}
    again = make_trainer(tmp_path / "whole", callback(), **saving)
    for p in again.model.parameters():
        nn.init.zeros_(p)  # nothing of the start is needed
    again.train(resume_from_checkpoint=str(folder))
    for got, wanted in zip(weights(again), weights(whole), strict=True):
        assert torch.equal(got, wanted)
    # A copy elsewhere needs to be named.
    moved = shutil.move(folder, tmp_path / "moved")
    third = make_trainer(tmp_path / "elsewhere", make_callback(), **saving)
    with pytest.raises(ValueError, match="expected .*elsewhere/checkpoint-.*sniper.pt to resume"):
        third.train(resume_from_checkpoint=str(moved))
    if not options:
        named = make_trainer(tmp_path / "elsewhere", make_callback(resume_from=moved), **saving)
        named.train(resume_from_checkpoint=str(moved))
        assert all(torch.equal(a, b) for a, b in zip(weights(named), weights(whole), strict=True))


def test_a_checkpoint_is_the_plain_models(tmp_path):
    trainer = make_trainer(tmp_path, make_callback(), num_train_epochs=1)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    Regression().load_state_dict(saved)
    assert (saved["first.weight"] == 0).float().mean() > 0.4


def test_a_speech_model_in_the_trainer(tmp_path):
    model, batch = fastspeech2_conformer()
    callback = make_callback(schedule={0: 0.6, 1: 0.0}, score_batches=1)
    data = [{k: v[i] for k, v in batch.items()} for i in range(2)]
    trainer = make_trainer(
        tmp_path, callback, model, data, num_train_epochs=2, per_device_train_batch_size=2
    )
    trainer.train()
    assert callback.sniper.sparsity == 0.0 and len(callback.sniper.densities()) > 10
    assert trainer.state.global_step == 2


def test_what_cannot_be(tmp_path):
    no_labels = make_trainer(tmp_path, make_callback(), data=dataset(labels=False))
    with pytest.raises(ValueError, match="expected a model that returns a loss for x, got none"):
        no_labels.train()
    sharded = make_callback()
    args = SimpleNamespace(fsdp=["full_shard"], deepspeed=None)
    with pytest.raises(ValueError, match="got fsdp, which shards them"):
        sharded.on_train_begin(args, None, None)
    args = SimpleNamespace(parallel_mode=ParallelMode.NOT_DISTRIBUTED, n_gpu=2)
    with pytest.raises(ValueError, match="one process a GPU .torchrun., got DataParallel over 2"):
        sharded.on_train_begin(args, None, None)


def test_a_resumed_run_with_another_batch_size_has_the_trainers_epochs(tmp_path):
    """Updates are what the Trainer counts: the sixth of four an epoch is the fourth epoch's of
    two.
    """
    longer = {"schedule": {0: 0.8, 2: 0.4, 4: 0.0}}
    saving = {"save_strategy": "steps", "save_steps": 6, "num_train_epochs": 6}
    make_trainer(tmp_path, make_callback(**longer), **saving).train()
    callback = make_callback(**longer)
    again = make_trainer(tmp_path, callback, per_device_train_batch_size=8, **saving)
    watch = Watch(callback)
    again.add_callback(watch)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert [s for s, _, _ in watch.seen] == [0.4, 0.4, 0.0, 0.0, 0.0, 0.0]  # epochs 3, 4, 5
    # And the twelfth of four, when the schedule had come to 40 %, is the first epoch of sixteen.
    again = make_trainer(tmp_path, make_callback(**longer), per_device_train_batch_size=1, **saving)
    with pytest.raises(ValueError, match="resume with the batch size and schedule"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self):
        return iter(dataset())


def test_a_stream_whose_length_nobody_knows(tmp_path):
    callback = make_callback(score_batches=2)
    trainer = make_trainer(tmp_path, callback, data=Stream(), max_steps=13)
    watch = Watch(callback)
    trainer.add_callback(watch)
    trainer.train()
    # Four updates a pass; the schedule counts passes.
    assert [s for s, _, _ in watch.seen] == [0.7] * 4 + [0.4] * 8 + [0.0]
    with pytest.warns(UserWarning, match="ended at sparsity 70%; the schedule goes on to 0% at ep"):
        make_trainer(tmp_path, make_callback(), data=Stream(), max_steps=3).train()


def test_training_the_same_model_again(tmp_path):
    callback = make_callback()
    trainer = make_trainer(tmp_path, callback)
    trainer.train()
    with pytest.raises(ValueError, match=r"left at 0: .* call callback.sniper.detach\(\) first"):
        trainer.train()
    callback.sniper.detach()
    trainer.train()
    assert callback.sniper.sparsity == 0.0 and not callback.sniper.detached
    # A constant sparsity simply goes on.
    constant = make_callback(schedule={0: 0.5})
    trainer = make_trainer(tmp_path, constant)
    trainer.train(), trainer.train()
    assert constant.sniper.sparsity == 0.5


def test_a_loss_function_of_the_users_own(tmp_path):
    seen = []

    def loss_fn(model, batch):
        seen.append(model.training)
        return model(batch["x"])["y"].square().mean()

    callback = make_callback(loss_fn=loss_fn, score_batches=2)
    make_trainer(tmp_path, callback, num_train_epochs=1).train()
    assert seen == [True, True]


def test_a_training_whose_scoring_failed_begins_again(tmp_path):
    callback = make_callback(loss_fn=lambda model, batch: model(**batch)["loss"].detach())
    trainer = make_trainer(tmp_path, callback, num_train_epochs=1)
    with pytest.raises(ValueError, match="expected a loss with a graph"):
        trainer.train()
    callback.loss_fn = None
    trainer.train()
    assert callback.sniper.sparsity == 0.7


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("ranks")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, *start, "huggingface_ranks.py", folder],
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


def test_two_ranks_have_one_model(two_ranks):
    for name, found in two_ranks[0].items():
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
    one = huggingface_ranks.train(tmp_path, "one", data=huggingface_ranks.data(True)[:8])
    assert_same(two_ranks[0]["alike"]["weights"], one["weights"])


def test_a_plain_modules_convolution_is_saved(tmp_path):
    """A mask changes its order in memory, which safetensors does not take."""
    found = huggingface_ranks.train(tmp_path, "one", epochs=1)
    saved = load_file(tmp_path / "one" / "checkpoint-8" / "model.safetensors")
    assert_same(saved, found["weights"])
    assert (saved["conv.weight"] == 0).float().mean() > 0.4


def test_a_state_dict_that_nobody_saves_is_of_the_weights_themselves(tmp_path):
    """An average of the weights, as timm's, is written to by way of it."""
    model = huggingface_ranks.Model()
    items = [{"x": x, "labels": x} for x in huggingface_ranks.data()]
    trainer = make_trainer(tmp_path, make_callback(), model, items, max_steps=1)
    trainer.train()
    assert model.conv.weight.stride() != model.conv.weight.contiguous().stride()
    assert model.state_dict()["conv.weight"].data_ptr() == model.conv.weight.data_ptr()
    trainer.save_model(tmp_path / "end")
    assert_same(load_file(tmp_path / "end" / "model.safetensors"), model.state_dict())


class HalfLoss(HFTrainer):
    """Overrides the loss, as Hugging Face's documents say."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(inputs["x"])["y"][:, :16].square().mean()


@pytest.mark.parametrize("way", ["compute_loss_func", "compute_loss", "label smoothing"])
def test_weights_are_scored_by_the_trainers_own_loss(tmp_path, way):
    def half(outputs, labels, num_items_in_batch=None):
        assert labels.shape == (4, 32) and int(num_items_in_batch) > 0
        return outputs["y"][:, :16].square().mean()

    callback = make_callback(score_batches=2)
    trainer = make_trainer(tmp_path, callback, num_train_epochs=1)
    if way == "compute_loss_func":
        trainer.compute_loss_func = half
    elif way == "compute_loss":
        trainer.__class__ = HalfLoss
    else:
        trainer.label_smoother = lambda outputs, labels, **_: half(outputs, labels, 1)
    trainer.train()
    masks = callback.sniper.masks(0.7)["second.weight"]
    assert masks[:1].any() and not masks[1:].any()  # the loss does not depend on the second half


def test_a_loss_of_the_trainers_own_has_to_be_given(tmp_path):
    class Plain(Regression):
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(ValueError, match="forward takes x, labels and .*: pass loss_fn="):
        make_trainer(tmp_path, make_callback(), Plain(), remove_unused_columns=False).train()
