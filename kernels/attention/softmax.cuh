// softmax.cuh — the softmax of a strip's scores, which come some keys at a time, in registers as an mma gives them: lane l
// has the rows l / 4 and l / 4 + 8 (index `half`), of each unit of keys the columns 2 (l % 4) and the next one.
#pragma once

#include "../common/math.cuh"
#include "../common/reduce.cuh"
#include "../common/tile.cuh"
#include "plan.cuh"

// In powers of two: how far a row's scores may rise above its max before that follows. Until then P, and
// with it o and the sum, are up to 2^8 times too large, which cancels.
constexpr float kHeadroom = 8.0f;

// s = -inf where a query does not see the key, of `len` keys from `start` on. ranges: of the strip's queries.
template <int kUnits>
__device__ __forceinline__ void
mask(float (&s)[kUnits][4], const uint4* ranges, int start, int len, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint4 seen = ranges[half * 8 + lane / 4];
#pragma unroll
        for (int i = 0; i < 2 * kUnits; ++i) {
            const int key = i / 2 * kUnit + lane % 4 * 2 + i % 2;
            if (key >= len || !sees(seen, start + key)) s[i / 2][half * 2 + i % 2] = -INFINITY;
        }
    }
}

// What scores are taken relative to: max, but where a row has seen no key yet: -inf less -inf is NaN.
__device__ __forceinline__ float origin(float max) {
    return max == -INFINITY ? 0.0f : max;
}

// P = 2^(scale · s − max), rounded in pairs along the keys    sum += Σ P over the lane's columns
// Where a score of one of the strip's rows is too far above its max, before that
// max' = largest score    o · 2^(max − max')    sum · 2^(max − max')    max = max'
template <int kUnits, int kColumns>
__device__ __forceinline__ void softmax(unsigned (&rounded)[kUnits][2],
                                        const float (&s)[kUnits][4],
                                        float (&o)[kColumns][4],
                                        float (&max)[2],
                                        float (&sum)[2],
                                        float scale) {
    float top[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        top[half] = -INFINITY;
#pragma unroll
        for (int i = 0; i < 2 * kUnits; ++i) {
            top[half] = fmaxf(top[half], s[i / 2][half * 2 + i % 2]);
        }
        top[half] = fmaxf(top[half], __shfl_xor_sync(kAllLanes, top[half], 1));
        top[half] = fmaxf(top[half], __shfl_xor_sync(kAllLanes, top[half], 2)) * scale;
    }
    const bool is_above = top[0] > max[0] + kHeadroom || top[1] > max[1] + kHeadroom;
    if (__any_sync(kAllLanes, is_above)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float raised = fmaxf(max[half], top[half]);
            const float shrink = exp2_flushed(max[half] - origin(raised));
            max[half] = raised;
            sum[half] *= shrink;
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                o[n][half * 2] *= shrink;
                o[n][half * 2 + 1] *= shrink;
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float from = origin(max[half]);
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            const float low = exp2_flushed(fmaf(s[u][half * 2], scale, -from));
            const float high = exp2_flushed(fmaf(s[u][half * 2 + 1], scale, -from));
            sum[half] += low;
            sum[half] += high;
            rounded[u][half] = pack_pair(low, high);
        }
    }
}
