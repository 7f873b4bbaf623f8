// SPDX-License-Identifier: Apache-2.0
// Adam's one visit of all parameters, for Python.
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "blocked_rows.h"
#include "cpu/adam.h"
#include "cpu/parallel.h"

namespace sniper {
namespace {

// Addresses of weight, both moments, the largest second moment (0: none) and the number of steps.
using TensorsArg = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;
// Numbers, mask (0: none), rows and columns of blocks, edge of a block.
using ExtentArg = std::tuple<int64_t, uintptr_t, int64_t, int64_t, int64_t>;
// Both betas, eps, weight decay.
using RatesArg = std::tuple<double, double, double, double>;
// Whether the decay is decoupled, whether to maximise, and whether a gradient that is cleared stays allocated: whoever
// drops it afterwards needs no zeros there.
using KindArg = std::tuple<bool, bool, bool>;
using RowArg = std::tuple<TensorsArg, ExtentArg, RatesArg, KindArg>;

// Parameters as they stay from step to step; gradients and learning rates are told at each.
class AdamTable {
 public:
  explicit AdamTable(const std::vector<RowArg>& rows) {
    for (const auto& [tensors, extent, rates, kind] : rows) {
      const auto [w, m, v, largest, steps] = tensors;
      const auto [size, mask, block_rows, block_cols, block] = extent;
      const auto [beta1, beta2, eps, weight_decay] = rates;
      cpu::AdamStep how{};
      how.mean = static_cast<float>(1 - beta1);
      how.beta2 = static_cast<float>(beta2);
      how.square = static_cast<float>(1 - beta2);
      how.eps = static_cast<float>(eps);
      how.amsgrad = largest != 0;
      how.decays = weight_decay != 0;
      bool stays;
      std::tie(how.decoupled, how.maximize, stays) = kind;
      parameters_.push_back({{as<float>(w), nullptr, as<float>(m), as<float>(v), as<float>(largest)},
                             how,
                             size,
                             as<const uint8_t>(mask),
                             block_rows,
                             block_cols,
                             block});
      others_.push_back({as<float>(steps), beta1, beta2, weight_decay, stays});
    }
  }

  double sum_squares(std::string_view gradients, int threads) {
    take(gradients);
    return cpu::sum_squares(parameters_, threads);
  }

  void update(std::string_view gradients, const std::vector<double>& learning_rates, float scale, bool clear,
              int threads) {
    take(gradients);
    for (size_t i = 0; i < parameters_.size(); i++) {
      const auto& [steps, beta1, beta2, weight_decay, stays] = others_[i];
      const double lr = learning_rates[i], step = *steps += 1;
      cpu::AdamStep& how = parameters_[i].step;
      how.decay = static_cast<float>(how.decoupled ? 1 - lr * weight_decay : weight_decay);
      how.root = static_cast<float>(std::sqrt(1 - std::pow(beta2, step)));
      how.size = static_cast<float>(-(lr / (1 - std::pow(beta1, step))));
      how.scale = scale;
      how.gradient = clear && stays           ? cpu::Gradient::kCleared
                     : clear || scale == 1.0f ? cpu::Gradient::kLeft
                                              : cpu::Gradient::kScaled;
    }
    cpu::adam(parameters_, threads);
  }

  // Of each parameter, whether row number `turn` of some pruned block holds anything but zeros.
  std::vector<bool> pruned_is_nonzero(int64_t turn, int threads) const {
    std::vector<uint8_t> found(parameters_.size());
    cpu::parallel_for(threads, parameters_.size(), [&](int64_t i, int) {
      const cpu::Parameter& p = parameters_[i];
      if (!p.mask) return;
      // A block of one row, as far from the next one as a whole block is high.
      const int64_t bytes = sizeof(float) * p.block, stride = p.block_cols * bytes;
      uint8_t* row = reinterpret_cast<uint8_t*>(p.tensors.w) + turn % p.block * stride;
      found[i] = sniper::pruned_is_nonzero({row, stride * p.block, p.block_rows, p.block_cols, 1, bytes}, p.mask, 1);
    });
    return {found.begin(), found.end()};
  }

 private:
  struct Others {
    float* steps;
    double beta1, beta2, weight_decay;
    bool stays;
  };

  // As `addresses` gives them. A gradient may have gone since the parameters were looked at.
  void take(std::string_view gradients) {
    if (gradients.size() != parameters_.size() * sizeof(int64_t)) {
      throw std::invalid_argument("gradients: expected " + std::to_string(parameters_.size()) + " addresses, got " +
                                  std::to_string(gradients.size()) + " bytes");
    }
    for (size_t i = 0; i < parameters_.size(); i++) {
      cpu::Parameter& p = parameters_[i];
      int64_t place;
      std::memcpy(&place, gradients.data() + i * sizeof place, sizeof place);
      p.tensors.g = as<float>(place);
      if (!p.tensors.g && p.size > 0) {
        throw std::invalid_argument("gradients: expected one of each parameter, got none of number " +
                                    std::to_string(i) + "; they must stay from clip to step");
      }
    }
  }

  std::vector<cpu::Parameter> parameters_;
  std::vector<Others> others_;
};

}  // namespace

void bind_adam(pybind11::module_& m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> no_gil;
  pybind11::class_<AdamTable>(m, "AdamTable")
      .def(pybind11::init<const std::vector<RowArg>&>())
      .def("sum_squares", &AdamTable::sum_squares, no_gil)
      .def("update", &AdamTable::update, no_gil)
      .def("pruned_is_nonzero", &AdamTable::pruned_is_nonzero, no_gil);
}

}  // namespace sniper
