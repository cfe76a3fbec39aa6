// plan.cuh — what the kernels read of a mask; src/ops/attention/plan.rs writes it, and tells what it means.
#pragma once

#include <cuda_bf16.h>

constexpr int kStrip = 16;  // rows of a strip: what an mma takes
constexpr int kOthers = 64; // of an entry, at most
constexpr int kUnit = 8;    // others of a block

// Up to so many rows as a kernel's tile has, from row `first` on, which may be negative; the tile's own are
// begin to end. Nibble i of `order` is the strip of slot i.
struct PlannedTile {
    int first, begin, end;
    unsigned order;
    unsigned entries, count; // the first, in words of the plan, and how many
};

// Others that a tile visits.
struct Entry {
    int start, len;
    unsigned full;      // bit s: all rows of strip s see all 64, no mask
    unsigned blocks[2]; // bit 8 s + u: strip s needs unit u of the others

    __device__ __forceinline__ unsigned units(int strip) const {
        return (strip < 4 ? blocks[0] : blocks[1]) >> strip % 4 * 8 & 0xff;
    }
};

// Which of the three lists of tiles.
enum class List { kForward, kQueryGradient, kKeyGradient };

struct Plan {
    const unsigned* words;

    // Stops the launch where the plan was made for other tensors: nothing in it would be inside these.
    __device__ __forceinline__ void check(int queries, int keys) const {
        if (words[6] != queries || words[7] != keys) __trap();
    }

    __device__ __forceinline__ int tiles(List list) const {
        return words[2 * static_cast<int>(list)];
    }

    __device__ __forceinline__ PlannedTile tile(List list, int i) const {
        const unsigned* tiles = words + words[2 * static_cast<int>(list) + 1];
        const uint4 a = reinterpret_cast<const uint4*>(tiles)[2 * i];
        const uint4 b = reinterpret_cast<const uint4*>(tiles)[2 * i + 1];
        return {(int)a.x, (int)a.y, (int)a.z, a.w, b.x, b.y};
    }

    __device__ __forceinline__ Entry entry(const PlannedTile& tile, int i) const {
        const uint4 e = reinterpret_cast<const uint4*>(words + tile.entries)[i];
        return {(int)e.x, (int)(e.y & 0xff), e.y >> 8, {e.z, e.w}};
    }

    // Keys that a query sees: x to y, and z to w.
    __device__ __forceinline__ uint4 ranges(int query) const {
        return reinterpret_cast<const uint4*>(words + 8)[query];
    }
};

__device__ __forceinline__ bool sees(const uint4& ranges, unsigned key) {
    return key - ranges.x < ranges.y - ranges.x || key - ranges.z < ranges.w - ranges.z;
}

// Heads of a tensor of bf16: head h of row i at data + i * stride + h * head_stride.
struct Heads {
    __nv_bfloat16* data;
    long long stride, head_stride; // elements

    __device__ __forceinline__ __nv_bfloat16* row(long long i, int head) const {
        return data + i * stride + head * head_stride;
    }
};
static_assert(sizeof(Heads) == 24, "as in Rust");
