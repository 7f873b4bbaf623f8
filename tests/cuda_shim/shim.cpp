// SPDX-License-Identifier: Apache-2.0
// The stand-in's scheduler: each thread of a block is a fiber that runs until it waits; which one goes on is drawn.
#include "shim.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checker.h"
#include "cuda_runtime.h"

extern char __start_shim_shared[] __attribute__((visibility("hidden"), weak));
extern char __stop_shim_shared[] __attribute__((visibility("hidden"), weak));

namespace shim {
namespace {

constexpr size_t kStack = 64 << 10;
constexpr int kMostThreads = 1024, kWarp = 32;

enum class State { kReady, kAtBlockBarrier, kAtWarp, kDone };

// A fiber lives on from block to block: makecontext starts it, then jumps without system calls go to and fro.
struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  State state = State::kDone;
  Warp waits_for = Warp::kBallot;
};

Fiber fibers[kMostThreads];
char* stacks = nullptr;
jmp_buf scheduler;
ucontext_t unused;
int current = -1;
dim3 grid_size, block_index;
void (*kernel)(const void*) = nullptr;
const void* arguments = nullptr;
uint64_t lanes[kMostThreads];
std::mt19937 random_order{0};
std::string problem;
cudaError_t last_error = cudaSuccess;
int64_t launch_count = 0;
bool has_image = true;

void to_scheduler(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (_setjmp(fiber.resume) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    kernel(arguments);
    to_scheduler(State::kDone);
  }
}

void resume(int thread) {
  current = thread;
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + kStack * thread;
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    swapcontext(&unused, &fiber.start);
  }
  current = -1;
}

// Lets a warp go on whose 32 lanes all wait for the same; returns whether one did.
bool release_warps(int threads) {
  bool released = false;
  for (int first = 0; first < threads; first += kWarp) {
    Fiber* warp = fibers + first;
    const int lanes_there = std::min(kWarp, threads - first);
    const auto waits = [&](const Fiber& f) { return f.state == State::kAtWarp; };
    const auto waiting = std::count_if(warp, warp + lanes_there, waits);
    if (waiting == 0) continue;
    if (std::any_of(warp, warp + lanes_there, [](const Fiber& f) { return f.state == State::kReady; })) continue;
    const bool same =
        std::all_of(warp, warp + lanes_there, [&](const Fiber& f) { return f.waits_for == warp->waits_for; });
    if (waiting < kWarp || !same) {
      problem = "a warp function that not all 32 lanes call";
      return false;
    }
    for (int lane = 0; lane < kWarp; lane++) warp[lane].state = State::kReady;
    released = true;
  }
  return released;
}

void run_block(int threads) {
  std::memset(__start_shim_shared, 0xa5, __stop_shim_shared - __start_shim_shared);
  std::vector<int> order(threads);
  for (int t = 0; t < threads; t++) {
    order[t] = t;
    fibers[t].state = State::kReady;
  }
  const auto count = [&](State state) {
    return std::count_if(fibers, fibers + threads, [&](const Fiber& f) { return f.state == state; });
  };
  while (problem.empty() && count(State::kDone) < threads) {
    std::shuffle(order.begin(), order.end(), random_order);
    for (int t : order) {
      if (fibers[t].state == State::kReady) resume(t);
      if (!problem.empty()) return;
    }
    if (release_warps(threads) || !problem.empty()) continue;
    const auto waiting = count(State::kAtBlockBarrier);
    if (waiting == threads) {
      for (int t = 0; t < threads; t++) fibers[t].state = State::kReady;
    } else if (waiting > 0) {
      problem = "a barrier that not all threads of the block reach";
    }
  }
}

}  // namespace

int thread() { return current; }
dim3 block() { return block_index; }
dim3 grid() { return grid_size; }

void fail(const std::string& what) {
  if (problem.empty()) problem = what;
  to_scheduler(State::kDone);  // never resumed
}

bool on_stack(uintptr_t address) {
  const auto begin = reinterpret_cast<uintptr_t>(stacks);
  return begin <= address && address < begin + kStack * kMostThreads;
}

void launch(dim3 grid, dim3 block, void (*body)(const void*), const void* data) {
  const bool fits = grid.x - 1 < 2147483647u && grid.y - 1 < 65535u && grid.z - 1 < 65535u;
  const int64_t threads = static_cast<int64_t>(block.x) * block.y * block.z;
  if (!fits || threads < 1 || threads > kMostThreads) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (!stacks) {
    void* memory = mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("shim: no memory for stacks");
    stacks = static_cast<char*>(memory);
  }
  launch_count++;
  grid_size = grid;
  kernel = body;
  arguments = data;
  start_checking_launch();
  for (unsigned z = 0; z < grid.z; z++) {
    for (unsigned y = 0; y < grid.y; y++) {
      for (unsigned x = 0; x < grid.x; x++) {
        block_index = dim3(x, y, z);
        start_checking_block();
        run_block(static_cast<int>(threads));
        if (problem.empty()) continue;
        for (Fiber& fiber : fibers) fiber.started = false;  // some wait in the middle of the kernel
        throw std::runtime_error("shim: " + std::exchange(problem, {}));
      }
    }
  }
}

void wait_for_block() {
  to_scheduler(State::kAtBlockBarrier);
  pass_barrier();
}

void wait_for_block_inside_cub() { to_scheduler(State::kAtBlockBarrier); }

const uint64_t* exchange(Warp what, uint64_t value) {
  // Twice, so that no lane gives its next value before all have read this one.
  const int first = current / kWarp * kWarp;
  static uint64_t seen[kMostThreads][kWarp];
  lanes[current] = value;
  fibers[current].waits_for = what;
  to_scheduler(State::kAtWarp);
  std::memcpy(seen[current], lanes + first, sizeof seen[current]);
  to_scheduler(State::kAtWarp);
  return seen[current];
}

void seed(unsigned value) { random_order.seed(value); }
int64_t launches() { return launch_count; }
void set_has_image(bool has) { has_image = has; }

}  // namespace shim

cudaError_t cudaGetLastError() { return std::exchange(shim::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "an error";
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  shim::check_host_write(address, bytes);
  std::memset(address, value, bytes);
  return cudaSuccess;
}

cudaError_t shim_kernel_image() { return shim::has_image ? cudaSuccess : cudaErrorNoKernelImageForDevice; }
