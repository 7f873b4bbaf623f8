// SPDX-License-Identifier: Apache-2.0
// The compiler puts a call before each access of the CUDA sources, as for its thread sanitizer (-fsanitize=thread);
// here are the functions that it calls. Two threads race if they touch one byte, one of them writes, not both
// atomically, and no barrier of their block lies between; threads of different blocks have none.
#include "checker.h"

#include <link.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "shim.h"

namespace shim {
namespace {

using Range = std::pair<uintptr_t, uintptr_t>;  // begin, end

constexpr int kManyThreads = -1;
constexpr size_t kPageBytes = 4096, kMostPages = 4096;

// Who touched a byte last. Blocks are numbered from launch to launch.
struct Access {
  uint32_t block = 0;  // 0: nobody
  uint32_t barriers = 0;
  int16_t thread = 0;
  bool atomic = false, many_blocks = false;
};

struct Cell {
  Access write, read;
};

struct Page {
  Cell cells[kPageBytes];
};

enum class Kind { kRead, kWrite, kAtomic };

std::vector<Range> allowed;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uint32_t block_number = 0, first_block = 0;
uint32_t barriers[1024];

// Where this module's own data lies: shared memory, tables of constants.
Range own_data() {
  Range found{0, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        Range span{UINTPTR_MAX, 0};
        for (int i = 0; i < info->dlpi_phnum; i++) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_LOAD) continue;
          span.first = std::min<uintptr_t>(span.first, info->dlpi_addr + segment.p_vaddr);
          span.second = std::max<uintptr_t>(span.second, info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
        }
        const auto here = reinterpret_cast<uintptr_t>(&allowed);
        if (here < span.first || span.second <= here) return 0;
        *static_cast<Range*>(data) = span;
        return 1;
      },
      &found);
  return found;
}

bool is_own(uintptr_t begin, uintptr_t end) {
  static const Range own = own_data();
  return own.first <= begin && end <= own.second;
}

bool is_allowed(uintptr_t begin, uintptr_t end) {
  return std::any_of(allowed.begin(), allowed.end(),
                     [&](const Range& range) { return range.first <= begin && end <= range.second; });
}

Cell& cell(uintptr_t address) {
  static uintptr_t last_number = 0;
  static Page* last = nullptr;
  const uintptr_t number = address / kPageBytes;
  if (!last || number != last_number || pages.empty()) {
    auto& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    last = page.get();
    last_number = number;
  }
  return last->cells[address % kPageBytes];
}

// Whether what was done before in this launch is not ordered with what this thread does now. Memory of the module
// itself is shared memory, of which each block has its own.
bool races(const Access& before, bool shared) {
  if (before.block < (shared ? block_number : first_block)) return false;
  if (before.block != block_number || before.many_blocks) return true;
  return before.barriers == barriers[thread()] && before.thread != thread();
}

void note(Access& access, bool atomic, bool shared) {
  const bool launched = !shared && access.block >= first_block, same_block = access.block == block_number;
  const bool together = same_block && access.barriers == barriers[thread()];
  access.many_blocks = launched && (access.many_blocks || !same_block);
  access.thread = static_cast<int16_t>(together && access.thread != thread() ? kManyThreads : thread());
  access.atomic = atomic;
  access.block = block_number;
  access.barriers = barriers[thread()];
}

void check(const void* pointer, size_t size, Kind kind) {
  if (thread() < 0) return;  // host code
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (on_stack(address)) return;
  const bool shared = is_own(address, address + size);
  if (!shared && !is_allowed(address, address + size)) {
    const char* what = kind == Kind::kRead ? "a read" : "a write";
    return fail(std::string(what) + " outside of the memory that the kernel was given");
  }
  for (size_t i = 0; i < size; i++) {
    Cell& here = cell(address + i);
    const bool atomic = kind == Kind::kAtomic;
    if (races(here.write, shared) && !(atomic && here.write.atomic)) return fail("a race: another thread wrote there");
    if (kind != Kind::kRead && races(here.read, shared) && !(atomic && here.read.atomic)) {
      return fail("a race: another thread reads there");
    }
    if (kind == Kind::kRead) {
      note(here.read, false, shared);
    } else {
      note(here.write, atomic, shared);
    }
  }
}

}  // namespace

void allow(uintptr_t address, int64_t bytes) { allowed.emplace_back(address, address + bytes); }

void forget() {
  allowed.clear();
  if (pages.size() > kMostPages) pages.clear();
}

void start_checking_launch() { first_block = block_number + 1; }

void start_checking_block() {
  block_number++;
  std::fill(std::begin(barriers), std::end(barriers), 0);
}

void pass_barrier() { barriers[thread()]++; }

void check_host_write(const void* address, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (!is_allowed(begin, begin + bytes)) throw std::runtime_error("shim: cudaMemset outside of the given memory");
}

void check_atomic(const void* address, int size) { check(address, size, Kind::kAtomic); }

void use_storage(uint64_t* used) {
  const uint64_t now = static_cast<uint64_t>(block_number) << 32 | barriers[thread()];
  if (used[thread()] == now) return fail("cub's memory used twice without a barrier between");
  used[thread()] = now;
}

}  // namespace shim

#define SHIM_ACCESS(size)                                                                            \
  void __tsan_read##size(void* address) { shim::check(address, size, shim::Kind::kRead); }           \
  void __tsan_write##size(void* address) { shim::check(address, size, shim::Kind::kWrite); }         \
  void __tsan_unaligned_read##size(void* address) { shim::check(address, size, shim::Kind::kRead); } \
  void __tsan_unaligned_write##size(void* address) { shim::check(address, size, shim::Kind::kWrite); }

extern "C" {
SHIM_ACCESS(1)
SHIM_ACCESS(2)
SHIM_ACCESS(4)
SHIM_ACCESS(8)
SHIM_ACCESS(16)
void __tsan_read_range(void* address, size_t size) { shim::check(address, size, shim::Kind::kRead); }
void __tsan_write_range(void* address, size_t size) { shim::check(address, size, shim::Kind::kWrite); }
void __ubsan_handle_out_of_bounds(void*, void*) { shim::fail("an index outside of an array"); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
