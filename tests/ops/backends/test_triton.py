# SPDX-License-Identifier: Apache-2.0
"""The Triton backend where it cannot run: fallbacks, refusals, what is chosen; for values see
`tests/kernels`.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from sniper.layers import BlockLayout
from sniper.ops import dispatch, timings
from sniper.ops.backends import TRITON
from sniper.ops.backends.triton import elementwise, launch, tuning
from sniper.ops.geometry import Epilogue, Geometry

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forget():
    cached = (launch.why_not, launch.arch, launch.interpreted)
    for function in (*cached, tuning._warn_that_none_fits):
        function.cache_clear()
    yield
    for function in (*cached, tuning._warn_that_none_fits):
        function.cache_clear()


def pretend(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], shared_memory: int = 232448
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "Some GPU")
    facts = SimpleNamespace(shared_memory_per_block_optin=shared_memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index=None: facts)
    monkeypatch.setenv("SNIPER_SELF_CHECK", "skip")  # tests/ops/test_selfcheck.py has it


def tensor(
    dtype: torch.dtype, device: torch.device, shape: tuple[int, ...] = (2, 3, 128)
) -> SimpleNamespace:
    """As much of a tensor as the choice of a backend looks at."""
    size = torch.Size(shape)
    return SimpleNamespace(
        dtype=dtype, device=device, shape=size, numel=size.numel, dim=lambda: len(shape)
    )


def layout(block: int = 64, taps: int = 1) -> BlockLayout:
    return BlockLayout(torch.ones(3, taps, 2, dtype=torch.bool), block)


def test_each_launch_says_whether_products_and_sums_are_fused():
    """Triton's own default changes with its version, and with it the bits of a run."""
    seen = []

    class Function:
        def __getitem__(self, grid):
            return lambda *args, **options: seen.append((grid, args, options))

    launch.Kernel(Function())[(2, 3)](1, num_warps=4)
    assert seen == [((2, 3), (1,), {"num_warps": 4, "enable_fp_fusion": True})]
    there = vars(launch.kernels())
    assert {"product_pointer", "wgrad_tma", "adam_update", "add_norm"} <= set(there)
    assert all(isinstance(kernel, launch.Kernel) for kernel in there.values())


def test_not_on_a_cpu():
    assert not TRITON.serves(tensor(torch.float32, torch.device("cpu")))
    x, w = torch.randn(1, 4, 128), torch.randn(192, 128)
    with pytest.raises(ValueError, match="x: expected a tensor on a GPU, got one on cpu"):
        TRITON.fwd(x, w, None, layout(), Geometry())
    with pytest.raises(ValueError, match="x: expected a tensor on a GPU"):
        elementwise.dropout(x, 0.5, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_from_sm_80_on(monkeypatch, dtype):
    pretend(monkeypatch, (8, 0))
    assert TRITON.serves(tensor(dtype, CUDA))
    assert not TRITON.serves(tensor(torch.float64, CUDA))


def test_an_old_gpu_runs_dense_and_says_so_once(monkeypatch):
    pretend(monkeypatch, (7, 5))
    with pytest.warns(UserWarning, match="run dense: Some GPU is sm_75, older than sm_80"):
        assert not TRITON.serves(tensor(torch.float32, CUDA))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not TRITON.serves(tensor(torch.float32, CUDA))


def test_no_triton_runs_dense_and_says_so(monkeypatch):
    pretend(monkeypatch, (9, 0))
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="run dense: Triton is not installed"):
        assert not TRITON.serves(tensor(torch.float32, CUDA))


def test_import_loads_no_triton():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import sniper, sniper.ops.backends.triton, sniper.kernels.configs, torch\n"
        "from sniper import BlockSparseLinear\n"
        "layer = BlockSparseLinear(64, 64, block_size=16)\n"
        "layer.set_block_mask(torch.ones(layer.block_mask_shape, dtype=torch.bool))\n"
        "layer(torch.randn(2, 64)).sum().backward()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("capability", "block", "candidates"),
    [((9, 0), 64, ["triton", "dense"]), ((7, 0), 64, ["dense"]), ((9, 0), 8, ["dense"])],
)
@pytest.mark.filterwarnings("ignore:block-sparse layers run dense")
def test_dense_is_the_other_candidate(monkeypatch, capability, block, candidates):
    pretend(monkeypatch, capability)
    chosen = dispatch.candidates("fwd", layout(block), tensor(torch.bfloat16, CUDA))
    assert [backend.name for backend in chosen] == candidates


@pytest.fixture
def as_interpreted(monkeypatch):
    """Lets checks pass the device test; nothing is launched."""
    monkeypatch.setattr(launch, "interpreted", lambda: True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(1, 4, 64)}, r"x: expected shape \[any, any, 128\], got \[1, 4, 64\]"),
        ({"x": torch.randn(4, 128)}, r"x: expected shape \[any, any, 128\], got \[4, 128\]"),
        ({"x": torch.randn(1, 4, 128).double()}, "x: expected a strided float32, bfloat16"),
        ({"w": torch.randn(192, 128).half()}, "weight: expected torch.float32 as the other"),
        ({"w": torch.randn(192, 64)}, r"weight: expected shape \[192, 128\]"),
        ({"b": torch.randn(1)}, r"bias: expected shape \[192\], got \[1\]"),
        ({"layout": layout(8)}, "expected a block size of .*128.*, got 8"),
        ({"layout": layout(taps=3)}, "layout: expected the geometry's 1 taps, got 3"),
        ({"geometry": Geometry(1, 0)}, "geometry: expected taps and dilation >= 1"),
        ({"w": torch.randn(192, 128, device="meta")}, "weight: expected a tensor on cpu"),
        ({"p": 1.0}, r"dropout: expected p in \[0, 1\), got 1.0"),
        ({"p": 0.5, "seed": torch.tensor(1.0)}, "seed: expected an int64 scalar on cpu"),
    ],
)
def test_refused(as_interpreted, change, message):
    values = {"x": torch.randn(1, 4, 128), "w": torch.randn(192, 128), "b": None}
    values |= {"layout": layout(), "geometry": Geometry(), "p": 0.0, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        TRITON.fwd(
            *(values[n] for n in ("x", "w", "b", "layout", "geometry")),
            Epilogue(False, values["p"], values["seed"]),
        )


def test_more_than_32_bits_count_is_refused(as_interpreted):
    many = torch.zeros(1, 1, 128).expand(2**31, 1, 128)
    with pytest.raises(ValueError, match=r"x: expected fewer than 2\^31 rows"):
        TRITON.fwd(many, torch.randn(192, 128), None, layout(), Geometry())
    wide = BlockLayout(torch.zeros(512, 256, dtype=torch.bool), 128)
    with pytest.raises(ValueError, match=r"layout: expected fewer than 2\^31 weights"):
        launch.check_layout(wide, Geometry(), torch.device("cpu"))


def test_what_kernels_cannot_count_runs_elsewhere(monkeypatch):
    """2^31 rows, more columns than a grid has; 2^31 elements alone are counted in 64 bits."""
    pretend(monkeypatch, (9, 0))
    rows = tensor(torch.bfloat16, CUDA, (2**20, 2**11, 128))
    elements = tensor(torch.bfloat16, CUDA, (2**10, 2**11, 2048))
    columns = tensor(torch.bfloat16, CUDA, (2, elementwise.MOST_COLUMNS + 1))
    assert not TRITON.takes("fwd", rows, layout()) and not TRITON.serves(rows)
    assert TRITON.takes("fwd", elements, layout()) and TRITON.serves(elements)
    assert not TRITON.serves(columns)
    with pytest.raises(ValueError, match="y: expected at most 4194240 columns"):
        monkeypatch.setattr(launch, "interpreted", lambda: True)
        y = torch.zeros(1).expand(1, elementwise.MOST_COLUMNS + 1)
        elementwise.relu_dropout_backward(y, y)


def test_offsets_beyond_32_bits_within_a_tile_are_copied():
    def strided(*strides: int, rows: int = 9) -> torch.Tensor:
        return torch.empty_strided((2, rows, 16), strides, device="meta")

    assert launch.rows_contiguous(strided(2**33, 2**23, 1)).stride() == (9 * 16, 16, 1)
    # One row has any stride, and is contiguous all the same.
    assert launch.rows_contiguous(strided(2**33, 2**31, 1, rows=1)).stride() == (16, 16, 1)
    near = strided(2**33, 2**22, 1)
    assert launch.rows_contiguous(near) is near
    assert launch.rows_contiguous(near, 2**9) is not near


@pytest.mark.parametrize(("kibibytes", "taken"), [(227, True), (20, True), (1, False)])
def test_a_chip_too_small_for_every_tile_runs_dense_and_says_so_once(
    monkeypatch, kibibytes, taken, recwarn
):
    pretend(monkeypatch, (8, 0), 1024 * kibibytes)
    x = tensor(torch.bfloat16, CUDA)
    for _ in range(2):
        assert TRITON.takes("wgrad", x, layout()) == taken
    said = [str(w.message) for w in recwarn if "no tile fits the 1024 bytes" in str(w.message)]
    assert len(said) == (not taken)


def test_a_layout_elsewhere_is_refused(as_interpreted):
    moved = layout().to("meta")
    with pytest.raises(ValueError, match="layout.crow_indices: expected int32 .* on cpu"):
        TRITON.dgrad(torch.randn(1, 4, 192), torch.randn(192, 128), moved, Geometry(), 4)


def test_gradients_that_do_not_fit_are_refused(as_interpreted):
    x, dy = torch.randn(1, 4, 128), torch.randn(1, 5, 192)
    with pytest.raises(ValueError, match=r"dy: expected shape \[1, 4, 192\], got \[1, 5, 192\]"):
        TRITON.wgrad(dy, x, layout(), Geometry())[0]
    with pytest.raises(ValueError, match=r"dy: expected shape \[1, 4, 128\]"):
        elementwise.relu_dropout_backward(dy, x, 0.1)


def test_a_tiling_is_looked_for_once_for_a_mask_and_what_it_depends_on(monkeypatch):
    monkeypatch.setattr(launch, "arch", lambda device: 90)
    looked, tilings = [], tuning.tilings
    monkeypatch.setattr(tuning, "tilings", lambda *args: looked.append(1) or tilings(*args))
    blocks, x, w = layout(), torch.zeros(1, 380, 128).half(), torch.zeros(192, 128).half()

    def pick(x=x, which="fwd"):
        return tuning.pick_tiling(which, blocks, Geometry(), x, w)

    assert pick().path == "tma" and pick() == pick() and len(looked) == 1
    # The length itself decides each time.
    assert (pick().config.tokens, pick(x[:, :300]).config.tokens) == (192, 64)
    assert len(looked) == 1
    assert pick(torch.zeros(380 * 128 + 1).half()[1:].view(1, 380, 128)).path == "pointer"
    assert pick(x[:, :100]).path == "tma" and pick(which="dgrad").path == "tma"
    assert len(looked) == 4
    blocks.update(blocks.block_mask)
    timings.outdate()
    assert pick() == pick() and len(looked) == 5


def test_paths_by_chip_block_dtype_and_alignment(monkeypatch):
    monkeypatch.setattr(launch, "arch", lambda device: 90)
    x, w = torch.zeros(1, 4, 128), torch.zeros(192, 128)

    def paths(x=x, w=w, block=64):
        return {path for path, _ in tuning.tilings("fwd", layout(block), x, w)}

    assert paths() == {"pointer"}  # true float32 knows no tensor cores
    x, w = x.half(), w.half()
    assert paths(x, w) == {"tma", "pointer"}
    assert paths(x, w, 32) == {"pointer"}
    assert paths(x.flatten()[:0].view(0, 4, 128), w) == {"pointer"}
    assert paths(torch.zeros(513).half()[1:].view(1, 4, 128), w) == {"pointer"}
    assert paths(torch.zeros(1, 4, 132).half()[:, :, :128], w) == {"pointer"}
    monkeypatch.setattr(launch, "arch", lambda device: 80)
    assert paths(x, w) == {"pointer"}


def test_tf32_where_torch_allows_it(monkeypatch):
    class Matmul:
        fp32_precision = "ieee"

    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul)
    assert launch.kind(torch.zeros(1)) == "fp32"
    Matmul.fp32_precision = "tf32"
    assert launch.kind(torch.zeros(1)) == "tf32"
    assert launch.kind(torch.zeros(1).half()) == "half"
