// SPDX-License-Identifier: Apache-2.0
#include "cpu/parallel.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <system_error>
#include <thread>
#include <vector>

namespace sniper::cpu {
namespace {

// What a compiler emits for `#pragma omp parallel`. torch loads its OpenMP runtime into the global scope before this
// module; asking for it by name shares torch's pool, where linking a second runtime would start a second pool.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

OpenMpParallel openmp() {
  static const auto found = reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

}  // namespace

const char* thread_source() { return openmp() ? "openmp" : "std"; }

void run_on_threads(int threads, void (*body)(void*), void* data) {
  if (auto parallel = openmp()) {
    parallel(body, data, static_cast<unsigned>(threads), 0);
    return;
  }
  // Threads of this call only: nothing to shut down, and nothing that a fork could leave half alive.
  std::vector<std::thread> others;
  try {
    for (int i = 1; i < threads; i++) others.emplace_back(body, data);
  } catch (const std::system_error&) {
    // The machine gives no more threads: those that run share the tasks.
  }
  body(data);
  for (auto& other : others) other.join();
}

void advise_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(data), static_cast<void>(bytes);
#endif
}

bool keep_freed_memory() {
#ifdef __GLIBC__
  constexpr int kMost = 32 << 20;  // of what may come from the heap; glibc refuses more
  constexpr int kNever = -1;
  return mallopt(M_MMAP_THRESHOLD, kMost) && mallopt(M_TRIM_THRESHOLD, kNever) && mallopt(M_TOP_PAD, 64 << 20);
#else
  return false;
#endif
}

}  // namespace sniper::cpu
