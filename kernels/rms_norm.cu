// rms_norm.cu — root-mean-square normalisation over the last axis, after adding the residual.
//   forward    h = x + residual        r = rsqrt(mean(h²) + eps)        y = h · r · w
// x y h residual [rows, cols] T, rows 16-byte aligned    w [cols] T    r [rows] f32
// Without a residual (null) h is x and is not written. h may be x or the residual itself.
// Sums in f32, in a fixed order. h is rounded to T and the statistics are taken of what was
// rounded, as the next reader of h sees it; y is rounded once. |h| must stay below 1e18. Forward
// moves 2·rows·cols·sizeof(T) bytes (4 with a residual) at 4 FLOP an element: memory bound.
//   8192 × 4096 bf16 = 134 MB, floor 28 us at 4.8 TB/s (H200).
// A block per row; the row stays in registers up to 16384 bytes, a longer one is read again from
// L2.
#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

constexpr int kThreads = 256;
// Packs of a row that a thread keeps in registers: 4 × 16 bytes × 256 threads = 16 KiB of a row.
constexpr int kKept = 4;

template <typename T>
struct Forward {
    const T* x;
    const T* residual; // null: none
    const T* weight;
    T* h; // with a residual only
    T* y;
    float* rstd;
    long long x_stride, residual_stride, h_stride, y_stride; // elements between rows
    int cols;                                                // a multiple of kPack<T>
    float eps;
};

// The part of row `row` at column `col`, the residual added, and written to h where there is one.
template <typename T>
__device__ __forceinline__ Pack<T> load_sum(const Forward<T>& p, long long row, int col) {
    Pack<T> pack = load_pack(p.x + row * p.x_stride + col);
    if (p.residual == nullptr) return pack;
    const Pack<T> other = load_pack(p.residual + row * p.residual_stride + col);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        pack.at[i] = from_float<T>(to_float(pack.at[i]) + to_float(other.at[i]));
    }
    store_pack(p.h + row * p.h_stride + col, pack);
    return pack;
}

template <typename T>
__device__ __forceinline__ float sum_of_squares(const Pack<T>& pack) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float x = to_float(pack.at[i]);
        sum = fmaf(x, x, sum);
    }
    return sum;
}

template <typename T>
__device__ __forceinline__ void
scale(const Forward<T>& p, long long row, int col, const Pack<T>& h, float r) {
    const Pack<T> weight = load_pack(p.weight + col);
    Pack<T> y;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        y.at[i] = from_float<T>(to_float(h.at[i]) * r * to_float(weight.at[i]));
    }
    store_pack(p.y + row * p.y_stride + col, y);
}

template <typename T>
__device__ __forceinline__ void forward(const Forward<T>& p) {
    __shared__ float partial[kThreads / kWarp];
    const long long row = blockIdx.x;
    const int first = threadIdx.x * kPack<T>;
    constexpr int kStep = kThreads * kPack<T>;
    Pack<T> kept[kKept];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
        const int col = first + k * kStep;
        if (col < p.cols) {
            kept[k] = load_sum(p, row, col);
            sum += sum_of_squares(kept[k]);
        }
    }
    for (int col = first + kKept * kStep; col < p.cols; col += kStep) {
        sum += sum_of_squares(load_sum(p, row, col));
    }
    const float r = rsqrtf(block_sum<kThreads>(sum, partial) / p.cols + p.eps);
    if (threadIdx.x == 0) p.rstd[row] = r;
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
        const int col = first + k * kStep;
        if (col < p.cols) scale(p, row, col, kept[k], r);
    }
    const T* h = p.residual == nullptr ? p.x + row * p.x_stride : p.h + row * p.h_stride;
    for (int col = first + kKept * kStep; col < p.cols; col += kStep) {
        scale(p, row, col, load_pack(h + col), r); // what this very thread wrote above
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_forward_f32(const __grid_constant__ Forward<float> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_forward_bf16(const __grid_constant__ Forward<__nv_bfloat16> p) {
    forward(p);
}
