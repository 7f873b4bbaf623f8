// SPDX-License-Identifier: Apache-2.0
// Checks each access of a kernel: inside of what the caller handed over, and ordered by a barrier with what other
// threads do there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace shim {

void start_checking_launch();
void start_checking_block();
void pass_barrier();  // called by each thread that comes out of a __syncthreads
void check_host_write(const void* address, size_t bytes);

// Of the scheduler: whether an address is on a fiber's own stack, and the end of a kernel that did something wrong.
bool on_stack(uintptr_t address);
void fail(const std::string& what);

}  // namespace shim
