// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace sniper::cpu {
namespace {

struct Variant {
  const char* name;
  bool supported;
  const Kernels<float>* kernels;
};

// The widest first.
const Variant* variants() {
#ifdef SNIPER_X86
  static const Variant all[] = {{"avx512",
                                 __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"),
                                 &kAvx512F32},
                                {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), &kAvx2F32},
                                {"portable", true, &kPortableF32},
                                {nullptr, false, nullptr}};
#else
  static const Variant all[] = {{"portable", true, &kPortableF32}, {nullptr, false, nullptr}};
#endif
  return all;
}

const Variant& find(const std::string& wanted) {
  std::string have;
  for (const Variant* v = variants(); v->name; v++) {
    if (!v->supported) continue;
    if (wanted.empty() || wanted == v->name) return *v;
    have += (have.empty() ? "" : ", ") + std::string(v->name);
  }
  throw std::invalid_argument("SNIPER_CPU: expected one that this CPU and build have (" + have + "), got '" + wanted +
                              "'");
}

std::atomic<const Variant*> current{nullptr};

const Variant& chosen() {
  const Variant* variant = current.load();
  if (!variant) {
    const char* wanted = std::getenv("SNIPER_CPU");
    variant = &find(wanted ? wanted : "");
    current.store(variant);
  }
  return *variant;
}

}  // namespace

std::string instruction_set() { return chosen().name; }

void set_instruction_set(const std::string& name) { current.store(&find(name)); }

bool has_bfloat16() {
#ifdef SNIPER_X86
  return chosen().kernels == &kAvx512F32 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

template <>
const Kernels<float>& kernels() {
  return *chosen().kernels;
}

template <>
const Kernels<uint16_t>& kernels() {
#ifdef SNIPER_X86
  if (has_bfloat16()) return kAvx512Bf16;
#endif
  throw std::invalid_argument("bfloat16: expected a CPU with AVX512_BF16, got " + instruction_set());
}

}  // namespace sniper::cpu
