// y[i] = a x[i], with everything a kernel is told in one struct of 64 bytes.
#include <assert.h>

struct alignas(64) Params {
    const float* x;
    float* y;
    float a;
    int count;
};
static_assert(sizeof(Params) == 64, "tests/driver/cudarc.rs has the same");

extern "C" __global__ void scale(const __grid_constant__ Params p) {
    extern __shared__ float row[];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    assert(p.count >= 0);
    row[threadIdx.x] = i < p.count ? p.x[i] : 0.0f;
    __syncthreads();
    if (i < p.count) p.y[i] = p.a * row[threadIdx.x];
}
