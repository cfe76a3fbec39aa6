// rms_norm.cu — root-mean-square normalisation over the last axis, after adding the residual.
//   forward    h = x + residual        r = rsqrt(mean(h²) + eps)        y = h · r · w
//   backward   g = dy · w      dh (+)= r · (g − h · r² · mean(g · h))      dw += Σ_rows dy · h · r
// x residual h y dy dh [rows, cols] T    w [cols] T    r [rows] f32    dw [cols] f32
// Rows of T, and w, start at multiples of 16 bytes and are whole packs of 16 bytes.
// Without a residual (null) h is x and is not written.
// Sums in f32, in a fixed order. h is rounded to T and the statistics are taken of what was rounded,
// as the next reader of h sees it; y and dh are rounded once. |h| must stay below 1e18.
// A column of dw is summed by one block, 64 rows side by side, then over those: no atomics.
// Forward moves 2·rows·cols·sizeof(T) bytes (4 with a residual) at 4 FLOP an element: memory bound.
//   8192 × 4096 bf16 = 134 MB, floor 28 us at 4.8 TB/s (H200).
// Backward moves 3 (4 when it adds) at 9 FLOP: 201 MB, 42 us. dw another 2 at 3 FLOP: 28 us.
// A block per row. Rows of up to 16 KiB (backward: 8 KiB) stay in registers, of longer ones the rest
// is read again. Launched by src/ops/rms_norm/cuda.rs; reference in cpu.rs.
#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

constexpr int kThreads = 256;
// Packs of a row that a thread keeps in registers: 4 × 16 bytes × 256 threads = 16 KiB of a row.
// The loops over what is beyond are not unrolled: they are rare, and their registers would spill.
constexpr int kKept = 4;

template <typename T>
struct Forward {
    const T* x;
    const T* residual; // null: none
    const T* weight;
    T* h; // with a residual only
    T* y;
    float* rstd;
    long long x_stride, residual_stride, h_stride, y_stride, rstd_stride; // elements between rows
    int cols;
    float eps;
};
static_assert(sizeof(Forward<float>) == 96, "as in Rust");

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
#pragma unroll 1
    for (int col = first + kKept * kStep; col < p.cols; col += kStep) {
        sum += sum_of_squares(load_sum(p, row, col));
    }
    const float r = rsqrtf(block_sum<kThreads>(sum, partial) / p.cols + p.eps);
    if (threadIdx.x == 0) p.rstd[row * p.rstd_stride] = r;
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
        const int col = first + k * kStep;
        if (col < p.cols) scale(p, row, col, kept[k], r);
    }
    const T* h = p.residual == nullptr ? p.x + row * p.x_stride : p.h + row * p.h_stride;
#pragma unroll 1
    for (int col = first + kKept * kStep; col < p.cols; col += kStep) {
        scale(p, row, col, load_pack(h + col), r); // what this very thread wrote above
    }
}

// dh of `backward`; h as the forward kernel left it.
template <typename T>
struct Backward {
    const T* h;
    const T* weight;
    const float* rstd;
    const T* dy;
    T* dh;
    long long h_stride, rstd_stride, dy_stride, dh_stride; // elements between rows
    int cols;
    int adds; // to dh, else overwrites it
};
static_assert(sizeof(Backward<float>) == 80, "as in Rust");

// Σ g · (h · r): r taken in first, since h · r is of order one and h may not be.
template <typename T>
__device__ __forceinline__ float
dot(const Pack<T>& h, const Pack<T>& weight, const Pack<T>& dy, float r) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float g = to_float(dy.at[i]) * to_float(weight.at[i]);
        sum = fmaf(g, to_float(h.at[i]) * r, sum);
    }
    return sum;
}

// dh (+)= r · (g − h · r · along), with along = r · mean(g · h)
template <typename T>
__device__ __forceinline__ void store_gradient(const Backward<T>& p,
                                               T* dh,
                                               const Pack<T>& h,
                                               const Pack<T>& weight,
                                               const Pack<T>& dy,
                                               float r,
                                               float along) {
    Pack<T> pack{};
    if (p.adds) pack = load_pack(dh);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float g = to_float(dy.at[i]) * to_float(weight.at[i]);
        const float gradient = r * (g - to_float(h.at[i]) * r * along);
        pack.at[i] = from_float<T>(p.adds ? to_float(pack.at[i]) + gradient : gradient);
    }
    store_pack(dh, pack);
}

template <typename T>
__device__ __forceinline__ void backward(const Backward<T>& p) {
    __shared__ float partial[kThreads / kWarp];
    const long long row = blockIdx.x;
    const T* h = p.h + row * p.h_stride;
    const T* dy = p.dy + row * p.dy_stride;
    T* dh = p.dh + row * p.dh_stride;
    const float r = p.rstd[row * p.rstd_stride];
    const int first = threadIdx.x * kPack<T>;
    constexpr int kStep = kThreads * kPack<T>;
    // Half as many as forward: two tensors are kept.
    Pack<T> kept_h[kKept / 2], kept_dy[kKept / 2];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kKept / 2; ++k) {
        const int col = first + k * kStep;
        if (col < p.cols) {
            kept_h[k] = load_pack(h + col);
            kept_dy[k] = load_pack(dy + col);
            sum += dot(kept_h[k], load_pack(p.weight + col), kept_dy[k], r);
        }
    }
#pragma unroll 1
    for (int col = first + kKept / 2 * kStep; col < p.cols; col += kStep) {
        sum += dot(load_pack(h + col), load_pack(p.weight + col), load_pack(dy + col), r);
    }
    const float along = block_sum<kThreads>(sum, partial) / p.cols;
#pragma unroll
    for (int k = 0; k < kKept / 2; ++k) {
        const int col = first + k * kStep;
        if (col < p.cols) {
            const Pack<T> weight = load_pack(p.weight + col);
            store_gradient(p, dh + col, kept_h[k], weight, kept_dy[k], r, along);
        }
    }
#pragma unroll 1
    for (int col = first + kKept / 2 * kStep; col < p.cols; col += kStep) {
        const Pack<T> weight = load_pack(p.weight + col);
        store_gradient(p, dh + col, load_pack(h + col), weight, load_pack(dy + col), r, along);
    }
}

// Packs of columns and rows that a block of `backward_weight` reads at a time: 64 bytes of a row
// make whole sectors, and narrow blocks are many.
constexpr int kWide = 4;
constexpr int kTall = kThreads / kWide;

template <typename T>
struct BackwardWeight {
    const T* h;
    const float* rstd;
    const T* dy;
    float* dweight;
    long long h_stride, rstd_stride, dy_stride; // elements between rows
    int rows, cols;
};
static_assert(sizeof(BackwardWeight<float>) == 64, "as in Rust");

template <typename T>
__device__ __forceinline__ void backward_weight(const BackwardWeight<T>& p) {
    constexpr int kCols = kWide * kPack<T>;
    __shared__ float partial[kTall][kCols];
    const int first = blockIdx.x * kCols;
    const int at = threadIdx.x % kWide * kPack<T>;
    float sum[kPack<T>] = {};
    if (first + at < p.cols) {
#pragma unroll 4
        for (long long row = threadIdx.x / kWide; row < p.rows; row += kTall) {
            const Pack<T> h = load_pack(p.h + row * p.h_stride + first + at);
            const Pack<T> dy = load_pack(p.dy + row * p.dy_stride + first + at);
            const float r = p.rstd[row * p.rstd_stride];
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i) {
                sum[i] = fmaf(to_float(dy.at[i]), to_float(h.at[i]) * r, sum[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        partial[threadIdx.x / kWide][at + i] = sum[i];
    }
    __syncthreads(); // sums of all rows before their reads
    const int col = threadIdx.x;
    if (col >= kCols || first + col >= p.cols) return;
    float total = 0.0f;
    for (int row = 0; row < kTall; ++row) {
        total += partial[row][col];
    }
    p.dweight[first + col] += total;
}

} // namespace

// A block per row.
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_forward_f32(const __grid_constant__ Forward<float> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_forward_bf16(const __grid_constant__ Forward<__nv_bfloat16> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_backward_f32(const __grid_constant__ Backward<float> p) {
    backward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_backward_bf16(const __grid_constant__ Backward<__nv_bfloat16> p) {
    backward(p);
}
// A block per kWide packs of columns.
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_backward_weight_f32(const __grid_constant__ BackwardWeight<float> p) {
    backward_weight(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_backward_weight_bf16(const __grid_constant__ BackwardWeight<__nv_bfloat16> p) {
    backward_weight(p);
}
