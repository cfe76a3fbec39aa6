// pair.cuh — the products of attention's backward: two strips of 16 own rows, worked on by a pair of warps. Each warp
// computes the scores of every other unit of 8 of the others, so that both have as much to do where strips
// need the first or the last units only, and multiplies what comes of them by the same rows of the others.
// Own rows are queries, or keys (kKeys); the others are the other.
#pragma once

#include "../common/reduce.cuh"
#include "../common/tile.cuh"
#include "plan.cuh"

// Units of an entry that one warp of a pair computes.
constexpr int kUnits = kOthers / kUnit / 2;

// What an mma gives of two strips by the units of a warp.
using Scores = float[2][kUnits][4];
// The same rounded: pairs of neighbours among the others. The two of a unit are what an mma takes of 16 rows by 8.
using Rounded = unsigned[2][kUnits][2];
// What an mma gives of two strips by the columns of a head.
template <int kDim>
using Sums = float[2][kDim / kUnit][4];

// A warp's strips, and which of the units are its own: half, half + 2, half + 4, half + 6.
struct Share {
    int pair, half, lane;
    int strips[2];
};

// x += own · othersᵀ; masked, of the units of each strip that are needed.
template <int kDim, bool kMasked>
__device__ __forceinline__ void
multiply(Scores& x, unsigned own, unsigned others, const Share& share, const unsigned (&units)[2]) {
    using Rows = Tile<kDim>;
    constexpr int kChunks = Rows::kChunks;
    const int lane = share.lane;
    unsigned strips[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
        strips[s] =
            own + kStrip * share.strips[s] * Rows::kRowBytes + Rows::at(lane % 16, lane / 16);
    }
    const int row = kUnit * (share.half + lane / 16 * 2) + lane % 8;
    const unsigned first = others + Rows::at(row, lane / 8 % 2);
#pragma unroll 4
    for (int k = 0; k + 1 < kChunks; k += 2) {
        unsigned a[2][4];
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            load_matrices(a[s], Rows::along(strips[s], k));
        }
#pragma unroll
        for (int i = 0; i < kUnits; i += 2) {
            const int unit = 2 * i + share.half;
            if (kMasked && !((units[0] | units[1]) >> unit & 0b101)) continue;
            unsigned b[4];
            load_matrices(b, Rows::along(first, k) + 2 * i * kUnit * Rows::kRowBytes);
#pragma unroll
            for (int s = 0; s < 2; ++s) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    if (kMasked && !(units[s] >> (unit + 2 * j) & 1)) continue;
                    multiply_add(x[s][i + j], a[s], b[2 * j], b[2 * j + 1]);
                }
            }
        }
    }
    if constexpr (kChunks % 2 == 1) {
        unsigned a[2][2], b[4];
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            const int row = kStrip * share.strips[s] + lane % 16;
            load_matrices(a[s], own + Rows::at(row, kChunks - 1));
        }
        const int row = kUnit * (share.half + lane / 8 * 2) + lane % 8;
        load_matrices(b, others + Rows::at(row, kChunks - 1));
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
            for (int i = 0; i < kUnits; ++i) {
                if (kMasked && !(units[s] >> (2 * i + share.half) & 1)) continue;
                multiply_add(x[s][i], a[s], b[i]);
            }
        }
    }
}

// sums += x · others, where x has the units first, first + 2, ...: two units in a product.
template <int kDim>
__device__ __forceinline__ void
accumulate_all(Sums<kDim>& sums, const Rounded& x, unsigned others, int first, int lane) {
    using Rows = Tile<kDim>;
    constexpr int kChunks = Rows::kChunks;
#pragma unroll
    for (int i = 0; i < kUnits; i += 2) {
        unsigned a[2][4];
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            a[s][0] = x[s][i][0], a[s][1] = x[s][i][1];
            a[s][2] = x[s][i + 1][0], a[s][3] = x[s][i + 1][1];
        }
        const int row = kUnit * (2 * (i + lane / 8 % 2) + first) + lane % 8;
        const unsigned rows = others + Rows::at(row, lane / 16);
#pragma unroll
        for (int c = 0; c + 1 < kChunks; c += 2) {
            unsigned b[4];
            load_transposed(b, Rows::along(rows, c));
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                multiply_add(sums[s][c], a[s], b[0], b[1]);
                multiply_add(sums[s][c + 1], a[s], b[2], b[3]);
            }
        }
        if constexpr (kChunks % 2 == 1) {
            unsigned b[2];
            load_transposed(b, others + Rows::at(row, kChunks - 1));
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                multiply_add(sums[s][kChunks - 1], a[s], b[0], b[1]);
            }
        }
    }
}

// The same of the units of each strip that are needed, one in a product: no more is computed than that.
template <int kDim>
__device__ __forceinline__ void accumulate_needed(Sums<kDim>& sums,
                                                  const Rounded& x,
                                                  unsigned others,
                                                  int first,
                                                  int lane,
                                                  const unsigned (&units)[2]) {
    using Rows = Tile<kDim>;
    constexpr int kChunks = Rows::kChunks;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
        const int unit = 2 * i + first;
        if (!((units[0] | units[1]) >> unit & 1)) continue;
        const int row = kUnit * unit + lane % 8;
        const unsigned rows = others + Rows::at(row, lane / 8);
#pragma unroll
        for (int c = 0; c + 3 < kChunks; c += 4) {
            unsigned b[4];
            load_transposed(b, Rows::along(rows, c));
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                if (!(units[s] >> unit & 1)) continue;
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    multiply_add(sums[s][c + n], x[s][i], b[n]);
                }
            }
        }
        if constexpr (kChunks % 4 == 1) {
            unsigned b[1];
            load_transposed(b, others + Rows::at(row, kChunks - 1));
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                if (!(units[s] >> unit & 1)) continue;
                multiply_add(sums[s][kChunks - 1], x[s][i], b[0]);
            }
        }
    }
}

template <int kDim, bool kMasked>
__device__ __forceinline__ void accumulate(Sums<kDim>& sums,
                                           const Rounded& x,
                                           unsigned others,
                                           int first,
                                           int lane,
                                           const unsigned (&units)[2]) {
    if constexpr (kMasked) {
        accumulate_needed<kDim>(sums, x, others, first, lane, units);
    } else {
        accumulate_all<kDim>(sums, x, others, first, lane);
    }
}

__device__ __forceinline__ void round_to(Rounded& rounded, const Scores& x) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            rounded[s][i][0] = pack_pair(x[s][i][0], x[s][i][1]);
            rounded[s][i][1] = pack_pair(x[s][i][2], x[s][i][3]);
        }
    }
}

// A number of each query that a lane has scores of: own rows, or columns.
template <bool kKeys>
struct OfQueries {
    float value[2 * (kKeys ? kUnits : 2)];

    __device__ __forceinline__ OfQueries(const float* values, const Share& share) {
        if constexpr (kKeys) {
#pragma unroll
            for (int i = 0; i < kUnits; ++i) {
                const int column = kUnit * (2 * i + share.half) + 2 * (share.lane % 4);
                const Pack<float, 2> two = load_pack<float, 2>(values + column);
                value[2 * i] = two.at[0], value[2 * i + 1] = two.at[1];
            }
        } else {
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const int row = kStrip * share.strips[s] + share.lane / 4;
                value[2 * s] = values[row], value[2 * s + 1] = values[row + 8];
            }
        }
    }

    // Of element e of strip s and unit i.
    __device__ __forceinline__ float at(int s, int i, int e) const {
        return value[kKeys ? 2 * i + e % 2 : 2 * s + e / 2];
    }
};

// Bit 4 (4 s + i) + e: element e of strip s and unit i is of a query and a key that it sees.
template <bool kKeys>
__device__ __forceinline__ unsigned
seen_by(const Plan& plan, const PlannedTile& tile, const Entry& entry, const Share& share) {
    const int lane = share.lane;
    unsigned seen = 0;
    if constexpr (kKeys) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            // Of rows beyond the entry those of its last: they are zeros, and add nothing whoever sees them.
            const int other = kUnit * (2 * i + share.half) + lane % 8;
            const uint4 ranges = plan.ranges(entry.start + min(other, entry.len - 1));
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int from = 2 * (lane % 4) + c;
                const uint4 of_column = {
                    __shfl_sync(kAllLanes, ranges.x, from), __shfl_sync(kAllLanes, ranges.y, from),
                    __shfl_sync(kAllLanes, ranges.z, from), __shfl_sync(kAllLanes, ranges.w, from)};
#pragma unroll
                for (int s = 0; s < 2; ++s) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const int row = kStrip * share.strips[s] + lane / 4 + 8 * h;
                        const bool is_seen = sees(of_column, tile.first + row);
                        seen |= unsigned(is_seen) << (4 * (kUnits * s + i) + 2 * h + c);
                    }
                }
            }
        }
    } else {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = tile.first + kStrip * share.strips[s] + lane / 4 + 8 * h;
                const uint4 ranges = plan.ranges(min(max(row, tile.begin), tile.end - 1));
#pragma unroll
                for (int i = 0; i < kUnits; ++i) {
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        const int other = kUnit * (2 * i + share.half) + 2 * (lane % 4) + c;
                        const bool is_seen = other < entry.len && sees(ranges, entry.start + other);
                        seen |= unsigned(is_seen) << (4 * (kUnits * s + i) + 2 * h + c);
                    }
                }
            }
        }
    }
    return seen;
}
