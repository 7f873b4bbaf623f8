# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels against `ops.reference` in float64, on every instruction set of this machine."""

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import instruction_sets

from sniper import _C
from sniper.ops.backends import CPU, REFERENCE
from sniper.ops.backends.cpu import elementwise, launch
from sniper.ops.geometry import Epilogue, Geometry
from sniper.ops.layout import BlockLayout

pytestmark = pytest.mark.usefixtures("nan_filled_empty")

GEOMETRIES = (
    Geometry(),
    Geometry(3, 1, 1, 1),
    Geometry(5, 2, 4, 4),
    Geometry(9, 1, 4, 4),
    Geometry(3, 1, 2, 0),
)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass
class Case:
    """Random tensors of one layer."""

    mask: torch.Tensor
    block: int
    geometry: Geometry
    batch: int = 2
    length: int = 37
    dtype: torch.dtype = torch.float32

    def __post_init__(self):
        torch.manual_seed(0)
        rows, _, cols = self.mask.shape
        n, c = rows * self.block, cols * self.block
        self.layout = BlockLayout(self.mask, self.block)
        self.x = torch.randn(self.batch, self.length, c)
        self.dy = torch.randn(self.batch, self.geometry.out_length(self.length), n)
        self.weight = (torch.randn(n, self.geometry.taps, c) * self.layout.element_mask()).flatten(
            1
        )
        self.bias = torch.randn(n)
        for name in ("x", "dy", "weight", "bias"):
            setattr(self, name, getattr(self, name).to(self.dtype))

    def check(self, tolerance=1e-5):
        layout, geometry = self.layout, self.geometry
        x, dy, w, b = (t.double() for t in (self.x, self.dy, self.weight, self.bias))
        close(
            CPU.fwd(self.x, self.weight, self.bias, layout, geometry),
            REFERENCE.fwd(x, w, b, layout, geometry),
            tolerance,
        )
        close(
            CPU.dgrad(self.dy, self.weight, layout, geometry, self.length),
            REFERENCE.dgrad(dy, w, layout, geometry, self.length),
            tolerance,
        )
        gate = (self.x - 0.5).relu()
        args = (self.dy, self.weight, layout, geometry, self.length)
        wanted = REFERENCE.dgrad(dy, w, layout, geometry, self.length)
        close(CPU.dgrad(*args, gate, 0.2), torch.where(gate > 0, wanted / 0.8, 0), tolerance)
        dw, db = CPU.wgrad(self.dy, self.x, layout, geometry, with_bias=True)
        close(dw, REFERENCE.wgrad(dy, x, layout, geometry)[0], tolerance)
        close(db, dy.sum((0, 1)), tolerance)
        assert (dw.view(layout.element_mask().shape)[~layout.element_mask()] == 0).all()
        assert torch.equal(CPU.wgrad(self.dy, self.x, layout, geometry)[0], dw)


def close(got, wanted, tolerance=1e-5):
    assert got.shape == wanted.shape
    assert (got.double() - wanted).norm() <= tolerance * wanted.norm()


def random_mask(rows, taps, cols, density):
    torch.manual_seed(1)
    return torch.rand(rows, taps, cols) < density


def by_turns(geometries, others):
    """Every geometry with every block size, and with the others by turns: all of them with
    --all-kernels.
    """
    pairs = list(itertools.product(geometries, launch.BLOCK_SIZES))
    n = len(launch.BLOCK_SIZES)
    return [(*pair, others[(i // n + i % n) % len(others)]) for i, pair in enumerate(pairs)]


# What is left out by turns, of each test with three parameters.
THREE_TAPS = (
    Geometry(3, 1, 1, 1),
    Geometry(3, 1, 0, 0),
    Geometry(3, 1, 5, 4),
    Geometry(4, 1, 1, 2),
    Geometry(5, 1, 2, 2),
    Geometry(9, 1, 8, 0),
)
GRIDS = {
    "test_agrees_with_reference": (GEOMETRIES, "density", [0.25, 0, 1]),
    "test_three_taps_at_once": (THREE_TAPS, "shape", [(1, 257), (2, 262), (9, 31)]),
    "test_bfloat16": (GEOMETRIES, "length", [1, 37, 200]),
}


def pytest_generate_tests(metafunc):
    if metafunc.cls is None and metafunc.function.__name__ in GRIDS:
        geometries, name, others = GRIDS[metafunc.function.__name__]
        cases = by_turns(geometries, others)
        if metafunc.config.getoption("--all-kernels"):
            cases = list(itertools.product(geometries, launch.BLOCK_SIZES, others))
        metafunc.parametrize(("geometry", "block", name), cases)


def test_agrees_with_reference(isa, block, density, geometry):
    Case(random_mask(3, geometry.taps, 2, density), block, geometry).check()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("batch, length", [(1, 1), (3, 2), (1, 5), (2, 97), (1, 400), (3, 131)])
def test_any_length(isa, batch, length, geometry):
    Case(random_mask(2, geometry.taps, 3, 0.5), 32, geometry, batch, length).check()


def every_choice_of_taps(rows, taps, cols):
    """All subsets of the first three taps in turn, the others at random."""
    mask = random_mask(rows, taps, cols, 0.7)
    which = torch.arange(rows * cols).view(rows, 1, cols)
    mask[:, :3] = (which >> torch.arange(3).view(1, 3, 1) & 1).bool()
    return mask


# From 256 rows on, three neighbouring taps go by Winograd's minimal filtering: its points are too
# few for some choices of taps, too many for others, and four neighbouring outputs one.
def test_three_taps_at_once(isa, shape, geometry, block):
    Case(every_choice_of_taps(3, geometry.taps, 3), block, geometry, *shape).check()


# More channels than are taken at a time, and more weights than a cache holds.
@pytest.mark.parametrize("rows, cols", [(2, 13), (13, 2), (9, 11)])
def test_three_taps_at_once_in_chunks(isa, rows, cols):
    mask = random_mask(rows, 3, cols, 1 if rows == 9 else 0.8)
    Case(mask, 64, GEOMETRIES[1], 1, 301).check()


def test_three_taps_at_once_lose_a_few_bits_at_most(isa):
    """Against float64; torch loses as much in weights, and less in inputs."""
    case = Case(torch.ones(3, 3, 12, dtype=torch.bool), 64, GEOMETRIES[1], 2, 540)
    case.check(1.5e-6)


@pytest.mark.parametrize("geometry", [Geometry(), Geometry(3, 1, 1, 1)], ids=["one tap", "three"])
def test_a_bias_of_many_tokens_keeps_its_digits(isa, geometry):
    """The gradient of a mean is one number a token: one by one they lost half of their digits."""
    layout = BlockLayout(torch.ones(4, geometry.taps, 4, dtype=torch.bool), 16)
    dy = torch.full((1, 60000, 64), 0.1)
    db = CPU.wgrad(dy, torch.zeros_like(dy), layout, geometry, True)[1]
    wanted = dy.double().sum((0, 1))
    assert (db - wanted).abs().max() < 1e-5 * wanted.max()


# Products of bfloat16 are exact in float32; what is lost is the last rounding, 2**-8 of a number.
def test_bfloat16(isa, length, block, geometry):
    mask = random_mask(3, geometry.taps, 2, 0.5)
    case = Case(mask, block, geometry, 2, length, torch.bfloat16)
    case.check(2**-8)
    assert CPU.fwd(case.x, case.weight, None, case.layout, geometry).dtype == torch.bfloat16


def test_empty_block_row_gives_bias():
    mask = torch.ones(3, 3, 2, dtype=torch.bool)
    mask[1] = False
    case = Case(mask, 16, GEOMETRIES[1])
    case.check()
    y = CPU.fwd(case.x, case.weight, case.bias, case.layout, case.geometry)
    assert torch.equal(y[..., 16:32], case.bias[16:32].expand(2, 37, 16))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_thread_counts_and_determinism(count):
    case = Case(random_mask(3, 3, 3, 0.5), 64, GEOMETRIES[1], 2, 500)
    with threads(count):
        case.check()
        once, again = (
            CPU.wgrad(case.dy, case.x, case.layout, case.geometry, with_bias=True) for _ in range(2)
        )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("geometry", GEOMETRIES[1:3])
def test_bits_do_not_depend_on_threads(geometry):
    # So many tokens that the weight gradient cuts them into chunks.
    case = Case(random_mask(3, geometry.taps, 3, 0.5), 64, geometry, 4, 500)
    passes = []
    for count in (1, 2, 3):
        with threads(count):
            y = CPU.fwd(case.x, case.weight, case.bias, case.layout, case.geometry)
            dx = CPU.dgrad(case.dy, case.weight, case.layout, case.geometry, case.length)
            sums = CPU.wgrad(case.dy, case.x, case.layout, case.geometry, with_bias=True)
        passes.append((y, dx, *sums))
    for one, other in itertools.pairwise(passes):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("geometry", GEOMETRIES[:2])
def test_strides(geometry):
    def transposed(t):
        return t.transpose(1, 2).contiguous().transpose(1, 2)

    def sliced(t):
        wide = torch.full((t.shape[0], t.shape[1] + 3, t.shape[2] + 5), float("nan"))
        wide[:, 2:-1, 1:-4] = t
        return wide[:, 2:-1, 1:-4]

    def batch_inside(t):
        return t.transpose(0, 1).contiguous().transpose(0, 1)

    for change in (transposed, sliced, batch_inside):
        case = Case(random_mask(2, geometry.taps, 3, 0.5), 16, geometry)
        case.x, case.dy = change(case.x), change(case.dy)
        case.weight = sliced(case.weight[None])[0]
        case.check()


def test_expanded_input():
    case = Case(random_mask(2, 3, 3, 0.5), 16, GEOMETRIES[1])
    case.x = case.x[:, :1].expand(2, 37, -1)
    case.dy = torch.ones(()).expand(case.dy.shape)
    case.check()


@pytest.mark.parametrize("batch, length", [(0, 5), (2, 0)])
def test_nothing_to_do(batch, length):
    case = Case(random_mask(2, 3, 3, 0.5), 16, GEOMETRIES[1], batch, length)
    assert CPU.fwd(case.x, case.weight, case.bias, case.layout, case.geometry).numel() == 0
    assert CPU.dgrad(case.dy, case.weight, case.layout, case.geometry, length).numel() == 0
    dw, db = CPU.wgrad(case.dy, case.x, case.layout, case.geometry, with_bias=True)
    assert (dw == 0).all() and (db == 0).all()


def test_follows_the_layout():
    case = Case(random_mask(2, 3, 3, 0.25), 16, GEOMETRIES[1])
    case.check()
    case.layout.update(torch.ones(2, 3, 3, dtype=torch.bool))
    case.weight = torch.randn_like(case.weight)
    case.check()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape(data):
    """Shapes, densities and paddings, also those that nobody would choose."""
    draw, integers = data.draw, st.integers
    geometry = Geometry(
        draw(integers(1, 5)), draw(integers(1, 3)), draw(integers(0, 9)), draw(integers(0, 9))
    )
    length = draw(integers(max(1, 1 - geometry.out_length(0)), 120))
    mask = random_mask(
        draw(integers(1, 4)), geometry.taps, draw(integers(1, 4)), draw(st.floats(0, 1))
    )
    block = draw(st.sampled_from(launch.BLOCK_SIZES))
    case = Case(mask, block, geometry, draw(integers(1, 3)), length)
    if draw(st.booleans()):
        case.x = torch.randn(case.x.shape[0], length, case.x.shape[2] + 7)[..., 3:-4]
    case.check()


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_results_too_large_for_the_caches_have_the_bits_of_small_ones(isa, block, p):
    # Over 2 MiB in one call, below it in two.
    case = Case(random_mask(256 // block, 3, 2, 0.6), block, GEOMETRIES[1], 2, 1301)
    y_small = []
    keep = elementwise.dropout(torch.ones(2, 1301, 256 // block * block), p, 5)
    for x in case.x.split(1):
        args = (x, case.weight, case.bias, case.layout, case.geometry, Epilogue(True))
        y_small.append(CPU.fwd(*args))
    epilogue = Epilogue(True, p, 5)
    y = CPU.fwd(case.x, case.weight, case.bias, case.layout, case.geometry, epilogue)
    assert torch.equal(y, torch.cat(y_small) * keep)
    # Wide inputs, so that their gradient is the large one.
    wide = Case(random_mask(2, 3, 256 // block, 0.6), block, GEOMETRIES[1], 2, 1301)
    found = []
    for x, dy in ((wide.x, wide.dy), *zip(wide.x.split(1), wide.dy.split(1), strict=True)):
        found.append(CPU.dgrad(dy, wide.weight, wide.layout, wide.geometry, 1301, x, 0.2))
    assert found[0].nbytes > 2 << 20 > found[1].nbytes and y.nbytes > 2 << 20
    assert torch.equal(found[0], torch.cat(found[1:]))


class TestFusion:
    def test_relu(self, isa):
        case = Case(random_mask(3, 3, 2, 0.5), 32, GEOMETRIES[1])
        args = (case.x, case.weight, case.bias, case.layout, case.geometry)
        z, y = CPU.fwd(*args), CPU.fwd(*args, Epilogue(relu=True))
        assert torch.equal(y, z.relu())
        dz = elementwise.relu_dropout_backward(case.dy, y)
        assert torch.equal(dz, torch.where(z > 0, case.dy, 0))

    def test_relu_keeps_nan(self):
        case = Case(random_mask(2, 1, 2, 1), 16, GEOMETRIES[0])
        case.x[0, 0, 0] = float("nan")
        args = (case.x, case.weight, case.bias, case.layout, case.geometry)
        assert torch.equal(CPU.fwd(*args, Epilogue(relu=True)).isnan(), CPU.fwd(*args).isnan())

    @pytest.mark.parametrize("block, rows", [(16, 3), (32, 3), (64, 2), (128, 1)])
    def test_dropout(self, isa, block, rows):
        case = Case(random_mask(rows, 3, 2, 0.5), block, GEOMETRIES[1])
        args = (case.x, case.weight, case.bias, case.layout, case.geometry)
        z, y = CPU.fwd(*args), CPU.fwd(*args, Epilogue(False, 0.3, 7))
        keep = elementwise.dropout(torch.ones_like(z), 0.3, 7)
        assert torch.equal(y, z * keep)
        dz = elementwise.dropout(case.dy, 0.3, 7)
        assert torch.equal(dz, case.dy * keep)

    def test_relu_and_dropout(self, isa):
        case = Case(random_mask(3, 3, 2, 0.5), 32, GEOMETRIES[1])
        args = (case.x, case.weight, case.bias, case.layout, case.geometry)
        z, y = CPU.fwd(*args), CPU.fwd(*args, Epilogue(True, 0.3, 7))
        keep = elementwise.dropout(torch.ones_like(z), 0.3, 7)
        assert torch.equal(y, z.relu() * keep)
        dz = elementwise.relu_dropout_backward(case.dy, y, 0.3)
        close(dz, (case.dy * keep * (z > 0)).double(), 1e-7)


class TestDropout:
    def test_same_words_everywhere(self, isa):
        got = elementwise.dropout(torch.ones(5, 80), 0.5, 2**40 + 3)
        _C.cpu.set_instruction_set("portable")
        assert torch.equal(got, elementwise.dropout(torch.ones(5, 80), 0.5, 2**40 + 3))

    def test_same_words_for_any_thread_count(self):
        x = torch.ones(300, 500)
        with threads(1):
            one = elementwise.dropout(x, 0.5, 1)
        with threads(3):
            assert torch.equal(one, elementwise.dropout(x, 0.5, 1))

    def test_philox(self):
        """Random123's known answer: Philox-4x32-7 of counter 0 and key 0, two elements a word."""
        words = (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)
        halves = {
            16 * w + h: word >> 16 * h & 0xFFFF for w, word in enumerate(words) for h in (0, 1)
        }
        for element, half in halves.items():
            for p, kept in ((half / 2**16, True), ((half + 1) / 2**16, False)):
                assert (elementwise.dropout(torch.ones(1, 64), p, 0)[0, element] > 0) == kept

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    def test_share_and_scale(self, p):
        n = 1 << 20
        y = elementwise.dropout(torch.ones(n // 256, 256), p, 5)
        kept = (y > 0).double()
        sigma = (p * (1 - p) / n) ** 0.5
        assert abs(kept.mean() - (1 - p)) < 5 * sigma
        assert torch.allclose(y[y > 0], torch.tensor(1 / (1 - p)))
        # Neighbours in a row, in a column and 64 apart are independent.
        for a, b in (
            (kept[:, 1:], kept[:, :-1]),
            (kept[1:], kept[:-1]),
            (kept[:, 64:], kept[:, :-64]),
        ):
            both = ((a - a.mean()) * (b - b.mean())).mean() / (p * (1 - p))
            assert abs(both) < 5 / n**0.5

    def test_seeds_differ(self):
        a, b = (elementwise.dropout(torch.ones(64, 64), 0.5, seed) for seed in (0, 2**32))
        assert 0.4 < (a == b).double().mean() < 0.6

    def test_bfloat16(self, isa):
        x = torch.randn(50, 200).bfloat16()
        y = elementwise.dropout(x, 0.25, 3)
        keep = elementwise.dropout(torch.ones(50, 200), 0.25, 3)
        assert torch.equal(y, (x.float() * keep).bfloat16())
        dz = elementwise.relu_dropout_backward(x, y, 0.25)
        assert torch.equal(dz, torch.where(y > 0, x.float() / 0.75, 0).bfloat16())

    @pytest.mark.parametrize("shape", [(), (1,), (3, 1), (2, 3, 17), (0, 4), (5, 0)])
    def test_shapes(self, shape):
        x = torch.randn(shape)
        assert elementwise.dropout(x, 0.5, 0).shape == shape
        assert torch.equal(elementwise.dropout(x, 0.0, 0), x)


class TestBadInput:
    case = Case(random_mask(2, 3, 2, 1), 16, GEOMETRIES[1])

    def fwd(self, **changes):
        case = self.case
        args = {"x": case.x, "weight": case.weight, "bias": case.bias, "layout": case.layout}
        return CPU.fwd(**{**args, "geometry": case.geometry, **changes})

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"x": torch.zeros(2, 5, 32).double()}, "x: expected .*float32.*float64"),
            ({"x": torch.zeros(2, 5, 32, device="meta")}, "x: expected .*CPU.*meta"),
            ({"x": torch.zeros(5, 32)}, r"x: expected 3 dimensions, got shape \[5, 32\]"),
            ({"x": torch.zeros(2, 5, 48)}, r"x: expected shape \[any, any, 32\], got \[2, 5, 48\]"),
            ({"weight": torch.zeros(32, 32)}, r"weight: expected shape \[32, 96\], got \[32, 32\]"),
            ({"weight": torch.zeros(32, 96).bfloat16()}, "weight: expected torch.float32 like"),
            ({"bias": torch.zeros(31)}, r"bias: expected shape \[32\], got \[31\]"),
            ({"x": torch.zeros(2, 5, 32).to_sparse()}, "x: expected a strided"),
            ({"geometry": Geometry(5, 1, 2, 2)}, "layout: expected the geometry's 5 taps, got 3"),
            ({"geometry": Geometry(3, 40, 1, 1)}, "x: expected at least 78 rows"),
            ({"geometry": Geometry(3, 0, 1, 1)}, "geometry: expected .*dilation"),
            ({"epilogue": Epilogue(False, 1.0)}, "dropout: expected p in"),
        ],
    )
    def test_fwd(self, changes, words):
        with pytest.raises(ValueError, match=words):
            self.fwd(**changes)

    def test_gradients(self):
        case, dy = self.case, self.case.dy[:, 1:]
        with pytest.raises(
            ValueError, match=r"dy: expected shape \[any, 37, 32\], got \[2, 36, 32\]"
        ):
            CPU.dgrad(dy, case.weight, case.layout, case.geometry, case.length)
        with pytest.raises(
            ValueError, match=r"dy: expected shape \[2, 37, 32\], got \[2, 36, 32\]"
        ):
            CPU.wgrad(dy, case.x, case.layout, case.geometry)[0]
        with pytest.raises(ValueError, match="dy: expected shape"):
            elementwise.relu_dropout_backward(dy, case.dy)

    def test_block_size(self):
        layout = BlockLayout(torch.ones(1, 1, dtype=torch.bool), 8)
        with pytest.raises(ValueError, match=r"block size of \(16, 32, 64, 128\), got 8"):
            self.fwd(layout=layout, geometry=Geometry())

    @pytest.mark.parametrize(
        "name, value",
        [
            ("crow_indices", torch.tensor([0, 6, 4], dtype=torch.int32)),
            ("crow_indices", torch.tensor([0, 6, 99], dtype=torch.int32)),
            ("crow_indices", torch.tensor([0, 6, 12])),
            ("col_indices", torch.full((12,), 7, dtype=torch.int32)),
            ("col_indices", torch.zeros(12, dtype=torch.int32)),
            ("col_indices", torch.zeros(3, dtype=torch.int32)),
            ("row_order", torch.tensor([0, 2], dtype=torch.int32)),
            ("crow_indices_t", torch.tensor([0, 5, 12], dtype=torch.int32)),
            ("crow_indices_t", torch.tensor([0, 6, 11], dtype=torch.int32)),
            ("col_indices_t", -torch.ones(12, dtype=torch.int32)),
        ],
    )
    def test_layout_indices(self, name, value):
        layout = BlockLayout(torch.ones(2, 3, 2, dtype=torch.bool), 16)
        setattr(layout, name, value)
        with pytest.raises(ValueError, match="layout"):
            self.fwd(layout=layout)


def run_python(code, **environ):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )


def test_environment_forces_an_instruction_set():
    code = "from sniper import _C; print(_C.cpu.instruction_set())"
    for name in instruction_sets():
        assert run_python(code, SNIPER_CPU=name).stdout.strip() == name
    failed = run_python(code, SNIPER_CPU="sse9")
    assert "SNIPER_CPU: expected one that this CPU and build have" in failed.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_shares_torchs_threads():
    code = """
import os, torch
from sniper import _C
from sniper.ops.backends.cpu import elementwise
torch.set_num_threads(3)
a = torch.randn(512, 512)
a @ a; a + a

def working():  # without the team that only sleeps while a machine is crowded
    tasks = os.listdir("/proc/self/task")
    names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks]
    return len(names) - names.count("sniper-waits")

before = working()
for seed in range(3):
    elementwise.dropout(a, 0.5, seed)
print(working() - before, _C.cpu.thread_source())
"""
    assert run_python(code).stdout.split() == ["0", "openmp"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_that_wait_sleep_while_others_want_the_cores():
    """One core for a busy process and two threads of ours; then the other process is gone."""
    code = """
import os, subprocess, sys, time, torch
from sniper import _C
from sniper.ops.backends.cpu import elementwise
cores = sorted(os.sched_getaffinity(0))
torch.set_num_threads(2)
a = torch.randn(512, 512)
elementwise.dropout(a, 0.5, 0)
os.sched_setaffinity(0, cores[:1])
for task in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(task), cores[:1])
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    until = time.monotonic() + 30
    while not _C.cpu.waits_are_short() and time.monotonic() < until:
        expected = elementwise.dropout(a, 0.5, 1)
    crowded = _C.cpu.waits_are_short()
    same = torch.equal(expected, elementwise.dropout(a, 0.5, 1))
finally:
    other.kill()
    other.wait()
until = time.monotonic() + 30
while _C.cpu.waits_are_short() and time.monotonic() < until:
    time.sleep(0.1)
print(crowded, same, _C.cpu.waits_are_short())
"""
    assert run_python(code).stdout.split() == ["True", "True", "False"]
