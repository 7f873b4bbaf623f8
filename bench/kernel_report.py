# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of every Triton kernel that ships, without a GPU.

python bench/kernel_report.py [--archs 80 86 ...] [--jobs N] [--check]

Compiles each (pass, path, dtype, block size, configuration) ahead of time and reads registers,
spills, shared memory, matrix and copy instructions from the machine code. Writes
kernels/reports/resources.csv; with --check only says what differs from it or breaks a rule.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sniper.kernels import configs

REPORT = Path(__file__).parents[1] / "kernels" / "reports" / "resources.csv"
ARCHS = (80, 86, 89, 90, 100, 120)
KINDS = {"bf16": "half", "fp16": "half", "tf32": "tf32", "fp32": "fp32"}
INDICES = ("crow", "col", "order", "row_indices")
# Sizes that are multiples of 16 in every model: channels that divide by a block size.
STRIDES = ("src_stride_b", "src_stride_t", "weight_stride")
STRIDES += ("dy_stride_b", "dy_stride_t", "x_stride_b", "x_stride_t", "columns", "part")
STRIDES += ("q_batch", "k_batch", "v_batch", "dy_batch", "x_batch")


ELEMENTWISE = (
    "dropout",
    "relu_dropout_backward",
    "column_sums",
    "add_positions",
    "add_positions_backward",
)
BATCH_NORM = (
    "batch_norm_parts",
    "batch_norm",
    "batch_norm_gradient_sums",
    "batch_norm_backward",
)
_PREDICTIONS = ("before", "after", "log_durations", "pitch", "energy")
_TARGETS = ("mel", "pitch_target", "energy_target", "mel_sums", "token_sums", "weights")
_COUNTS = ("durations", "mel_lengths", "token_lengths", "totals")
# Channels of a LayerNorm: those of the default model and of small ones, and the most there can be.
NORM_COLUMNS = (256, 384, configs.MOST_NORM_COLUMNS)
# Channels of a head: of one piece, and the default model's, of two.
HEADS = (64, 192)
ATTENTION = {"forward": "attention_forward", "backward": "attention_backward"}
ATTENTION |= {"sums": "attention_sums"}
_FLOATS = ("partial", "sums", "mean", "rstd", "dweight", "dbias")


@dataclass(frozen=True)
class Case:
    """One kernel to compile; `width` and the fields around it are `configs.Config`'s, of attention
    queries and keys.

    Where there are no blocks, `block` is a LayerNorm's columns, a head's channels, or 64.
    """

    pass_: str
    path: str
    arch: int
    dtype: str
    block: int
    tokens: int
    width: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Row(Case):
    """What became of a case: bytes, registers per thread, instructions in the machine code."""

    registers: int
    spills: int
    shared_bytes: int
    mma: str
    mma_count: int
    copies: str
    copy_count: int
    triton: str


def all_cases(archs: tuple[int, ...] = ARCHS) -> Iterator[Case]:
    """Everything that ships."""
    for arch in archs:
        paths = ("tma", "pointer") if configs.has_tma(arch) else ("pointer",)
        for pass_ in ("fwd", "dgrad", "wgrad"):
            table = configs.WGRAD if pass_ == "wgrad" else configs.PRODUCT
            op = "wgrad" if pass_ == "wgrad" else "product"
            for dtype, kind in KINDS.items():
                for path in paths:
                    for block in configs.BLOCK_SIZES:
                        if (path, block, kind) in table:
                            for config in configs.candidates(op, path, block, kind, arch):
                                yield Case(pass_, path, arch, dtype, block, *config)
        for dtype in ("bf16", "fp16", "fp32"):
            for pass_ in ELEMENTWISE:
                yield Case(pass_, "pointer", arch, dtype, 64, 32, 64, 4, 3)
            for columns in NORM_COLUMNS:
                for pass_, config in (
                    ("add_norm", configs.norm(columns)),
                    ("add_norm_backward", configs.norm_backward(columns)),
                ):
                    yield Case(pass_, "pointer", arch, dtype, columns, *config)
            for block in configs.BLOCK_SIZES:
                for pass_ in ("wgrad_reduce", "add_blocks"):
                    yield Case(pass_, "pointer", arch, dtype, block, 16, block, 4, 3)
        for block in configs.BLOCK_SIZES:
            yield Case("wgrad_add", "pointer", arch, "fp32", block, 16, block, 4, 3)
        for pass_ in ("sum_squares", "clear_gradients", "adam_update"):
            yield Case(pass_, "pointer", arch, "fp32", 64, configs.ADAM_TILE, 1, 4, 3)
        for dtype in ("bf16", "fp16", "fp32"):
            for pass_ in BATCH_NORM:
                yield Case(pass_, "pointer", arch, dtype, 64, 32, 64, 4, 3)
            for pass_ in ("loss_parts", "loss_backward"):
                yield Case(pass_, "pointer", arch, dtype, 64, configs.LOSS_TILE, 1, 4, 3)
            yield Case("repeat_tokens", "pointer", arch, dtype, 64, *configs.REPEAT)
            backward = configs.REPEAT_BACKWARD
            yield Case("repeat_tokens_backward", "pointer", arch, dtype, 64, *backward)
        yield Case("loss_terms", "pointer", arch, "fp32", 64, *configs.LOSS_TERMS)
        for dtype in ("bf16", "fp16"):
            for op, channels in itertools.product(ATTENTION, HEADS):
                tile = configs.attention(op, channels, arch)[:4]
                path = "tma" if configs.has_tma(arch) else "pointer"
                yield Case(ATTENTION[op], path, arch, dtype, channels, *tile)
        yield Case("key_order", "pointer", arch, "fp32", 64, 1, configs.KEY_ORDER_TILE, 4, 3)
        yield Case("batch_norm_statistics", "pointer", arch, "fp32", 64, *configs.NORM_SUMS)
        yield Case("norm_sums", "pointer", arch, "fp32", 64, *configs.NORM_SUMS)


def compile_case(case: Case) -> Row:
    """Compiles for the case's chip and reads the machine code."""
    return _compiled(case, *_kernel(case))


def _compiled(case: Case, function: Any, constants: dict[str, Any], types: dict[str, str]) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {name: c for name, c in constants.items() if name in function.arg_names}
    signature, attributes = {}, {}
    for i, name in enumerate(function.arg_names):
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        aligned = signature[name].startswith("*") or name in STRIDES or name.endswith("_row")
        if name not in constants and aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": case.warps, "num_stages": case.stages, **configs.OPTIONS}
    if case.pass_ in ATTENTION.values():
        options["maxnreg"] = _attention_tile(case).registers
    kernel = triton.compile(source, target=GPUTarget("cuda", case.arch, 32), options=options)
    usage, code = _disassemble(kernel.asm["cubin"])
    found = {n: re.search(rf"{n}:(\d+)", usage) for n in _USAGE}
    registers, stack, local = (int(m[1]) if m else 0 for m in found.values())
    mma, mma_count = _most_frequent(code, r"\b(HGMMA|UTC\w*MMA|HMMA|FFMA2?)\b")
    mixed = mma == "HGMMA" and re.search(r"\bHMMA\b", code)
    shape = re.search(r"wgmma\.mma_async\.sync\.aligned\.(m\d+n\d+k\d+)", kernel.asm["ptx"])
    copies, copy_count = _most_frequent(code, r"\b(UTMALDG|LDGSTS)\b")
    return Row(
        **asdict(case),
        registers=registers,
        spills=stack + local + len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared_bytes=kernel.metadata.shared,
        mma=(f"{mma} {shape[1]}" if shape else mma) + (" and HMMA" if mixed else ""),
        mma_count=mma_count,
        copies=copies,
        copy_count=copy_count,
        triton=triton.__version__,
    )


@dataclass(frozen=True)
class Failed:
    """A case that does not compile, and why."""

    case: Case
    error: str


def compile_all(cases: Iterable[Case], jobs: int = 1) -> Iterator[Row | Failed]:
    """`compile_case` for each, in their order, in `jobs` processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(_compile_or_not, cases, chunksize=4)


def _compile_or_not(case: Case) -> Row | Failed:
    try:
        return compile_case(case)
    except Exception as error:  # whatever a compiler raises
        return Failed(case, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def check_archs(archs: Iterable[int]) -> tuple[int, ...]:
    """Refuses chips that nothing is known of.

    Raises:
        ValueError: names those that are known.
    """
    unknown = [a for a in archs if a not in configs.SHARED_MEMORY]
    if unknown:
        known = ", ".join(map(str, sorted(configs.SHARED_MEMORY)))
        raise ValueError(
            f"arch: expected some of {known}, got {unknown[0]}; "
            "add its shared memory to kernels/configs.py"
        )
    return tuple(archs)


_USAGE = ("REG", "STACK", "LOCAL")


def _kernel(case: Case) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Function, compile-time arguments, types of the others."""
    from sniper.kernels import (
        adam,
        attention,
        attention_backward,
        batch_norm,
        elementwise,
        loss,
        norm,
        product,
        regulator,
        wgrad,
    )

    b, bt, width = case.block, case.tokens, case.width
    dtype = "fp32" if case.dtype == "tf32" else case.dtype
    names = ("src", "weight", "out", "bias", "gate", "dy", "x", "y", "dz", "dw")
    types = dict.fromkeys(names, f"*{dtype}")
    types |= dict.fromkeys(INDICES, "*i32") | {"scale": "fp32", "seed": "*i64"}
    types |= dict.fromkeys(_FLOATS, "*fp32")
    if case.pass_ in ("fwd", "dgrad", "wgrad"):
        constants = {"B": b, "BT": bt, "PRECISION": "ieee" if case.dtype == "fp32" else "tf32"}
    if case.pass_ in ("fwd", "dgrad"):
        transposed = case.pass_ == "dgrad"
        constants |= {"BK": width, "GROUP": configs.GROUP}
        constants |= {"TRANSPOSED": transposed, "RELU": not transposed}
        # As behind a layer that hands over the gradient of its ReLU and dropout.
        constants |= {"bias": None, "seed": None} if transposed else {"gate": None}
        if case.path == "tma":
            tile = f"{width},{b}" if transposed else f"{b},{width}"
            tokens, rest = configs.powers_of_two(bt)
            constants |= {"BT": tokens, "BT_REST": rest} | ({} if rest else {"src_rest": None})
            types["src"] = f"tensordesc<{dtype}[1,{tokens},{width}]>"
            types["src_rest"] = f"tensordesc<{dtype}[1,{rest},{width}]>"
            types["weight"] = f"tensordesc<{dtype}[{tile}]>"
        return getattr(product, f"product_{case.path}"), constants, types
    if case.pass_ == "wgrad":
        if case.path == "tma":
            types["dy"] = types["x"] = f"tensordesc<{dtype}[1,{bt},{b}]>"
        # Where the bias's sum is a kernel of its own, see `TritonBackend.sums_along`.
        apart = case.dtype == "tf32" or (case.arch == 90 and b < 64)
        constants |= {"G": width} | ({"sums": None} if apart else {})
        return getattr(wgrad, f"wgrad_{case.path}"), constants, types
    if case.pass_ in ("wgrad_reduce", "wgrad_add"):
        types["db"] = "*fp32"
        return wgrad.wgrad_reduce, {"B": b, "BN": bt, "ADD": case.pass_ == "wgrad_add"}, types
    if case.pass_ == "add_blocks":
        return wgrad.add_blocks, {"B": b, "BN": bt}, types | {"into": "*fp32"}
    if case.pass_ in ("sum_squares", "clear_gradients", "adam_update"):
        types |= {"owners": "*i32", "counts": "*i32", "offsets": "*i64", "table": "*i64"}
        types |= {"rates": "*fp64", "learning_rates": "*fp64", "scale": "*fp32"}
        constants = {"TILE": bt, "FIELDS": adam.FIELDS}
        if case.pass_ == "adam_update":
            constants |= {"RATES": adam.RATES, "CLEAR": False}
        return getattr(adam, case.pass_), constants, types
    if case.pass_ == "key_order":
        types |= {"mask": "*u8", "order": "*i32", "counts": "*i32"}
        return attention.key_order, {"BN": width}, types
    if case.pass_ in ATTENTION.values():
        module = attention if case.pass_ == "attention_forward" else attention_backward
        return getattr(module, case.pass_), *_attention_arguments(case)
    if case.pass_.startswith("loss"):
        types = dict.fromkeys((*_PREDICTIONS, *(f"d{p}" for p in _PREDICTIONS)), f"*{dtype}")
        types |= dict.fromkeys(_COUNTS, "*i64")
        types |= dict.fromkeys((*_TARGETS, "terms", "total", "dtotal"), "*fp32")
        constants = {"EMPTY": False}
        if case.pass_ == "loss_terms":
            constants |= {"AFTER": True, "MASKING": "entries", "BM": bt, "BN": width}
        else:
            constants |= {"TILE": bt, "MASKED": True}
        if case.pass_ == "loss_parts":
            constants["CHUNK"] = configs.LOSS_CHUNK
        return getattr(loss, case.pass_), constants, types
    if case.pass_.startswith("repeat"):
        types |= {"durations": "*i64", "dx": f"*{dtype}"}
        constants = {"BM": bt, "BN": width, "BL": configs.REPEAT_TOKENS}
        return getattr(regulator, case.pass_), constants, types
    if case.pass_.startswith("batch_norm"):
        types |= dict.fromkeys(("weight", "bias", "dweight", "dbias"), "*fp32")
        types |= {"dx": f"*{dtype}", "tracked": "*i64", "eps": "fp32", "momentum": "fp32"}
        types |= dict.fromkeys(("parts", "running_mean", "running_var"), "*fp32")
        constants = {"BM": bt, "BN": width}
        if case.pass_ not in ("batch_norm_parts", "batch_norm_statistics"):
            constants["TANH"] = True
        return getattr(batch_norm, case.pass_), constants, types
    if "norm" in case.pass_:
        # As under autocast: the residual and the parameters stay float32.
        types |= dict.fromkeys(("x", "s", "ds", "dx", "weight", "bias"), "*fp32")
        types |= {"branch": f"*{dtype}", "dbranch": f"*{dtype}", "eps": "fp32"}
        constants = {"BM": bt, "BN": width}
        if case.pass_ != "norm_sums":
            constants["RELU"] = False
        return getattr(norm, case.pass_), constants, types
    if case.pass_.startswith("add_positions"):
        # As under autocast: whatever is added to is float32.
        types |= dict.fromkeys(("x", "encoding", "alpha", "y", "dy", "parts"), "*fp32")
        types |= {"x": f"*{dtype}", "dx": f"*{dtype}", "factor": "fp32"}
    constants = {"BM": bt, "BN": width} | ({"RELU": True} if case.pass_ == "dropout" else {})
    return getattr(elementwise, case.pass_), constants, types


def _attention_tile(case: Case) -> configs.AttentionTile:
    op = next(op for op, name in ATTENTION.items() if name == case.pass_)
    return configs.attention(op, case.block, case.arch)


def _attention_arguments(case: Case) -> tuple[dict[str, Any], dict[str, str]]:
    """Compile-time arguments and types of a kernel of attention, with hidden keys and dropout."""
    dtype, bm, bn = case.dtype, case.tokens, case.width
    pieces, tma = configs.powers_of_two(case.block), case.path == "tma"
    types = dict.fromkeys(("q", "k", "v", "y", "dy", "dq", "parts", "x", "out"), f"*{dtype}")
    types |= {"lse": "*fp32", "order": "*i32", "counts": "*i32", "seed": "*i64"}
    types |= dict.fromkeys(("keep_scale", "scale", "scale2", "factor"), "fp32")
    constants: dict[str, Any] = {"BM": bm, "BN": bn, "D": case.block, "TMA": tma}
    constants |= dict(zip(("D0", "D1"), pieces, strict=True))
    if case.pass_ != "attention_sums":
        constants["TN"] = _attention_tile(case).tail
    descriptors = {"parts_tile": [2, bm, bn], "p_0": [1, bm, bn]}
    for name, number in itertools.product(("q", "k", "v", "y", "dy", "dq", "x"), (0, 1)):
        rows = bn if name in ("k", "v") else bm
        descriptors[f"{name}_{number}"] = [1, rows, pieces[number]]
    for name, tile in descriptors.items():
        if tma and 0 not in tile:
            types[name] = f"tensordesc<{dtype}{str(tile).replace(' ', '')}>"
        else:
            constants[name] = None
    return constants, types


def _disassemble(cubin: bytes) -> tuple[str, str]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = ([tool, flag, file.name] for flag in ("--dump-resource-usage", "--dump-sass"))
        outputs = [subprocess.run(c, capture_output=True, text=True, check=True) for c in commands]
    return outputs[0].stdout, outputs[1].stdout


def _most_frequent(code: str, pattern: str) -> tuple[str, int]:
    """Preference in the order of the pattern's alternatives: the first that occurs."""
    found = re.findall(pattern, code)
    order = ("HGMMA", "UTC", "HMMA", "FFMA", "UTMALDG", "LDGSTS")
    if not found:
        return "none", 0
    best = min(found, key=lambda name: next(i for i, o in enumerate(order) if name.startswith(o)))
    return best, found.count(best)


def broken_rules(row: Row) -> list[str]:
    """What a shipped configuration must not do."""
    rules = []
    if row.spills:
        rules.append("registers spill")
    if row.shared_bytes > configs.shared_memory(row.arch):
        rules.append(f"takes {row.shared_bytes} bytes of shared memory")
    if " and " in row.mma:
        # Triton counts on one kind: buffers of the other are overwritten while they are read.
        rules.append(f"multiplies by {row.mma}")
    if row.pass_ not in ("fwd", "dgrad", "wgrad"):
        return rules
    # Only these have tensor cores of their own; the others multiply as an sm_80 does.
    wanted = {90: ("HGMMA",), 100: ("UTC", "HMMA"), 103: ("UTC", "HMMA")}.get(row.arch, ("HMMA",))
    if row.arch == 90 and row.block < 64:
        wanted = ("HGMMA", "HMMA")
    if row.dtype == "fp32":
        wanted = ("FFMA",)
    if not row.mma.startswith(wanted):
        rules.append(f"multiplies by {row.mma}, not {' or '.join(wanted)}")
    if row.copies != ("UTMALDG" if row.path == "tma" else "LDGSTS"):
        rules.append(f"copies by {row.copies}")
    return rules


def read_report() -> dict[Case, Row]:
    """The committed rows."""
    names = [f.name for f in fields(Case)]
    with REPORT.open(newline="") as file:
        rows = [_typed(line) for line in csv.DictReader(file)]
    return {Case(**{n: getattr(row, n) for n in names}): row for row in rows}


def _typed(line: dict[str, str]) -> Row:
    typed: dict[str, Any] = {
        f.name: int(line[f.name]) if f.type == "int" else line[f.name] for f in fields(Row)
    }
    return Row(**typed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS)
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    try:
        archs = check_archs(args.archs)
    except ValueError as error:
        parser.error(str(error))
    known = read_report() if REPORT.exists() else {}
    rows, faults = [], 0
    for row in compile_all(all_cases(archs), args.jobs):
        if isinstance(row, Failed):
            raise SystemExit(f"{row.case}: {row.error}")
        case = Case(**{f.name: getattr(row, f.name) for f in fields(Case)})
        rows.append(row)
        rules = broken_rules(row)
        if args.check and known.get(case) != row:
            rules.append(f"differs from the report: {known.get(case)}")
        faults += bool(rules)
        print(*asdict(row).values(), *rules, flush=True)
    print(f"{len(rows)} kernels, {faults} with faults")
    if not args.check:
        rows += [row for case, row in known.items() if case.arch not in args.archs]
        REPORT.parent.mkdir(exist_ok=True)
        with REPORT.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in sorted(rows, key=lambda r: (r.arch,)))
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
