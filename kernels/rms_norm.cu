// rms_norm.cu — root-mean-square normalisation over the last axis, after adding the residual.
//   forward    h = x + residual        r = rsqrt(mean(h²) + eps)        y = h · r · w
//   backward   g = dy · w      dh (+)= r · (g − h · r² · mean(g · h))      dw += Σ_rows dy · h · r
// x y h residual dy dh [rows, cols] T, 16-byte aligned rows    w [cols] T    r [rows] f32
// dw [cols] f32
// Without a residual (null) h is x and is not written. h may be x or the residual itself.
// Sums in f32, in a fixed order. h is rounded to T and the statistics are taken of what was rounded,
// as the next reader of h sees it; y and dh are rounded once. |h| must stay below 1e18.
// dw is summed over strips of rows, then over the strips in their order: no atomics.
// Forward moves 2·rows·cols·sizeof(T) bytes (4 with a residual) at 4 FLOP an element: memory bound.
//   8192 × 4096 bf16 = 134 MB, floor 28 us at 4.8 TB/s (H200).
// Backward moves 3 (4 when it adds) at 9 FLOP, dw another 2 at 3 FLOP and strips·cols floats.
// A block per row (dw: per strip of rows and 256 packs of columns). Rows of up to 16 KiB (backward:
// 8 KiB) stay in registers, of longer ones the rest is read again.
// Nothing launches it yet; reference in src/ops/rms_norm/cpu.rs.
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

// dh of `backward`; h as the forward kernel left it.
template <typename T>
struct Backward {
    const T* dy;
    const T* h;
    const T* weight;
    const float* rstd;
    T* dh;
    long long dy_stride, h_stride, dh_stride; // elements between rows
    int cols;                                 // a multiple of kPack<T>
    int adds;                                 // to dh, else overwrites it
};

template <typename T>
__device__ __forceinline__ float dot(const Pack<T>& dy, const Pack<T>& weight, const Pack<T>& h) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        sum = fmaf(to_float(dy.at[i]) * to_float(weight.at[i]), to_float(h.at[i]), sum);
    }
    return sum;
}

// dh (+)= r · g − scaled · h, with scaled = r³ · mean(g · h)
template <typename T>
__device__ __forceinline__ void store_gradient(const Backward<T>& p,
                                               T* dh,
                                               const Pack<T>& dy,
                                               const Pack<T>& weight,
                                               const Pack<T>& h,
                                               float r,
                                               float scaled) {
    Pack<T> pack{};
    if (p.adds) pack = load_pack(dh);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float g = to_float(dy.at[i]) * to_float(weight.at[i]);
        const float gradient = r * g - scaled * to_float(h.at[i]);
        pack.at[i] = from_float<T>(p.adds ? to_float(pack.at[i]) + gradient : gradient);
    }
    store_pack(dh, pack);
}

template <typename T>
__device__ __forceinline__ void backward(const Backward<T>& p) {
    __shared__ float partial[kThreads / kWarp];
    const long long row = blockIdx.x;
    const T* dy = p.dy + row * p.dy_stride;
    const T* h = p.h + row * p.h_stride;
    T* dh = p.dh + row * p.dh_stride;
    const int first = threadIdx.x * kPack<T>;
    constexpr int kStep = kThreads * kPack<T>;
    // Half as many as forward: two tensors are kept.
    Pack<T> kept_dy[kKept / 2], kept_h[kKept / 2];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kKept / 2; ++k) {
        const int col = first + k * kStep;
        if (col < p.cols) {
            kept_dy[k] = load_pack(dy + col);
            kept_h[k] = load_pack(h + col);
            sum += dot(kept_dy[k], load_pack(p.weight + col), kept_h[k]);
        }
    }
    for (int col = first + kKept / 2 * kStep; col < p.cols; col += kStep) {
        sum += dot(load_pack(dy + col), load_pack(p.weight + col), load_pack(h + col));
    }
    const float r = p.rstd[row];
    const float scaled = r * r * r * (block_sum<kThreads>(sum, partial) / p.cols);
#pragma unroll
    for (int k = 0; k < kKept / 2; ++k) {
        const int col = first + k * kStep;
        if (col < p.cols) {
            store_gradient(p, dh + col, kept_dy[k], load_pack(p.weight + col), kept_h[k], r,
                           scaled);
        }
    }
    for (int col = first + kKept / 2 * kStep; col < p.cols; col += kStep) {
        const Pack<T> weight = load_pack(p.weight + col);
        store_gradient(p, dh + col, load_pack(dy + col), weight, load_pack(h + col), r, scaled);
    }
}

// Block (x, y): 256 packs of columns, strip y of the rows.
template <typename T>
struct BackwardWeight {
    const T* dy;
    const T* h;
    const float* rstd;
    float* partial; // [gridDim.y, cols]
    long long dy_stride, h_stride;
    int rows, cols;
    int strip; // rows of a strip
};

template <typename T>
__device__ __forceinline__ void backward_weight(const BackwardWeight<T>& p) {
    const int col = (blockIdx.x * kThreads + threadIdx.x) * kPack<T>;
    if (col >= p.cols) return;
    const long long first = (long long)blockIdx.y * p.strip;
    const long long end = min(first + p.strip, (long long)p.rows);
    float sum[kPack<T>] = {};
    for (long long row = first; row < end; ++row) {
        const Pack<T> dy = load_pack(p.dy + row * p.dy_stride + col);
        const Pack<T> h = load_pack(p.h + row * p.h_stride + col);
        const float r = p.rstd[row];
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            sum[i] = fmaf(to_float(dy.at[i]), to_float(h.at[i]) * r, sum[i]);
        }
    }
    float* out = p.partial + (long long)blockIdx.y * p.cols + col;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        out[i] = sum[i];
    }
}

// A thread per column.
struct SumStrips {
    const float* partial; // [strips, cols]
    float* dweight;
    int strips, cols;
};

} // namespace

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
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_backward_weight_f32(const __grid_constant__ BackwardWeight<float> p) {
    backward_weight(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_backward_weight_bf16(const __grid_constant__ BackwardWeight<__nv_bfloat16> p) {
    backward_weight(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rms_norm_backward_weight_sum(const __grid_constant__ SumStrips p) {
    const int col = blockIdx.x * kThreads + threadIdx.x;
    if (col >= p.cols) return;
    float sum = 0.0f;
    for (int strip = 0; strip < p.strips; ++strip) {
        sum += p.partial[(long long)strip * p.cols + col];
    }
    p.dweight[col] += sum;
}
