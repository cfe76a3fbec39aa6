// exponential.cuh — powers of two: a softmax's exponentials, with log2(e) in the scale of its scores.
#pragma once

constexpr float kLog2e = 1.4426950408889634f;

// 2^x to 2^-22 of it, and 0 below 2^-126; of -inf 0, of NaN NaN.
__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
