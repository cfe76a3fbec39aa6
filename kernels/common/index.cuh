// index.cuh — rows read through an index, and an index turned round. Indices lie in the memory of
// the GPU, so the host cannot check them: a row beyond the last reads as NaN, and what would be
// written there is passed over.
#pragma once

#include "pack.cuh"

constexpr float kNaN = __builtin_nanf("");

// Row `row` of x, [rows, …], from column `col` on; NaN where there is none.
template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount>
load_row(const T* x, long long stride, int rows, unsigned row, int col) {
    if (row < (unsigned)rows) return load_pack<T, kCount>(x + row * stride + col);
    Pack<T, kCount> pack;
    for (T& x : pack.at) {
        x = from_float<T>(kNaN);
    }
    return pack;
}

// For some rows the sources that go there, as src/ops/rows/inverse.rs lays them out:
// rows [room] | starts [room + 1] | sources [room], of which segment s has starts[s] to
// starts[s + 1]. A segment may be empty, its end before its begin; none ends beyond the room.
struct Inverse {
    const unsigned* data;
    long long room;
};

struct Segment {
    unsigned row;
    const unsigned* begin; // of its sources
    const unsigned* end;
};

__device__ __forceinline__ Segment load_segment(const Inverse& inverse, long long s) {
    const long long room = inverse.room;
    const unsigned* sources = inverse.data + 2 * room + 1;
    const long long begin = inverse.data[room + s], end = inverse.data[room + s + 1];
    return {inverse.data[s], sources + begin, sources + min(end, room)};
}

// sum += Σ x[source] over the sources of `segment`, one after another, from column `col` on.
template <int kCount, typename T>
__device__ __forceinline__ void add_sources(Pack<float, kCount>& sum,
                                            const Segment& segment,
                                            const T* x,
                                            long long stride,
                                            int rows,
                                            int col) {
#pragma unroll 4
    for (const unsigned* source = segment.begin; source < segment.end; ++source) {
        add_pack(sum, load_row<kCount>(x, stride, rows, *source, col));
    }
}
