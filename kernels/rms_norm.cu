// rms_norm.cu — root-mean-square normalisation over the last axis, after adding the residual.
//   forward    h = x + residual        r = rsqrt(mean(h²) + eps)        y = h · r · w
//   backward   g = dy · w      dh (+)= r · (g − h · r² · mean(g · h))      dw += Σ_rows dy · h · r
// x residual h y dy dh [rows, cols] T    w [cols] T    r [rows] f32
// partials [⌈rows / 64⌉, cols] f32: dw of the rows of a block; column_sums.cu adds them to dw.
// Rows of T, and w, start at multiples of 16 bytes and are whole packs of 16 bytes.
// Without a residual (null) h is x and is not written.
// Sums in f32, in a fixed order, no atomics. h is rounded to T and the statistics are taken of what
// was rounded, as the next reader of h sees it; y and dh are rounded once. |h| must stay below 1e18.
// Forward moves 2·rows·cols·sizeof(T) bytes (4 with a residual) at 4 FLOP an element: memory bound.
//   8192 × 4096 bf16 = 134 MB, floor 28 us at 4.8 TB/s (H200).
// Backward moves 3 (4 when it adds) at 9 FLOP: 201 MB, 42 us. With dw 3 FLOP more in the same pass.
// A block takes 16 rows one after the other, with dw 64, and a thread the same pack of columns of
// each: w is read once and stays in registers, as do the sums of dw. The next rows are loaded before
// these are summed, so that loads are under way during the barrier; at 64 registers two blocks of
// 4096 bf16 share a multiprocessor, and 8192 rows make 512 blocks (with dw 128: one wave of 132).
// What a row has beyond 4096 columns is read twice.
// Bytes over the floor at 256 × 4096 bf16 are 1.03, 1.02 and with dw 1.02 (counted by the emulator; no
// GPU has timed it). Beaten by them (reckoned): a block per row, which reads w for each, 1.5 and 1.7;
// dw in a pass of its own, 2.3; 32 rows a block with dw, 1.05, for the partials. A warp per row would
// hold 64 registers of it.
// Launched by src/ops/rms_norm/cuda.rs; reference in cpu.rs.
#include "common/columns.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

// Rows that `forward` loads, sums and stores at a time.
constexpr int kAtOnce = 2;

template <typename T>
struct Forward {
    const T* x;
    const T* residual; // null: none
    const T* weight;
    T* h; // with a residual only
    T* y;
    float* rstd;
    long long x_stride, residual_stride, h_stride, y_stride, rstd_stride; // elements between rows
    int rows, cols;
    int chunk; // rows of a block
    float eps;
};
static_assert(sizeof(Forward<float>) == 104, "as in Rust");

// What is added up at one column of a row.
struct Terms {
    uint4 x, residual;
};

template <typename T>
__device__ __forceinline__ Terms
load_terms(const Forward<T>& p, bool there, long long row, int col) {
    Terms terms{};
    if (!there) return terms;
    terms.x = load_words(p.x + row * p.x_stride + col);
    if (p.residual != nullptr) {
        terms.residual = load_words(p.residual + row * p.residual_stride + col);
    }
    return terms;
}

// h = x + residual, written where there is a residual.
template <typename T>
__device__ __forceinline__ Pack<T>
add_residual(const Forward<T>& p, long long row, int col, const Terms& terms) {
    Pack<T> h = as_pack<T>(terms.x);
    if (p.residual == nullptr) return h;
    const Pack<T> residual = as_pack<T>(terms.residual);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        h.at[i] = from_float<T>(to_float(h.at[i]) + to_float(residual.at[i]));
    }
    store_pack(p.h + row * p.h_stride + col, h);
    return h;
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
__device__ __forceinline__ void store_scaled(
    const Forward<T>& p, long long row, int col, const Pack<T>& h, const Pack<T>& weight, float r) {
    Pack<T> y;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        y.at[i] = from_float<T>(to_float(h.at[i]) * r * to_float(weight.at[i]));
    }
    store_pack(p.y + row * p.y_stride + col, y);
}

template <typename T>
__device__ __forceinline__ void forward(const Forward<T>& p) {
    __shared__ Pack<float, kAtOnce> partial[2][kMaxThreads<T> / kWarp];
    const int first = blockIdx.x * p.chunk;
    const int end = chunk_end(first, p.chunk, p.rows);
    const int col = threadIdx.x * kPack<T>;
    const int step = blockDim.x * kPack<T>;
    const bool held = col < p.cols;
    const uint4 weight = held ? load_words(p.weight + col) : uint4{};
    Terms next[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
        next[i] = load_terms(p, held && first + i < end, first + i, col);
    }
#pragma unroll 1
    for (int row = first; row < end; row += kAtOnce) {
        uint4 h[kAtOnce];
        float sum[kAtOnce] = {};
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const Terms terms = next[i];
            const int later = row + kAtOnce + i;
            next[i] = load_terms(p, held && later < end, later, col);
            if (row + i >= end) continue;
            if (held) {
                const Pack<T> pack = add_residual(p, row + i, col, terms);
                sum[i] = sum_of_squares(pack);
                h[i] = as_words(pack);
            }
#pragma unroll 1
            for (int far = col + step; far < p.cols; far += step) {
                const Terms terms = load_terms(p, true, row + i, far);
                sum[i] += sum_of_squares(add_residual(p, row + i, far, terms));
            }
        }
        block_sums(sum, partial[(row - first) / kAtOnce % 2]);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            if (row + i >= end) continue;
            const float r = rsqrtf(sum[i] / p.cols + p.eps);
            if (threadIdx.x == 0) p.rstd[(row + i) * p.rstd_stride] = r;
            if (held) store_scaled(p, row + i, col, as_pack<T>(h[i]), as_pack<T>(weight), r);
            // h as this very thread read or wrote it above
            const T* again =
                p.residual == nullptr ? p.x + (row + i) * p.x_stride : p.h + (row + i) * p.h_stride;
#pragma unroll 1
            for (int far = col + step; far < p.cols; far += step) {
                const Pack<T> weight = load_pack(p.weight + far);
                store_scaled(p, row + i, far, load_pack(again + far), weight, r);
            }
        }
    }
}

// h and rstd as the forward kernel left them.
template <typename T>
struct Backward {
    const T* h;
    const T* weight;
    const float* rstd;
    const T* dy;
    T* dh;
    float* partials;                                       // of dw
    long long h_stride, rstd_stride, dy_stride, dh_stride; // elements between rows
    int rows, cols;
    int chunk; // rows of a block
    int adds;  // to dh, else overwrites it
};
static_assert(sizeof(Backward<float>) == 96, "as in Rust");

// What backward reads of a row at one column.
struct Row {
    uint4 h, dy, dh;
};

template <typename T>
__device__ __forceinline__ Row load_row(const Backward<T>& p, bool there, int row, int col) {
    Row part{};
    if (!there) return part;
    part.h = load_words(p.h + row * p.h_stride + col);
    part.dy = load_words(p.dy + row * p.dy_stride + col);
    if (p.adds) part.dh = load_words(p.dh + row * p.dh_stride + col);
    return part;
}

// Σ g · (h · r): r taken in first, since h · r is of order one and h may not be.
template <typename T>
__device__ __forceinline__ float dot(const Row& row, const Pack<T>& weight, float r) {
    const Pack<T> h = as_pack<T>(row.h), dy = as_pack<T>(row.dy);
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
__device__ __forceinline__ void store_gradient(
    const Backward<T>& p, T* at, const Row& row, const Pack<T>& weight, float r, float along) {
    const Pack<T> h = as_pack<T>(row.h), dy = as_pack<T>(row.dy);
    Pack<T> dh = as_pack<T>(row.dh);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float g = to_float(dy.at[i]) * to_float(weight.at[i]);
        const float gradient = r * (g - to_float(h.at[i]) * r * along);
        dh.at[i] = from_float<T>(p.adds ? to_float(dh.at[i]) + gradient : gradient);
    }
    store_pack(at, dh);
}

// dw += dy · (h · r)
template <typename T>
__device__ __forceinline__ void add_weight(float (&dweight)[kPack<T>], const Row& row, float r) {
    const Pack<T> h = as_pack<T>(row.h), dy = as_pack<T>(row.dy);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        dweight[i] = fmaf(to_float(dy.at[i]), to_float(h.at[i]) * r, dweight[i]);
    }
}

template <typename T, bool kWeight>
__device__ __forceinline__ void backward(const Backward<T>& p) {
    __shared__ Pack<float, 1> partial[2][kMaxThreads<T> / kWarp];
    __shared__ float rstd[kMaxChunk];
    const int first = blockIdx.x * p.chunk;
    const int end = chunk_end(first, p.chunk, p.rows);
    const int col = threadIdx.x * kPack<T>;
    const int step = blockDim.x * kPack<T>;
    const bool held = col < p.cols;
    const uint4 weight = held ? load_words(p.weight + col) : uint4{};
    float dweight[kPack<T>] = {};
    Row next = load_row(p, held, first, col);
    for (int row = first + threadIdx.x; row < end; row += blockDim.x) {
        rstd[row - first] = p.rstd[row * p.rstd_stride];
    }
    __syncthreads(); // rstd of all rows before their reads
#pragma unroll 1
    for (int row = first; row < end; ++row) {
        const Row now = next;
        next = load_row(p, held && row + 1 < end, row + 1, col);
        const float r = rstd[row - first];
        float sum[1] = {dot(now, as_pack<T>(weight), r)};
#pragma unroll 1
        for (int far = col + step; far < p.cols; far += step) {
            sum[0] += dot(load_row(p, true, row, far), load_pack(p.weight + far), r);
        }
        block_sums(sum, partial[row % 2]);
        const float along = sum[0] / p.cols;
        T* dh = p.dh + row * p.dh_stride;
        if (held) store_gradient(p, dh + col, now, as_pack<T>(weight), r, along);
        if (kWeight) add_weight<T>(dweight, now, r);
#pragma unroll 1
        for (int far = col + step; far < p.cols; far += step) {
            const Row again = load_row(p, true, row, far);
            store_gradient(p, dh + far, again, load_pack(p.weight + far), r, along);
        }
    }
    if (!kWeight) return;
    float* partials = p.partials + blockIdx.x * (long long)p.cols;
    const int warp_col = threadIdx.x / kWarp * kWarp * kPack<T>;
    store_columns<T>(partials + warp_col, dweight, p.cols - warp_col);
#pragma unroll 1
    for (int far = step; far < p.cols; far += step) {
        float dweight[kPack<T>] = {};
#pragma unroll 1
        for (int row = first; row < end; ++row) {
            const Row part = load_row(p, far + col < p.cols, row, far + col);
            add_weight<T>(dweight, part, rstd[row - first]);
        }
        store_columns<T>(partials + far + warp_col, dweight, p.cols - far - warp_col);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(kMaxThreads<float>, kMinBlocks<float>)
rms_norm_forward_f32(const __grid_constant__ Forward<float> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<__nv_bfloat16>, kMinBlocks<__nv_bfloat16>)
rms_norm_forward_bf16(const __grid_constant__ Forward<__nv_bfloat16> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<float>, kMinBlocks<float>)
rms_norm_backward_f32(const __grid_constant__ Backward<float> p) {
    backward<float, false>(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<__nv_bfloat16>, kMinBlocks<__nv_bfloat16>)
rms_norm_backward_bf16(const __grid_constant__ Backward<__nv_bfloat16> p) {
    backward<__nv_bfloat16, false>(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<float>)
rms_norm_backward_weight_f32(const __grid_constant__ Backward<float> p) {
    backward<float, true>(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<__nv_bfloat16>)
rms_norm_backward_weight_bf16(const __grid_constant__ Backward<__nv_bfloat16> p) {
    backward<__nv_bfloat16, true>(p);
}
