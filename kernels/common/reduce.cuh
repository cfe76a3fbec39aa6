// reduce.cuh — sums over a warp and over a block, in a fixed order: the same bytes every time; the largest
// of a warp.
#pragma once

#include "pack.cuh"

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Every lane gets the sum over the warp; all lanes must call. Lane 0 adds by halves: lane i and
// lane i + 16, then 8, 4, 2, 1.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        x += __shfl_xor_sync(kAllLanes, x, lanes);
    }
    return x;
}

// Every lane gets the largest over the warp, NaN passed over; all lanes must call.
__device__ __forceinline__ float warp_max(float x) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
    }
    return x;
}

// Every thread gets the sum over the warps of a block of kThreads, in their order, of what lane 0 of
// each brings; all threads must call. `partial` holds a T per warp, and serves one call.
template <int kThreads, typename T>
__device__ __forceinline__ T sum_of_warps(T x, T* partial) {
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
    __syncthreads(); // sums of all warps before their reads
    T sum = 0;
    for (int warp = 0; warp < kThreads / kWarp; ++warp) {
        sum += partial[warp];
    }
    return sum;
}

// Every thread gets the sum over a block of kThreads; `partial` as in sum_of_warps.
template <int kThreads, typename T>
__device__ __forceinline__ T block_sum(T x, T* partial) {
    return sum_of_warps<kThreads>(warp_sum(x), partial);
}

// Every thread gets, in `x`, the kCount sums over a block of whole warps; all threads must call.
// `partial` holds a pack per warp, and each warp adds them by halves: a loop over them would take
// more instructions than a row of Qwen-VL. One barrier: two calls that follow each other take two of them in
// turn, so that the second's barrier lies between the reads of the first and the writes of a third.
template <int kCount>
__device__ __forceinline__ void block_sums(float (&x)[kCount], Pack<float, kCount>* partial) {
    Pack<float, kCount> sums;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        sums.at[i] = warp_sum(x[i]);
    }
    const int lane = threadIdx.x % kWarp;
    if (lane == 0) partial[threadIdx.x / kWarp] = sums;
    __syncthreads(); // sums of all warps before their reads
    sums = lane < blockDim.x / kWarp ? partial[lane] : Pack<float, kCount>{};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        x[i] = warp_sum(sums.at[i]);
    }
}
