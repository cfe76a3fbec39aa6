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

// The first pixel of a patch.
__device__ __forceinline__ const unsigned char* corner_of(const Pixels& p, int patch) {
    const int band = patch / p.grid, picture = band / p.grid;
    const long long y = (band - picture * p.grid) * p.patch, x = (patch - band * p.grid) * p.patch;
    return p.data + picture * p.stride + (y * p.grid * p.patch + x) * 3;
}

// Pieces of a window of the patches at `corners`, on their way to shared memory. They follow each other along
// the pixel rows of the picture; this thread takes `first`, first + kThreads, ...
template <int kCount>
struct Pieces {
    unsigned short held[kCount];
    int to[kCount];

    __device__ __forceinline__ void load(const Pixels& p,
                                         const Window& window,
                                         const unsigned char* const* corners,
                                         int patches,
                                         int first) {
        const int run = 3 * window.cols / p.piece, line = patches * run;
        const float per_run = 1.0f / run, per_line = 1.0f / line;
        const int row = 3 * p.grid * p.patch;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const int piece = first + i * kThreads;
            to[i] = -1;
            if (piece >= window.rows * line) continue;
            const int y = quotient(piece, per_line), in_line = piece - y * line;
            const int patch = quotient(in_line, per_run);
            const int byte = (in_line - patch * run) * p.piece;
            const auto* from = corners[patch] + (window.y + y) * row + 3 * window.x + byte;
            held[i] = p.piece == 2 ? *reinterpret_cast<const unsigned short*>(from) : *from;
            to[i] = patch * window.bytes() + y * window.pitch() + byte;
        }
    }

    __device__ __forceinline__ void store(const Pixels& p, unsigned char* pixels) const {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (to[i] < 0) continue;
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
    int byte; // negative: there is none, the value is zero
    float scale, shift;

    __device__ __forceinline__ bf16 value(const unsigned char* window, bool is_there) const {
        return __float2bfloat16_rn(is_there ? fmaf(window[byte], scale, shift) : 0.0f);
    }
};

__device__ __forceinline__ Source source_at(const Pixels& p, int byte, int channel) {
    return {byte, p.scale[channel], p.shift[channel]};
}

} // namespace
