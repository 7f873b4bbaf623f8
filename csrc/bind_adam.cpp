// SPDX-License-Identifier: Apache-2.0
// Adam's one visit of all parameters, for Python.
#include <pybind11/stl.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "cpu/adam.h"

namespace sniper {
namespace {

// Addresses of weight, gradient, both moments and the largest second moment (0: none).
using TensorsArg = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;
// Numbers, mask (0: none), rows and columns of blocks, edge of a block.
using ExtentArg = std::tuple<int64_t, uintptr_t, int64_t, int64_t, int64_t>;
// Learning rate, both betas, eps, weight decay, steps done with this one.
using RatesArg = std::tuple<double, double, double, double, double, double>;
// Whether the decay is decoupled, and whether to maximise.
using KindArg = std::tuple<bool, bool>;
using TableArg = std::vector<std::tuple<TensorsArg, ExtentArg, RatesArg, KindArg>>;

std::vector<cpu::Parameter> table(const TableArg& rows, float scale, bool clear) {
  std::vector<cpu::Parameter> parameters;
  parameters.reserve(rows.size());
  for (const auto& [tensors, extent, rates, kind] : rows) {
    const auto [w, g, m, v, largest] = tensors;
    const auto [size, mask, block_rows, block_cols, block] = extent;
    const auto [lr, beta1, beta2, eps, weight_decay, step] = rates;
    const bool decoupled = std::get<0>(kind), maximize = std::get<1>(kind);
    cpu::AdamStep how{};
    how.mean = static_cast<float>(1 - beta1);
    how.decay = static_cast<float>(decoupled ? 1 - lr * weight_decay : weight_decay);
    how.beta2 = static_cast<float>(beta2);
    how.square = static_cast<float>(1 - beta2);
    how.root = static_cast<float>(std::sqrt(1 - std::pow(beta2, step)));
    how.eps = static_cast<float>(eps);
    how.size = static_cast<float>(-(lr / (1 - std::pow(beta1, step))));
    how.scale = scale;
    how.clear = clear;
    how.amsgrad = largest != 0;
    how.decays = weight_decay != 0;
    how.decoupled = decoupled;
    how.maximize = maximize;
    parameters.push_back({{as<float>(w), as<float>(g), as<float>(m), as<float>(v), as<float>(largest)},
                          how,
                          size,
                          as<const uint8_t>(mask),
                          block_rows,
                          block_cols,
                          block});
  }
  return parameters;
}

}  // namespace

void bind_adam(pybind11::module_& m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> no_gil;
  m.def(
      "sum_squares", [](const TableArg& rows, int threads) { return cpu::sum_squares(table(rows, 1, false), threads); },
      no_gil);
  m.def(
      "adam",
      [](const TableArg& rows, float scale, bool clear, int threads) { cpu::adam(table(rows, scale, clear), threads); },
      no_gil);
}

}  // namespace sniper
