# SPDX-License-Identifier: Apache-2.0
"""The microbenchmarks under pytest-benchmark: layers, their passes, elementwise ops, mask update.

pytest bench --benchmark-only                             # everything, about two minutes
pytest bench --benchmark-only -k "mask_update"
pytest bench --benchmark-only --benchmark-autosave        # into .benchmarks/
pytest bench --benchmark-only --benchmark-compare         # beside the last saved run
pytest bench --benchmark-only --benchmark-compare=0001 --benchmark-compare-fail=median:10%

The set-ups are those of the scripts beside this file, at fewer tokens; what fails its reference is
not timed. Figures for publication come from the scripts: they time providers in turn, so that what
else the machine does meets all of them alike, and keep rows of device, versions and commit.
"""

from __future__ import annotations

from functools import cache

import bench_elementwise
import bench_layers
import bench_mask_update
import common
import pytest
import torch

TOKENS = (4, 270)
BLOCK, WEIGHTS = 64, 4_000_000
LAYERS = ("384-384-1", "384-1536-3", "256-256-5")
DENSITIES = (1.0, 0.2)

pytestmark = pytest.mark.benchmark(max_time=0.3, min_rounds=5, warmup=False, disable_gc=True)


@cache
def layer_case(layer: str, density: float) -> bench_layers.Case:
    """One set-up for all passes and providers; checked."""
    parsed = bench_layers.parse_layer(layer)
    case = bench_layers.Case(parsed, BLOCK, density, torch.float32, TOKENS)
    with torch.no_grad():
        case.check(case.providers())
    return case


@pytest.mark.parametrize("provider", ["conv1d", "linear", "sparse"])
@pytest.mark.parametrize("pass_", bench_layers.PASSES)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("layer", LAYERS)
def test_pass(benchmark, layer, density, pass_, provider):
    providers = layer_case(layer, density).providers()
    if provider not in providers:
        pytest.skip("F.linear has one tap")
    benchmark.group = f"{layer} density {density} {pass_}"
    with torch.no_grad():
        benchmark(providers[provider][pass_])


@pytest.mark.parametrize("provider", ["dense", "sparse"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("layer", LAYERS)
def test_layer(benchmark, layer, density, provider):
    """The module itself, forward and backward."""
    case = layer_case(layer, density)
    steps = {name: case.step(module) for name, module in case.modules().items()}
    named = zip(("y", "dx"), steps[provider](), steps["dense"](), strict=True)
    for name, got, wanted in named:
        common.check_close(f"{provider} {name}", got, wanted, case.tolerance)
    benchmark.group = f"{layer} density {density} module"
    benchmark(steps[provider])


@cache
def elementwise_case(op: str) -> bench_elementwise.Case:
    """Checked."""
    case = bench_elementwise.Case(op, TOKENS)
    case.check()
    return case


@pytest.mark.parametrize("provider", ["torch", "ours"])
@pytest.mark.parametrize("pass_", bench_elementwise.PASSES)
@pytest.mark.parametrize("op", bench_elementwise.OPS)
def test_elementwise(benchmark, op, pass_, provider):
    benchmark.group = f"{op} {pass_}"
    benchmark(elementwise_case(op).calls(pass_)[provider])


@cache
def changes() -> bench_mask_update.Changes:
    """Checked."""
    found = bench_mask_update.Changes(torch.device("cpu"))
    found.check()
    return found


@pytest.mark.parametrize("provider", ["Sniper.step", "extension", "torch", "copy floor"])
def test_mask_update(benchmark, provider):
    """From 80 % to 40 % sparsity, and back before each round."""
    benchmark.group = "mask update"
    call = changes().providers()[provider]
    benchmark.pedantic(call, setup=changes().reset, rounds=7)


@pytest.mark.parametrize("provider", ["extension", "torch"])
def test_element_masks(benchmark, provider):
    """Masks of single weights from their scores."""
    benchmark.group = f"masks of {WEIGHTS:,} weights"
    benchmark(bench_mask_update.element_providers(WEIGHTS, torch.device("cpu"))[provider])
