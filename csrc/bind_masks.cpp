// SPDX-License-Identifier: Apache-2.0
// The functions about masks, for Python.
#include <pybind11/stl.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "bindings.h"
#include "mask_bits.h"
#include "mask_rebuild.h"
#include "mask_stages.h"

namespace py = pybind11;

namespace sniper {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;

// Python has small tuples where C++ has structs.
using StridedArg = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;  // address, strides of row, channel, tap
using BlocksArg = std::tuple<int64_t, int64_t, int64_t, int64_t>;     // out_blocks, taps, in_blocks, block
using ScoresArg = std::tuple<uintptr_t, uintptr_t, int64_t>;          // values, offsets, layers
using FixedArg = std::tuple<uintptr_t, int64_t, double, bool>;        // pruned, count, cap, nested
using FollowingArg = std::tuple<uintptr_t, uintptr_t, int64_t>;       // pruned, caps, count
using TableArg = std::tuple<uintptr_t, int64_t, int64_t>;             // address, layers, bytes of a layer

StridedWeight strided(const StridedArg& arg) {
  return {as<const float>(std::get<0>(arg)), std::get<1>(arg), std::get<2>(arg), std::get<3>(arg)};
}

BlockShape blocks(const BlocksArg& arg) {
  return {std::get<0>(arg), std::get<1>(arg), std::get<2>(arg), std::get<3>(arg)};
}

Scores scores(const ScoresArg& arg) {
  return {as<const float>(std::get<0>(arg)), as<const int64_t>(std::get<1>(arg)), std::get<2>(arg)};
}

FixedStages fixed(const FixedArg& arg) {
  return {as<const int64_t>(std::get<0>(arg)), std::get<1>(arg), std::get<2>(arg), std::get<3>(arg)};
}

FollowingStages following(const FollowingArg& arg) {
  return {as<const int64_t>(std::get<0>(arg)), as<const int64_t>(std::get<1>(arg)), std::get<2>(arg)};
}

const LayerUpdate* table(const TableArg& arg) {
  if (std::get<2>(arg) != sizeof(LayerUpdate)) {
    throw std::invalid_argument("update_layers: expected " + std::to_string(sizeof(LayerUpdate)) +
                                " bytes for each layer, got " + std::to_string(std::get<2>(arg)));
  }
  return as<const LayerUpdate>(std::get<0>(arg));
}

// Name, offset, and whether it is an address, for each field of LayerUpdate.
std::vector<std::tuple<std::string, size_t, bool>> layer_update_fields() {
#define SNIPER_DESCRIBE_FIELD(type, name)                                       \
  static_assert(sizeof(type) == 8, "Python writes every field as eight bytes"); \
  fields.emplace_back(#name, offsetof(LayerUpdate, name), std::is_pointer_v<type>);
  std::vector<std::tuple<std::string, size_t, bool>> fields;
  SNIPER_LAYER_UPDATE_FIELDS(SNIPER_DESCRIBE_FIELD)
#undef SNIPER_DESCRIBE_FIELD
  return fields;
}

void bind_bits(py::module_& m) {
  m.def(
      "pack_bits",
      [](uintptr_t values, int64_t n, uintptr_t bits, int) {
        pack_bits(as<const uint8_t>(values), n, as<uint8_t>(bits));
      },
      NoGil());
  m.def(
      "unpack_bits",
      [](uintptr_t bits, int64_t n, uintptr_t values, int) {
        unpack_bits(as<const uint8_t>(bits), n, as<uint8_t>(values));
      },
      NoGil());
}

void bind_cpu_masks(py::module_& m) {
  m.attr("layer_update_bytes") = sizeof(LayerUpdate);
  m.def("layer_update_fields", &layer_update_fields);
  m.def(
      "pool_saliency",
      [](StridedArg w, StridedArg g, BlocksArg shape, uintptr_t out, int threads) {
        pool_saliency(strided(w), strided(g), blocks(shape), as<float>(out), threads);
      },
      NoGil());
  m.def(
      "select_smallest",
      [](uintptr_t values, int64_t n, int64_t k, int threads) {
        float found;
        select_smallest(as<const float>(values), n, &k, 1, &found, threads);
        return found;
      },
      NoGil());
  m.def(
      "fixed_masks",
      [](ScoresArg values, FixedArg stages, uintptr_t masks, uintptr_t counts, int threads) {
        return fixed_masks(scores(values), fixed(stages), as<uint8_t>(masks), as<int64_t>(counts), threads);
      },
      NoGil());
  m.def(
      "following_masks",
      [](ScoresArg values, FollowingArg stages, uintptr_t masks, uintptr_t counts, int threads) {
        return following_masks(scores(values), following(stages), as<uint8_t>(masks), as<int64_t>(counts), threads);
      },
      NoGil());
  m.def(
      "fixed_choice", [](int64_t n, int64_t pruned, uintptr_t keep) { fixed_choice(n, pruned, as<uint8_t>(keep)); },
      NoGil());
  m.def(
      "update_layers", [](TableArg layers, int threads) { update_layers(table(layers), std::get<1>(layers), threads); },
      NoGil());
}

#ifdef SNIPER_WITH_CUDA
void bind_cuda_masks(py::module_& m) {
  m.def("cuda_usable", &cuda_usable);
  m.def("pack_bits_cuda", [](uintptr_t values, int64_t n, uintptr_t bits, uintptr_t stream) {
    pack_bits_cuda(as<const uint8_t>(values), n, as<uint8_t>(bits), as<void>(stream));
  });
  m.def("unpack_bits_cuda", [](uintptr_t bits, int64_t n, uintptr_t values, uintptr_t stream) {
    unpack_bits_cuda(as<const uint8_t>(bits), n, as<uint8_t>(values), as<void>(stream));
  });
  m.def("pool_saliency_cuda", [](StridedArg w, StridedArg g, BlocksArg shape, uintptr_t out, uintptr_t stream) {
    pool_saliency_cuda(strided(w), strided(g), blocks(shape), as<float>(out), as<void>(stream));
  });
  m.def("fixed_workspace", &fixed_workspace);
  m.def("following_workspace", &following_workspace);
  m.def("fixed_masks_cuda",
        [](ScoresArg values, int64_t n, int64_t longest, FixedArg stages, uintptr_t own, uintptr_t choices,
           uintptr_t masks, uintptr_t counts, uintptr_t suspects, uintptr_t workspace, uintptr_t stream) {
          fixed_masks_cuda(scores(values), n, longest, fixed(stages), as<const int64_t>(own),
                           as<const uint8_t>(choices), as<uint8_t>(masks), as<int64_t>(counts), as<int64_t>(suspects),
                           as<void>(workspace), as<void>(stream));
        });
  m.def("following_masks_cuda", [](ScoresArg values, int64_t n, int64_t longest, FollowingArg stages, uintptr_t masks,
                                   uintptr_t counts, uintptr_t suspects, uintptr_t workspace, uintptr_t stream) {
    following_masks_cuda(scores(values), n, longest, following(stages), as<uint8_t>(masks), as<int64_t>(counts),
                         as<int64_t>(suspects), as<void>(workspace), as<void>(stream));
  });
  m.def("update_layers_cuda", [](TableArg layers, int64_t blocks, uintptr_t positions, uintptr_t stream) {
    update_layers_cuda(table(layers), std::get<1>(layers), blocks, as<int32_t>(positions), as<void>(stream));
  });
}
#endif

}  // namespace

void bind_masks(py::module_& m) {
  bind_bits(m);
  bind_cpu_masks(m);
#ifdef SNIPER_WITH_CUDA
  bind_cuda_masks(m);
#endif
}

}  // namespace sniper
