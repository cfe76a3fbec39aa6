// columns.cuh — a thread takes the same pack of columns of row after row: blocks as wide as a row, and
// the sums of columns that their threads come by.
#pragma once

#include "pack.cuh"
#include "reduce.cuh"

// Columns of a row that the threads of a block hold between them, a pack each: the width of Qwen-VL.
constexpr int kHeldColumns = 4096;
template <typename T>
constexpr int kMaxThreads = kHeldColumns / kPack<T>;
// Blocks that a multiprocessor must have registers for, where no sums of columns take them.
template <typename T>
constexpr int kMinBlocks = 1024 / kMaxThreads<T>;

// Rows that a block takes one after the other, at most.
constexpr int kMaxChunk = 64;

// Where a chunk of rows ends that starts at row `first`; the last chunk may be shorter.
__device__ __forceinline__ int chunk_end(int first, int chunk, int rows) {
    return first + min(chunk, rows - first);
}

// Writes the sums that the lanes of a warp hold of their packs of T, side by side, to the n columns
// at `row`; all lanes must call. A pack of bf16 is 32 bytes of sums, so lanes change their halves
// first: a store of the warp is 512 bytes in one piece.
template <typename T>
__device__ __forceinline__ void store_columns(float* row, const float (&sum)[kPack<T>], int n) {
    constexpr int kPacks = kPack<T> / kPack<float>;
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
        const int at = k * kWarp + lane;
        Pack<float> pack;
#pragma unroll
        for (int i = 0; i < kPack<float>; ++i) {
            pack.at[i] = __shfl_sync(kAllLanes, sum[i], at / kPacks);
#pragma unroll
            for (int part = 1; part < kPacks; ++part) {
                const float x = __shfl_sync(kAllLanes, sum[part * kPack<float> + i], at / kPacks);
                if (part == at % kPacks) pack.at[i] = x;
            }
        }
        // Counted in packs: of `row + at * 4` nvcc makes four stores.
        if (at * kPack<float> < n) reinterpret_cast<Pack<float>*>(row)[at] = pack;
    }
}
