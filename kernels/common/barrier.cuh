// barrier.cuh — barriers of fewer threads than a block has.
#pragma once

// Of kThreads threads, whole warps, that call it with the same `id`, 1 to 15 (0 is that of __syncthreads): what
// each wrote before it is visible to the others behind it.
template <int kThreads>
__device__ __forceinline__ void sync_some(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}
