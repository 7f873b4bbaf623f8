// SPDX-License-Identifier: Apache-2.0
// The extension module, and its CPU kernels.
#include "bindings.h"

#include <cstdint>
#include <string>
#include <tuple>

#include "blocked_rows.h"
#include "cpu/attention.h"
#include "cpu/batch_norm.h"
#include "cpu/conv.h"
#include "cpu/depthwise.h"
#include "cpu/dispatch.h"
#include "cpu/elementwise.h"
#include "cpu/parallel.h"

namespace py = pybind11;

#ifndef SNIPER_CUDA_VERSION
#define SNIPER_CUDA_VERSION ""
#define SNIPER_CUDA_ARCHITECTURES ""
#endif

namespace {

using sniper::as;

// The CPU kernels take small tuples where C++ has structs.
using RowsArg = std::tuple<uintptr_t, int64_t, int64_t>;       // address, batch stride, row stride
using WeightArg = std::tuple<uintptr_t, int64_t>;              // address, row stride
using IndexArg = std::tuple<uintptr_t, uintptr_t, uintptr_t>;  // row pointers, columns, row order
using DropoutArg = std::tuple<uint64_t, uint32_t, float>;      // seed, threshold, scale

template <typename T>
sniper::cpu::Sequences<T> rows(const RowsArg& arg, int64_t length) {
  return {as<T>(std::get<0>(arg)), std::get<1>(arg), std::get<2>(arg), length};
}

sniper::cpu::Index index(const IndexArg& arg) {
  return {as<const int32_t>(std::get<0>(arg)), as<const int32_t>(std::get<1>(arg)),
          as<const int32_t>(std::get<2>(arg))};
}

sniper::cpu::Dropout dropout(const DropoutArg& arg) { return {std::get<0>(arg), std::get<1>(arg), std::get<2>(arg)}; }

// T is float, or uint16_t for bfloat16.
template <typename T>
void bind_cpu_kernels(py::module_ m) {
  namespace cpu = sniper::cpu;
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "forward",
      [](const cpu::Shape& shape, IndexArg layout, RowsArg x, WeightArg w, uintptr_t bias, bool relu, DropoutArg drop,
         RowsArg y, int threads) {
        cpu::forward(cpu::kernels<T>(), shape, index(layout), rows<const T>(x, shape.length_in),
                     as<const T>(std::get<0>(w)), std::get<1>(w), as<const float>(bias), relu, dropout(drop),
                     rows<T>(y, shape.length_out), threads);
      },
      no_gil);
  m.def(
      "input_grad",
      [](const cpu::Shape& shape, IndexArg twin, RowsArg dy, WeightArg w, RowsArg gate, float gate_scale, RowsArg dx,
         int threads) {
        cpu::input_grad(cpu::kernels<T>(), shape, index(twin), rows<const T>(dy, shape.length_out),
                        as<const T>(std::get<0>(w)), std::get<1>(w), rows<const T>(gate, shape.length_in), gate_scale,
                        rows<T>(dx, shape.length_in), threads);
      },
      no_gil);
  m.def(
      "weight_grad",
      [](const cpu::Shape& shape, IndexArg layout, IndexArg twin, RowsArg dy, RowsArg x, uintptr_t dw, uintptr_t db,
         bool add, int threads) {
        cpu::weight_grad(cpu::kernels<T>(), shape, index(layout), index(twin), rows<const T>(dy, shape.length_out),
                         rows<const T>(x, shape.length_in), as<float>(dw), as<float>(db), add, threads);
      },
      no_gil);
  m.def(
      "dropout",
      [](uintptr_t x, uintptr_t y, int64_t rows, int64_t columns, DropoutArg drop, int threads) {
        cpu::dropout(cpu::kernels<T>(), as<const T>(x), as<T>(y), rows, columns, dropout(drop), threads);
      },
      no_gil);
  m.def(
      "relu_backward",
      [](uintptr_t dy, uintptr_t y, uintptr_t dx, int64_t n, float scale, int threads) {
        cpu::relu_backward(cpu::kernels<T>(), as<const T>(dy), as<const T>(y), as<T>(dx), n, scale, threads);
      },
      no_gil);
}

void bind_blocked_rows(py::module_& m) {
  using sniper::BlockedRows;
  const py::call_guard<py::gil_scoped_release> no_gil;
  // Row stride, rows of blocks, blocks in a row, rows of a block, bytes of a block's row.
  using Blocks = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;
  const auto rows_of = [](uintptr_t data, const Blocks& b) {
    return BlockedRows{as<uint8_t>(data), std::get<0>(b), std::get<1>(b),
                       std::get<2>(b),    std::get<3>(b), std::get<4>(b)};
  };
  m.def(
      "pruned_is_nonzero",
      [rows_of](uintptr_t data, const Blocks& blocks, uintptr_t mask, int threads) {
        return sniper::pruned_is_nonzero(rows_of(data, blocks), as<const uint8_t>(mask), threads);
      },
      no_gil);
  m.def(
      "zero_pruned",
      [rows_of](uintptr_t data, const Blocks& blocks, uintptr_t mask, int threads) {
        return sniper::zero_pruned(rows_of(data, blocks), as<const uint8_t>(mask), threads);
      },
      no_gil);
  m.def(
      "pack_active",
      [rows_of](uintptr_t data, const Blocks& blocks, uintptr_t mask, uintptr_t packed, int threads) {
        sniper::pack_active(rows_of(data, blocks), as<const uint8_t>(mask), as<uint8_t>(packed), threads);
      },
      no_gil);
  m.def(
      "unpack_active",
      [rows_of](uintptr_t data, const Blocks& blocks, uintptr_t mask, uintptr_t packed, int threads) {
        sniper::unpack_active(rows_of(data, blocks), as<const uint8_t>(mask), as<const uint8_t>(packed), threads);
      },
      no_gil);
}

void bind_cpu_attention(py::module_& m) {
  namespace cpu = sniper::cpu;
  const py::call_guard<py::gil_scoped_release> no_gil;
  using ShapeArg = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;
  const auto shape_of = [](const ShapeArg& s) {
    const auto [batch, heads, queries, keys, channels] = s;
    return cpu::AttentionShape{batch, heads, queries, keys, channels};
  };
  const auto in = [](const RowsArg& t) {
    return cpu::HeadRows<const float>{as<const float>(std::get<0>(t)), std::get<1>(t), std::get<2>(t)};
  };
  const auto out = [](const RowsArg& t) {
    return cpu::HeadRows<float>{as<float>(std::get<0>(t)), std::get<1>(t), std::get<2>(t)};
  };
  m.def(
      "attention",
      [=](ShapeArg shape, RowsArg q, RowsArg k, RowsArg v, RowsArg position_q, RowsArg p, uintptr_t mask, float scale,
          DropoutArg drop, RowsArg y, uintptr_t normal, int threads) {
        cpu::attention(shape_of(shape), in(q), in(k), in(v), in(position_q), in(p), as<const uint8_t>(mask), scale,
                       dropout(drop), out(y), as<float>(normal), threads);
      },
      no_gil);
  m.def(
      "attention_backward",
      [=](ShapeArg shape, RowsArg q, RowsArg k, RowsArg v, RowsArg position_q, RowsArg p, RowsArg dy, uintptr_t mask,
          float scale, DropoutArg drop, uintptr_t normal, RowsArg dq, RowsArg dk, RowsArg dv, RowsArg dposition_q,
          RowsArg dp, int threads) {
        cpu::attention_backward(shape_of(shape), in(q), in(k), in(v), in(position_q), in(p), in(dy),
                                as<const uint8_t>(mask), scale, dropout(drop), as<const float>(normal), out(dq),
                                out(dk), out(dv), out(dposition_q), out(dp), threads);
      },
      no_gil);
}

void bind_cpu_norm(py::module_& m) {
  namespace cpu = sniper::cpu;
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def(
      "add_norm",
      [](uintptr_t x, uintptr_t branch, uintptr_t weight, uintptr_t bias, uintptr_t s, uintptr_t y, uintptr_t mean,
         uintptr_t rstd, int64_t rows, int64_t columns, float eps, DropoutArg drop, int threads) {
        const cpu::AddNorm a{as<const float>(x),
                             as<const float>(branch),
                             as<const float>(weight),
                             as<const float>(bias),
                             as<float>(s),
                             as<float>(y),
                             as<float>(mean),
                             as<float>(rstd),
                             columns,
                             eps,
                             dropout(drop)};
        cpu::add_norm(a, rows, threads);
      },
      no_gil);
  m.def(
      "add_norm_backward",
      [](uintptr_t dy, uintptr_t ds, uintptr_t s, uintptr_t mean, uintptr_t rstd, uintptr_t weight, uintptr_t dx,
         uintptr_t dbranch, uintptr_t dweight, uintptr_t dbias, int64_t rows, int64_t columns, DropoutArg drop,
         int threads) {
        const cpu::AddNormGrad g{as<const float>(dy),   as<const float>(ds),   as<const float>(s),
                                 as<const float>(mean), as<const float>(rstd), as<const float>(weight),
                                 as<float>(dx),         as<float>(dbranch),    columns,
                                 dropout(drop)};
        cpu::add_norm_backward(g, rows, as<float>(dweight), as<float>(dbias), threads);
      },
      no_gil);
}

void bind_cpu_batch_norm(py::module_& m) {
  namespace cpu = sniper::cpu;
  const py::call_guard<py::gil_scoped_release> no_gil;
  // x, mean, rstd, weight, bias; rows and columns.
  using NormArg = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;
  using SizeArg = std::tuple<int64_t, int64_t>;
  const auto norm_of = [](const NormArg& t, const SizeArg& size, bool tanh, const DropoutArg& drop) {
    const auto [x, mean, rstd, weight, bias] = t;
    return cpu::BatchNorm{as<const float>(x),
                          as<const float>(mean),
                          as<const float>(rstd),
                          as<const float>(weight),
                          as<const float>(bias),
                          std::get<1>(size),
                          tanh,
                          dropout(drop)};
  };
  m.def(
      "batch_moments",
      [](uintptr_t x, SizeArg size, uintptr_t mean, uintptr_t squares, int threads) {
        const auto [rows, columns] = size;
        cpu::batch_moments(as<const float>(x), rows, columns, as<float>(mean), as<float>(squares), threads);
      },
      no_gil);
  m.def(
      "batch_norm",
      [=](NormArg t, SizeArg size, bool tanh, DropoutArg drop, uintptr_t y, int threads) {
        cpu::batch_norm(norm_of(t, size, tanh, drop), std::get<0>(size), as<float>(y), threads);
      },
      no_gil);
  m.def(
      "batch_norm_gradient",
      [=](NormArg t, SizeArg size, bool tanh, DropoutArg drop, uintptr_t dy, uintptr_t dz, uintptr_t dweight,
          uintptr_t dbias, int threads) {
        cpu::batch_norm_gradient(norm_of(t, size, tanh, drop), as<const float>(dy), std::get<0>(size), as<float>(dz),
                                 as<float>(dweight), as<float>(dbias), threads);
      },
      no_gil);
  m.def(
      "batch_norm_input",
      [=](NormArg t, SizeArg size, uintptr_t shares, uintptr_t dz, int threads) {
        cpu::batch_norm_input(norm_of(t, size, false, {}), as<const float>(shares), std::get<0>(size), as<float>(dz),
                              threads);
      },
      no_gil);
}

void bind_cpu_depthwise(py::module_& m) {
  namespace cpu = sniper::cpu;
  const py::call_guard<py::gil_scoped_release> no_gil;
  // Batch, channels, length before and after, taps, padding on the left.
  using ShapeArg = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
  const auto shape_of = [](const ShapeArg& s) {
    const auto [batch, channels, length_in, length_out, taps, pad_left] = s;
    return cpu::DepthwiseShape{batch, channels, length_in, length_out, taps, pad_left};
  };
  m.def(
      "depthwise",
      [=](ShapeArg shape, uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y, int threads) {
        cpu::depthwise(shape_of(shape), as<const float>(x), as<const float>(w), as<const float>(bias), as<float>(y),
                       threads);
      },
      no_gil);
  m.def(
      "depthwise_backward",
      [=](ShapeArg shape, uintptr_t dy, uintptr_t x, uintptr_t w, uintptr_t dx, uintptr_t dw, uintptr_t db,
          int threads) {
        cpu::depthwise_backward(shape_of(shape), as<const float>(dy), as<const float>(x), as<const float>(w),
                                as<float>(dx), as<float>(dw), as<float>(db), threads);
      },
      no_gil);
}

void bind_cpu(py::module_ m) {
  using sniper::cpu::Memory;
  using sniper::cpu::Shape;
  m.def("instruction_set", &sniper::cpu::instruction_set);
  m.def("set_instruction_set", &sniper::cpu::set_instruction_set);
  m.def("has_bfloat16", &sniper::cpu::has_bfloat16);
  m.def("thread_source", &sniper::cpu::thread_source);
  m.def("waits_are_short", &sniper::cpu::waits_are_short);
  m.def("keep_freed_memory", &sniper::cpu::keep_freed_memory);
  m.def("give_back_freed_memory", &sniper::cpu::give_back_freed_memory);
  py::class_<Memory>(m, "Memory", py::buffer_protocol()).def(py::init<int64_t>()).def_buffer([](Memory& memory) {
    return py::buffer_info(memory.data(), memory.bytes());
  });
  m.def("advise_huge_pages",
        [](uintptr_t data, int64_t bytes) { sniper::cpu::advise_huge_pages(as<void>(data), bytes); });
  py::class_<Shape>(m, "Shape")
      .def(py::init([](int64_t batch, int64_t length_in, int64_t length_out, int64_t in, int64_t out, int64_t taps,
                       int64_t dilation, int64_t pad_left, int block) {
        return Shape{batch, length_in, length_out, in, out, taps, dilation, pad_left, block};
      }));
  bind_cpu_attention(m);
  bind_cpu_norm(m);
  bind_cpu_batch_norm(m);
  bind_cpu_depthwise(m);
  bind_cpu_kernels<float>(m.def_submodule("float32"));
  bind_cpu_kernels<uint16_t>(m.def_submodule("bfloat16"));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
#ifdef SNIPER_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  // The toolkit that compiled the CUDA sources and what it compiled them for; empty without them.
  m.attr("cuda_version") = SNIPER_CUDA_VERSION;
  m.attr("cuda_architectures") = SNIPER_CUDA_ARCHITECTURES;
  sniper::bind_masks(m);
  sniper::bind_adam(m);
  sniper::bind_addresses(m);
  bind_blocked_rows(m);
  bind_cpu(m.def_submodule("cpu"));
}
