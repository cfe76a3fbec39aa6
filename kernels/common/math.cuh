// math.cuh — functions of one float, as the hardware has them.
#pragma once

constexpr float kLog2e = 1.4426950408889634f;

// 2ˣ within 2 ulp; 0 where that is below 2⁻¹²⁶, of −inf too; of NaN NaN.
__device__ __forceinline__ float exp2_flushed(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
