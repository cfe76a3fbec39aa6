// reduce.cuh — sums over a warp and over a block, in a fixed order: the same bytes every time.
#pragma once

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Every lane gets the sum over the warp; all lanes must call.
__device__ __forceinline__ float warp_sum(float x) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        x += __shfl_xor_sync(kAllLanes, x, lanes);
    }
    return x;
}

// Every thread gets the sum over a block of kThreads; all threads must call. `partial` holds a
// float per warp and may be used again at once: the first barrier follows all reads of the call
// before.
template <int kThreads>
__device__ __forceinline__ float block_sum(float x, float* partial) {
    constexpr int kWarps = kThreads / kWarp;
    x = warp_sum(x);
    __syncthreads(); // reads of an earlier call before the writes of this one
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
    __syncthreads(); // partial sums of all warps before their reads
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) {
        sum += partial[warp];
    }
    return sum;
}
