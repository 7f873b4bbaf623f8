// SPDX-License-Identifier: Apache-2.0
#include "cpu/parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <chrono>
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

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook{50};     // how often the caller's interruptions are counted
constexpr int64_t kOften = 3;                      // so many since the last look: somebody else wants the core
constexpr std::chrono::milliseconds kLease{1000};  // how long waits stay short after that

// libgomp's threads spin for milliseconds before they sleep. On a core that others want too, a thread that waits so
// burns the time of the thread that it waits for, and a step takes several times as long. libgomp spins briefly while
// a process has more OpenMP threads than there are cores, so that is how it is told: a team that only sleeps.
class ShortWaits {
 public:
  bool active() const { return active_.load(std::memory_order_relaxed); }

  void extend(int threads, OpenMpParallel parallel) {
    until_.store((Clock::now() + kLease).time_since_epoch().count(), std::memory_order_relaxed);
    if (active_.exchange(true)) return;
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    const unsigned team = static_cast<unsigned>(std::max(cores - threads, 0) + 2);
    try {
      // No lock and nothing to join: after a fork the child just keeps short waits.
      std::thread(&ShortWaits::park, this, team, parallel).detach();
    } catch (const std::system_error&) {
      active_.store(false);  // no thread to be had: waits stay as they are
    }
  }

 private:
  void park(unsigned team, OpenMpParallel parallel) {
#ifdef __linux__
    pthread_setname_np(pthread_self(), "sniper-waits");  // the team inherits it
#endif
    parallel([](void*) {}, nullptr, team, 0);
    for (;;) {
      const auto left = Clock::time_point(Clock::duration(until_.load(std::memory_order_relaxed))) - Clock::now();
      if (left <= Clock::duration::zero()) break;
      std::this_thread::sleep_for(left);
    }
    active_.store(false);  // the team ends with this thread
  }

  std::atomic<bool> active_{false};
  std::atomic<Clock::rep> until_{0};
};

ShortWaits& short_waits() {
  static auto* waits = new ShortWaits;  // never destroyed: its thread may outlive everything
  return *waits;
}

// Counts, every now and then, how often the system took the core from the calling thread.
void watch_company(int threads, OpenMpParallel parallel) {
#ifdef RUSAGE_THREAD
  thread_local Clock::time_point looked;
  thread_local int64_t before = -1;
  const auto now = Clock::now();
  if (before >= 0 && now - looked < kLook) return;
  rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage)) return;
  if (before >= 0 && now - looked < 4 * kLook && usage.ru_nivcsw - before >= kOften)
    short_waits().extend(threads, parallel);
  before = usage.ru_nivcsw;
  looked = now;
#else
  static_cast<void>(threads), static_cast<void>(parallel);
#endif
}

}  // namespace

bool waits_are_short() { return short_waits().active(); }

const char* thread_source() { return openmp() ? "openmp" : "std"; }

void run_on_threads(int threads, void (*body)(void*), void* data) {
  if (auto parallel = openmp()) {
    watch_company(threads, parallel);
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

void give_back_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace sniper::cpu
