// SPDX-License-Identifier: Apache-2.0
// A stand-in for those parts of CUDA that csrc/cuda uses, on the CPU: every thread of a block is a fiber, blocks run
// one after the other, and every access to memory is checked (shim.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
// Threads of a block share it. One section for all of it, so that each block can start from rubbish.
#define __shared__ static __attribute__((section("shim_shared")))
// Not checked: the stand-in's own bookkeeping.
#define SHIM_UNCHECKED __attribute__((no_sanitize("thread")))

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorNoKernelImageForDevice = 209;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint4 {
  unsigned x, y, z, w;
};
struct cudaFuncAttributes {};

namespace shim {

enum class Warp { kBallot, kShuffle };

int thread();  // within its block
dim3 block();
dim3 grid();
// Runs body(data) once for each thread of each block. Throws std::runtime_error for what a GPU would not survive, or
// would let pass silently: races, accesses outside of what the caller handed over, barriers that not all threads reach.
void launch(dim3 grid, dim3 block, void (*body)(const void*), const void* data);
void wait_for_block();
// The same for those barriers inside cub that its documentation does not promise: what only they order is a race.
void wait_for_block_inside_cub();
// Cub's memory must not be used twice without a barrier between; `used` has a place for each thread.
void use_storage(uint64_t* used);
// All 32 lanes give a value and see those of the others, valid until the next call.
const uint64_t* exchange(Warp what, uint64_t value);
void check_atomic(const void* address, int size);

struct Coordinate {
  operator unsigned() const { return static_cast<unsigned>(thread()); }
};
struct ThreadIdx {
  Coordinate x;
};

// kernel<<<grid, block, bytes, stream>>>(arguments) is translated to Launch(grid, block, bytes, stream)(kernel,
// arguments).
class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t = 0, cudaStream_t = nullptr) : grid_(grid), block_(block) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), Arguments... arguments) const {
    const auto bound = [=]() SHIM_UNCHECKED { kernel(arguments...); };
    launch(grid_, block_, call<decltype(bound)>, &bound);
  }

 private:
  template <typename Bound>
  SHIM_UNCHECKED static void call(const void* data) {
    (*static_cast<const Bound*>(data))();
  }

  dim3 grid_, block_;
};

}  // namespace shim

inline shim::ThreadIdx threadIdx;
#define blockIdx (shim::block())
#define gridDim (shim::grid())

inline void __syncthreads() { shim::wait_for_block(); }

SHIM_UNCHECKED inline unsigned __ballot_sync(unsigned, bool predicate) {
  const uint64_t* lanes = shim::exchange(shim::Warp::kBallot, predicate);
  unsigned result = 0;
  for (int lane = 0; lane < 32; lane++) result |= static_cast<unsigned>(lanes[lane]) << lane;
  return result;
}

template <typename T>
SHIM_UNCHECKED T __shfl_down_sync(unsigned, T value, int distance) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* lanes = shim::exchange(shim::Warp::kShuffle, bits);
  const int lane = shim::thread() % 32;
  if (lane + distance < 32) std::memcpy(&value, &lanes[lane + distance], sizeof(T));
  return value;
}

template <typename T>
SHIM_UNCHECKED T atomicAdd(T* address, std::common_type_t<T> value) {
  shim::check_atomic(address, sizeof(T));
  const T before = *address;
  *address = before + value;
  return before;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }

template <typename To, typename From>
SHIM_UNCHECKED To bit_cast(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float value) { return bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return bit_cast<float>(value); }
// Built with -ffp-contract=off, so that nothing is fused.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
using std::fabs;

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream);
cudaError_t shim_kernel_image();

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return shim_kernel_image();
}
