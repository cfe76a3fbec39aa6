// layer_norm.cu — layer normalisation over the last axis.
//   forward    m = mean(x)      r = rsqrt(mean((x − m)²) + eps)      n = (x − m) · r      y = n · w + b
//   backward   g = dy · w       dx (+)= r · (g − mean(g) − n · mean(g · n))
//              dw += Σ_rows dy · n      db += Σ_rows dy
// x y dy dx [rows, cols] T    w b [cols] T    m r [rows] f32
// partials [2, ⌈rows / 64⌉, cols] f32: dw, then db, of the rows of a block; column_sums.cu adds them.
// Rows of T, and w and b, start at multiples of 16 bytes and are whole packs of 16 bytes.
// Sums in f32, in a fixed order, no atomics; y and dx are rounded once. The squares are summed about
// the mean, in a second pass over registers. |x − m| must stay below 1e18.
// Forward moves 2·rows·cols·sizeof(T) bytes at 8 FLOP an element: memory bound.
//   8192 × 4096 bf16 = 134 MB, floor 28 us at 4.8 TB/s (H200).
// Backward moves 3 (4 when it adds) at 14 FLOP: 201 MB, 42 us. With dw and db 5 FLOP more in the same
// pass.
// Blocks and threads are those of rms_norm.cu, which tells why. Forward takes 32 rows a block, since it
// reads w and b: 16 would move 1.06 × the floor at 256 × 4096 (reckoned), 32 move 1.03 (counted).
// Launched by src/ops/layer_norm/cuda.rs; reference in cpu.rs.
#include "common/columns.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

// Rows that `forward` loads, sums and stores at a time.
constexpr int kAtOnce = 2;

template <typename T>
struct Forward {
    const T* x;
    const T* weight;
    const T* bias;
    T* y;
    float* mean;
    float* rstd;
    long long x_stride, y_stride, mean_stride, rstd_stride; // elements between rows
    int rows, cols;
    int chunk; // rows of a block
    float eps;
};
static_assert(sizeof(Forward<float>) == 96, "as in Rust");

template <typename T>
__device__ __forceinline__ float sum_of(const Pack<T>& pack) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        sum += to_float(pack.at[i]);
    }
    return sum;
}

// Σ (x − mean)²
template <typename T>
__device__ __forceinline__ float sum_of_squares(const Pack<T>& pack, float mean) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float x = to_float(pack.at[i]) - mean;
        sum = fmaf(x, x, sum);
    }
    return sum;
}

template <typename T>
__device__ __forceinline__ void store_output(
    T* y, const Pack<T>& x, const Pack<T>& weight, const Pack<T>& bias, float mean, float r) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float normal = (to_float(x.at[i]) - mean) * r;
        pack.at[i] = from_float<T>(fmaf(normal, to_float(weight.at[i]), to_float(bias.at[i])));
    }
    store_pack(y, pack);
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
    const uint4 bias = held ? load_words(p.bias + col) : uint4{};
    const T* x = p.x + first * p.x_stride;
    uint4 next[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
        if (held && first + i < end) next[i] = load_words(x + i * p.x_stride + col);
    }
#pragma unroll 1
    for (int row = first; row < end; row += kAtOnce) {
        uint4 now[kAtOnce];
        float mean[kAtOnce] = {}, rstd[kAtOnce] = {};
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const T* x = p.x + (row + i) * p.x_stride;
            now[i] = next[i];
            if (held && row + i + kAtOnce < end) {
                next[i] = load_words(x + kAtOnce * p.x_stride + col);
            }
            if (row + i >= end) continue;
            if (held) mean[i] = sum_of(as_pack<T>(now[i]));
#pragma unroll 1
            for (int far = col + step; far < p.cols; far += step) {
                mean[i] += sum_of(load_pack(x + far));
            }
        }
        block_sums(mean, partial[0]);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            const T* x = p.x + (row + i) * p.x_stride;
            mean[i] /= p.cols;
            if (row + i >= end) continue;
            if (held) rstd[i] = sum_of_squares(as_pack<T>(now[i]), mean[i]);
#pragma unroll 1
            for (int far = col + step; far < p.cols; far += step) {
                rstd[i] += sum_of_squares(load_pack(x + far), mean[i]);
            }
        }
        block_sums(rstd, partial[1]);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            if (row + i >= end) continue;
            const T* x = p.x + (row + i) * p.x_stride;
            T* y = p.y + (row + i) * p.y_stride;
            const float r = rsqrtf(rstd[i] / p.cols + p.eps);
            if (threadIdx.x == 0) {
                p.mean[(row + i) * p.mean_stride] = mean[i];
                p.rstd[(row + i) * p.rstd_stride] = r;
            }
            if (held) {
                const Pack<T> w = as_pack<T>(weight), b = as_pack<T>(bias);
                store_output(y + col, as_pack<T>(now[i]), w, b, mean[i], r);
            }
#pragma unroll 1
            for (int far = col + step; far < p.cols; far += step) {
                const Pack<T> w = load_pack(p.weight + far), b = load_pack(p.bias + far);
                store_output(y + far, load_pack(x + far), w, b, mean[i], r);
            }
        }
    }
}

// mean and rstd as the forward kernel left them.
template <typename T>
struct Backward {
    const T* x;
    const T* weight;
    const float* mean;
    const float* rstd;
    const T* dy;
    T* dx;
    float* partials;                                                    // of dw, then of db
    long long x_stride, mean_stride, rstd_stride, dy_stride, dx_stride; // elements between rows
    int rows, cols;
    int chunk; // rows of a block
    int adds;  // to dx, else overwrites it
};
static_assert(sizeof(Backward<float>) == 112, "as in Rust");

// What backward reads of a row at one column.
struct Terms {
    uint4 x, dy, dx;
};

template <typename T>
__device__ __forceinline__ Terms load_terms(const Backward<T>& p, bool there, int row, int col) {
    Terms terms{};
    if (!there) return terms;
    terms.x = load_words(p.x + row * p.x_stride + col);
    terms.dy = load_words(p.dy + row * p.dy_stride + col);
    if (p.adds) terms.dx = load_words(p.dx + row * p.dx_stride + col);
    return terms;
}

struct alignas(8) Stats {
    float mean, r;
};

template <typename T>
__device__ __forceinline__ float normal(T x, Stats stats) {
    return (to_float(x) - stats.mean) * stats.r;
}

// sums += Σ g, Σ g · n
template <typename T>
__device__ __forceinline__ void
add_sums(float (&sums)[2], const Terms& terms, const Pack<T>& weight, Stats stats) {
    const Pack<T> x = as_pack<T>(terms.x), dy = as_pack<T>(terms.dy);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float g = to_float(dy.at[i]) * to_float(weight.at[i]);
        sums[0] += g;
        sums[1] = fmaf(g, normal(x.at[i], stats), sums[1]);
    }
}

// dx (+)= r · (g − level − n · along), with level = mean(g), along = mean(g · n)
template <typename T>
__device__ __forceinline__ void store_gradient(const Backward<T>& p,
                                               T* at,
                                               const Terms& terms,
                                               const Pack<T>& weight,
                                               Stats stats,
                                               float level,
                                               float along) {
    const Pack<T> x = as_pack<T>(terms.x), dy = as_pack<T>(terms.dy);
    Pack<T> dx = as_pack<T>(terms.dx);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float g = to_float(dy.at[i]) * to_float(weight.at[i]);
        const float gradient = stats.r * (g - level - normal(x.at[i], stats) * along);
        dx.at[i] = from_float<T>(p.adds ? to_float(dx.at[i]) + gradient : gradient);
    }
    store_pack(at, dx);
}

// dw += dy · n, db += dy
template <typename T>
__device__ __forceinline__ void
add_weight(float (&dweight)[kPack<T>], float (&dbias)[kPack<T>], const Terms& terms, Stats stats) {
    const Pack<T> x = as_pack<T>(terms.x), dy = as_pack<T>(terms.dy);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        const float d = to_float(dy.at[i]);
        dweight[i] = fmaf(d, normal(x.at[i], stats), dweight[i]);
        dbias[i] += d;
    }
}

template <typename T, bool kWeight>
__device__ __forceinline__ void backward(const Backward<T>& p) {
    __shared__ Pack<float, 2> partial[2][kMaxThreads<T> / kWarp];
    __shared__ Stats stats[kMaxChunk];
    const int first = blockIdx.x * p.chunk;
    const int end = chunk_end(first, p.chunk, p.rows);
    const int col = threadIdx.x * kPack<T>;
    const int step = blockDim.x * kPack<T>;
    const bool held = col < p.cols;
    const uint4 weight = held ? load_words(p.weight + col) : uint4{};
    float dweight[kPack<T>] = {}, dbias[kPack<T>] = {};
    Terms next = load_terms(p, held, first, col);
    for (int row = first + threadIdx.x; row < end; row += blockDim.x) {
        stats[row - first] = {p.mean[row * p.mean_stride], p.rstd[row * p.rstd_stride]};
    }
    __syncthreads(); // statistics of all rows before their reads
#pragma unroll 1
    for (int row = first; row < end; ++row) {
        const Terms now = next;
        next = load_terms(p, held && row + 1 < end, row + 1, col);
        const Stats row_stats = stats[row - first];
        float sums[2] = {};
        add_sums(sums, now, as_pack<T>(weight), row_stats);
#pragma unroll 1
        for (int far = col + step; far < p.cols; far += step) {
            const Terms terms = load_terms(p, true, row, far);
            add_sums(sums, terms, load_pack(p.weight + far), row_stats);
        }
        block_sums(sums, partial[row % 2]);
        const float level = sums[0] / p.cols, along = sums[1] / p.cols;
        T* dx = p.dx + row * p.dx_stride;
        if (held) store_gradient(p, dx + col, now, as_pack<T>(weight), row_stats, level, along);
        if (kWeight) add_weight<T>(dweight, dbias, now, row_stats);
#pragma unroll 1
        for (int far = col + step; far < p.cols; far += step) {
            const Terms terms = load_terms(p, true, row, far);
            const Pack<T> weight = load_pack(p.weight + far);
            store_gradient(p, dx + far, terms, weight, row_stats, level, along);
        }
    }
    if (!kWeight) return;
    float* partial_weight = p.partials + blockIdx.x * (long long)p.cols;
    float* partial_bias = partial_weight + gridDim.x * (long long)p.cols;
    const int warp_col = threadIdx.x / kWarp * kWarp * kPack<T>;
    store_columns<T>(partial_weight + warp_col, dweight, p.cols - warp_col);
    store_columns<T>(partial_bias + warp_col, dbias, p.cols - warp_col);
#pragma unroll 1
    for (int far = step; far < p.cols; far += step) {
        float dweight[kPack<T>] = {}, dbias[kPack<T>] = {};
#pragma unroll 1
        for (int row = first; row < end; ++row) {
            const Terms terms = load_terms(p, far + col < p.cols, row, far + col);
            add_weight<T>(dweight, dbias, terms, stats[row - first]);
        }
        const int at = far + warp_col;
        store_columns<T>(partial_weight + at, dweight, p.cols - at);
        store_columns<T>(partial_bias + at, dbias, p.cols - at);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(kMaxThreads<float>, kMinBlocks<float>)
layer_norm_forward_f32(const __grid_constant__ Forward<float> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<__nv_bfloat16>, kMinBlocks<__nv_bfloat16>)
layer_norm_forward_bf16(const __grid_constant__ Forward<__nv_bfloat16> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<float>, kMinBlocks<float>)
layer_norm_backward_f32(const __grid_constant__ Backward<float> p) {
    backward<float, false>(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<__nv_bfloat16>, kMinBlocks<__nv_bfloat16>)
layer_norm_backward_bf16(const __grid_constant__ Backward<__nv_bfloat16> p) {
    backward<__nv_bfloat16, false>(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<float>)
layer_norm_backward_weight_f32(const __grid_constant__ Backward<float> p) {
    backward<float, true>(p);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads<__nv_bfloat16>)
layer_norm_backward_weight_bf16(const __grid_constant__ Backward<__nv_bfloat16> p) {
    backward<__nv_bfloat16, true>(p);
}
