// SPDX-License-Identifier: Apache-2.0
// Runs tasks on torch's own threads, without linking torch or an OpenMP runtime.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace sniper::cpu {

// Calls body(data) once on each of at most `threads` threads and returns when all have finished. body must not throw.
void run_on_threads(int threads, void (*body)(void*), void* data);

// Where run_on_threads gets its threads: "openmp" (the runtime that torch loaded) or "std".
const char* thread_source();

// Whether threads that wait sleep at once, since others were seen to want the cores. Results do not depend on it.
bool waits_are_short();

// Calls task(i, slot) for every i in [0, count), handed out in ascending order. Each thread has a slot of its own in
// [0, threads), for scratch memory that the caller allocated: tasks must not throw.
template <typename Task>
void parallel_for(int threads, int64_t count, const Task& task) {
  if (threads > count) threads = static_cast<int>(count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; i++) task(i, 0);
    return;
  }
  struct Shared {
    const Task& task;
    const int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<int> slot{0};
  } shared{task, count};
  run_on_threads(
      threads,
      [](void* data) {
        auto& s = *static_cast<Shared*>(data);
        const int slot = s.slot.fetch_add(1, std::memory_order_relaxed);
        for (int64_t i; (i = s.next.fetch_add(1, std::memory_order_relaxed)) < s.count;) s.task(i, slot);
      },
      &shared);
}

// Asks the system for large pages where [data, data + bytes) spans some: memory that comes fresh from the system then
// costs one page fault per 2 MiB, not 512. Does nothing where there are none.
void advise_huge_pages(void* data, int64_t bytes);

// Has malloc keep what is freed, so that the next step's tensors find it mapped; returns whether it could be told. What
// the process holds then never shrinks.
bool keep_freed_memory();

// Gives the system what malloc holds without use, if it can be told.
void give_back_freed_memory();

// Memory for one tensor, on its own cache lines, which it leaves as a gap that the next tensor of this size fits.
// aligned_alloc does not: it asks for more than it keeps, and once something small has taken the rest, the gap is too
// narrow for the same request.
class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(bytes), data_(std::malloc(static_cast<size_t>(bytes) + kLine)) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  int64_t bytes() const { return bytes_; }
  uint8_t* data() const {
    const uintptr_t end = reinterpret_cast<uintptr_t>(data_) + kLine - 1;
    return reinterpret_cast<uint8_t*>(end / kLine * kLine);
  }

 private:
  static constexpr uintptr_t kLine = 64;
  int64_t bytes_;
  void* data_;
};

// Memory that a thread keeps between calls: it grows to the largest request and is freed when the thread ends.
class Scratch {
 public:
  // Uninitialised, aligned to a cache line, valid until the next get on this object.
  template <typename T>
  T* get(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(::operator new(bytes, kAlign)));
      size_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(char* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t size_ = 0;
};

}  // namespace sniper::cpu
