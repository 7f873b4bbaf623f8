// SPDX-License-Identifier: Apache-2.0
// The only file that knows Python. Pointers arrive as integers; shapes, dtypes and devices were checked by the caller.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "cpu/conv.h"
#include "cpu/dispatch.h"
#include "cpu/elementwise.h"
#include "cpu/parallel.h"
#include "mask_bits.h"

namespace py = pybind11;

namespace {

template <typename T>
T* as(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_mask_bits(py::module_& m) {
  m.def(
      "pack_bits",
      [](uintptr_t values, int64_t n, uintptr_t bits) {
        sniper::pack_bits(as<const uint8_t>(values), n, as<uint8_t>(bits));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "unpack_bits",
      [](uintptr_t bits, int64_t n, uintptr_t values) {
        sniper::unpack_bits(as<const uint8_t>(bits), n, as<uint8_t>(values));
      },
      py::call_guard<py::gil_scoped_release>());
#ifdef SNIPER_WITH_CUDA
  m.def("pack_bits_cuda", [](uintptr_t values, int64_t n, uintptr_t bits, uintptr_t stream) {
    sniper::pack_bits_cuda(as<const uint8_t>(values), n, as<uint8_t>(bits), as<void>(stream));
  });
  m.def("unpack_bits_cuda", [](uintptr_t bits, int64_t n, uintptr_t values, uintptr_t stream) {
    sniper::unpack_bits_cuda(as<const uint8_t>(bits), n, as<uint8_t>(values), as<void>(stream));
  });
#endif
}

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
  return {as<const int32_t>(std::get<0>(arg)), as<const int32_t>(std::get<1>(arg)), as<const int32_t>(std::get<2>(arg))};
}

sniper::cpu::Dropout dropout(const DropoutArg& arg) { return {std::get<0>(arg), std::get<1>(arg), std::get<2>(arg)}; }

void bind_cpu_products(py::module_& m) {
  using sniper::cpu::Shape;
  py::class_<Shape>(m, "Shape")
      .def(py::init([](int64_t batch, int64_t length_in, int64_t length_out, int64_t in, int64_t out, int64_t taps,
                       int64_t dilation, int64_t pad_left, int block) {
        return Shape{batch, length_in, length_out, in, out, taps, dilation, pad_left, block};
      }));
  m.def(
      "forward",
      [](const Shape& shape, IndexArg layout, RowsArg x, WeightArg w, uintptr_t bias, bool relu, DropoutArg drop,
         RowsArg y, int threads) {
        sniper::cpu::forward(sniper::cpu::float_kernels(), shape, index(layout), rows<const float>(x, shape.length_in),
                             as<const float>(std::get<0>(w)), std::get<1>(w), as<const float>(bias), relu,
                             dropout(drop), rows<float>(y, shape.length_out), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "input_grad",
      [](const Shape& shape, IndexArg twin, RowsArg dy, WeightArg w, RowsArg dx, int threads) {
        sniper::cpu::input_grad(sniper::cpu::float_kernels(), shape, index(twin),
                                rows<const float>(dy, shape.length_out), as<const float>(std::get<0>(w)),
                                std::get<1>(w), rows<float>(dx, shape.length_in), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "weight_grad",
      [](const Shape& shape, IndexArg layout, IndexArg twin, RowsArg dy, RowsArg x, uintptr_t dw, uintptr_t db,
         int threads) {
        sniper::cpu::weight_grad(sniper::cpu::float_kernels(), shape, index(layout), index(twin),
                                 rows<const float>(dy, shape.length_out), rows<const float>(x, shape.length_in),
                                 as<float>(dw), as<float>(db), threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_cpu(py::module_ m) {
  m.def("instruction_set", &sniper::cpu::instruction_set);
  m.def("set_instruction_set", &sniper::cpu::set_instruction_set);
  m.def("thread_source", &sniper::cpu::thread_source);
  bind_cpu_products(m);
  m.def(
      "dropout",
      [](uintptr_t x, uintptr_t y, int64_t rows, int64_t columns, DropoutArg drop, int threads) {
        sniper::cpu::dropout(sniper::cpu::float_kernels(), as<const float>(x), as<float>(y), rows, columns,
                             dropout(drop), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "relu_backward",
      [](uintptr_t dy, uintptr_t y, uintptr_t dx, int64_t n, float scale, int threads) {
        sniper::cpu::relu_backward(sniper::cpu::float_kernels(), as<const float>(dy), as<const float>(y),
                                   as<float>(dx), n, scale, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
#ifdef SNIPER_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  bind_mask_bits(m);
  bind_cpu(m.def_submodule("cpu"));
}
