// pixels.cuh — bytes of pictures on their way to the patches of a block: into shared memory, then normalised.
#pragma once

#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

using bf16 = __nv_bfloat16;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Patches at a time: of a block of forward, of a step of backward.
constexpr int kPatches = 32;
// Rows of an mma, and its depth.
constexpr int kSide = 16;

// u8 pictures, and how they become patches.
struct Pixels {
    const unsigned char* data;
    long long stride;         // bytes between pictures
    float scale[3], shift[3]; // of each channel
    int patches;              // of all pictures
    int grid;                 // patches along a side of a picture
    int patch;                // pixels along a side of a patch
    int piece;                // bytes, 1 or 2, that every load is a multiple of
};

// Of a patch, `rows` of its pixel rows from y on, and `cols` pixels of each from x on.
struct Window {
    int y, x, rows, cols;

    // Bytes of a pixel row in shared memory: from the last byte of one to the first of the next of the same
    // channel are 4 or more, so that lanes along the pixels of a channel, or along bytes, meet no
    // bank twice.
    __device__ __forceinline__ int pitch() const { return (3 * cols + 4) / 4 * 4; }
    __device__ __forceinline__ int bytes() const { return rows * pitch(); }
};

// n / d of small numbers, with inverse = 1 / d.
__device__ __forceinline__ int quotient(int n, float inverse) {
    return static_cast<int>((n + 0.5f) * inverse);
}

// The first pixel of a patch; a warp finds those of a block at once.
static_assert(kPatches == kWarp, "a lane each");
__device__ __forceinline__ const unsigned char* corner_of(const Pixels& p, int patch) {
    const int band = patch / p.grid, picture = band / p.grid;
    const long long y = (band - picture * p.grid) * p.patch, x = (patch - band * p.grid) * p.patch;
    return p.data + picture * p.stride + (y * p.grid * p.patch + x) * 3;
}

// Pieces of a window of kPatches patches, on their way to shared memory. They follow each other along the pixel
// rows of the picture; this thread takes number `first`, first + kThreads, ...
template <int kCount>
struct Pieces {
    int patch[kCount]; // beyond kPatches where there is no piece
    int from[kCount];  // bytes from the corner of the patch
    int to[kCount];    // bytes in shared memory
    unsigned short held[kCount];

    __device__ __forceinline__ Pieces(const Pixels& p, const Window& window, int first) {
        const int run = 3 * window.cols / p.piece, line = kPatches * run;
        const float per_run = 1.0f / run, per_line = 1.0f / line;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const int piece = first + i * kThreads;
            const int y = quotient(piece, per_line), in_line = piece - y * line;
            const int at = quotient(in_line, per_run), byte = (in_line - at * run) * p.piece;
            patch[i] = y < window.rows ? at : kPatches;
            from[i] = ((window.y + y) * p.grid * p.patch + window.x) * 3 + byte;
            to[i] = at * window.bytes() + y * window.pitch() + byte;
        }
    }

    // Those of the first `patches`, which start at `corners`.
    __device__ __forceinline__ void
    load(const Pixels& p, const unsigned char* const* corners, int patches) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (patch[i] >= patches) continue;
            const auto* at = corners[patch[i]] + from[i];
            held[i] = p.piece == 2 ? *reinterpret_cast<const unsigned short*>(at) : *at;
        }
    }

    __device__ __forceinline__ void
    store(const Pixels& p, unsigned char* pixels, int patches) const {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (patch[i] >= patches) continue;
            if (p.piece == 2) {
                *reinterpret_cast<unsigned short*>(pixels + to[i]) = held[i];
            } else {
                pixels[to[i]] = static_cast<unsigned char>(held[i]);
            }
        }
    }
};

// Where a value comes from: a byte of a window, and what normalises it.
struct Source {
    bool is_there; // else the value is zero
    int byte;
    float scale, shift;

    __device__ __forceinline__ Source(const Pixels& p, bool is_there, int byte, int channel)
        : is_there(is_there), byte(byte), scale(p.scale[channel]), shift(p.shift[channel]) {}

    __device__ __forceinline__ bf16 value(const unsigned char* window, bool has_patch) const {
        const bool reads = is_there && has_patch;
        return __float2bfloat16_rn(reads ? fmaf(window[byte], scale, shift) : 0.0f);
    }
};

} // namespace
