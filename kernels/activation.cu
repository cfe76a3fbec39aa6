// activation.cu — GELU (exact, by erf) and SwiGLU, forward and backward.
//   gelu     y = x · Φ(x)         dx = dy · (Φ(x) + x · φ(x))      dbias += Σ_rows dx, when asked
//   swiglu   s = a · b · σ(b)     da = dy · b · σ(b)      db = dy · a · σ(b) · (1 + b · (1 − σ(b)))
// all [rows, cols] T    dbias [cols] f32
// Rows start at multiples of 16 bytes and are whole packs of 16 bytes; columns of wider buffers.
// Arithmetic in f32, one rounding to T on store; dbias is summed of dx before it is rounded.
// Φ of a negative x is e^(−x²/2) times a polynomial, never 1 + erf: its relative error is 1e-6 at 0
// and 1e-7 · x² in the tail, where a sum would have no digit left.
// swiglu's backward gives s again when asked: the weight gradient of the map behind it needs s, and
// a forward that does not keep it saves [rows, cols] in every layer for one write here.
// Moves 2·rows·cols·sizeof(T) bytes (gelu), 3 (its backward; swiglu), 5 (its backward; with s 6), at
// about 30, 35, 15 and 20 FLOP an element: memory bound, in bf16 barely so (2 of a multiprocessor's
// 16 special functions a clock and element).
//   8192 × 8192 bf16 = 268 MB (gelu), floor 56 us at 4.8 TB/s (H200), backward 84 us.
//   8192 × 11008 bf16 = 541 MB (swiglu), 113 us, backward 188 us.
// A thread takes a pack of two rows. With dbias a block takes 64 bytes of all rows, 64 rows side by
// side, so that a column has one sum in a fixed order and no partial leaves the block.
// Launched by src/ops/activation/cuda.rs; reference in cpu.rs.
#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

constexpr float kDensity = 0.3989423f; // 1 / sqrt(2π), the height of φ

// φ(x) / kDensity = e^(−x²/2), and Φ(x).
struct Normal {
    float bell;
    float below;
};

// Φ(−|x|) = e^(−x²/2) · p(t) with t = 1 / (1 + 0.3 · |x|): the Chebyshev interpolant for
// |x| <= 15, computed in 40 digits for this file, within 2.6e-7 in f32. Beyond, e^(−x²/2) is 0.
__device__ __forceinline__ Normal normal(float x) {
    constexpr float kHalfLog2e = 0.72134752f;
    const float bell = exp2f(-kHalfLog2e * (x * x));
    const float t = __fdividef(1.0f, fmaf(0.3f, fabsf(x), 1.0f));
    float p = 0.0378356986f;
    p = fmaf(p, t, -0.166755896f);
    p = fmaf(p, t, 0.224171099f);
    p = fmaf(p, t, -0.0719504832f);
    p = fmaf(p, t, 0.139794024f);
    p = fmaf(p, t, 0.095679734f);
    p = fmaf(p, t, 0.121707898f);
    p = fmaf(p, t, 0.119511903f);
    p = fmaf(p, t, 6.04221309e-6f);
    const float tail = bell * p;
    return {bell, x < 0.0f ? tail : 1.0f - tail};
}

__device__ __forceinline__ float sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + expf(-x)); // 0 where the divisor is infinite
}

struct Gelu {
    __device__ __forceinline__ static void apply(const float (&in)[1], float (&out)[1]) {
        out[0] = in[0] * normal(in[0]).below;
    }
};

// x, dy to dx
struct GeluBackward {
    __device__ __forceinline__ static void apply(const float (&in)[2], float (&out)[1]) {
        const Normal at = normal(in[0]);
        out[0] = in[1] * fmaf(in[0], kDensity * at.bell, at.below);
    }
};

// a, b to s
struct Swiglu {
    __device__ __forceinline__ static void apply(const float (&in)[2], float (&out)[1]) {
        out[0] = in[0] * (in[1] * sigmoid(in[1]));
    }
};

// a, b, dy to da, db, s
struct SwigluBackward {
    __device__ __forceinline__ static void apply(const float (&in)[3], float (&out)[3]) {
        const float a = in[0], b = in[1], dy = in[2];
        const float gate = sigmoid(b);
        out[0] = dy * (b * gate);
        out[1] = dy * (a * (gate * fmaf(b, 1.0f - gate, 1.0f)));
        out[2] = a * (b * gate);
    }
};

template <typename T, int kIn, int kOut>
struct Map {
    const T* in[kIn];
    T* out[kOut];                               // null: not wanted
    long long in_stride[kIn], out_stride[kOut]; // elements between rows
    int rows, cols;
};
static_assert(sizeof(Map<float, 1, 1>) == 40, "as in Rust");
static_assert(sizeof(Map<float, 2, 1>) == 56, "as in Rust");
static_assert(sizeof(Map<float, 3, 3>) == 104, "as in Rust");

// The part of row `row` at column `col` of every input.
template <typename T, int kIn, int kOut>
__device__ __forceinline__ void
load_packs(const Map<T, kIn, kOut>& p, long long row, int col, Pack<T> (&in)[kIn]) {
#pragma unroll
    for (int k = 0; k < kIn; ++k) {
        in[k] = load_pack(p.in[k] + row * p.in_stride[k] + col);
    }
}

// Stores what F makes of the packs, and adds the first result, unrounded, to `sum`.
template <typename F, typename T, int kIn, int kOut>
__device__ __forceinline__ void store_packs(const Map<T, kIn, kOut>& p,
                                            long long row,
                                            int col,
                                            const Pack<T> (&in)[kIn],
                                            float (&sum)[kPack<T>]) {
    Pack<T> out[kOut];
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
        float x[kIn], y[kOut];
#pragma unroll
        for (int k = 0; k < kIn; ++k) {
            x[k] = to_float(in[k].at[i]);
        }
        F::apply(x, y);
        sum[i] += y[0];
#pragma unroll
        for (int k = 0; k < kOut; ++k) {
            out[k].at[i] = from_float<T>(y[k]);
        }
    }
#pragma unroll
    for (int k = 0; k < kOut; ++k) {
        if (p.out[k] != nullptr) store_pack(p.out[k] + row * p.out_stride[k] + col, out[k]);
    }
}

// A block of `map` takes kThreads packs of kRows rows.
constexpr int kThreads = 128;
constexpr int kRows = 2;

template <typename F, typename T, int kIn, int kOut>
__device__ __forceinline__ void map(const Map<T, kIn, kOut>& p) {
    const int col = (blockIdx.y * kThreads + threadIdx.x) * kPack<T>;
    const long long first = (long long)blockIdx.x * kRows;
    if (col >= p.cols) return;
    Pack<T> in[kRows][kIn];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
        if (first + k < p.rows) load_packs(p, first + k, col, in[k]);
    }
    float unused[kPack<T>] = {};
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
        if (first + k < p.rows) store_packs<F>(p, first + k, col, in[k], unused);
    }
}

// A block of `map_and_sum` takes kWide packs of all rows, kTall rows side by side: 64 bytes of a row
// make whole sectors, and narrow blocks are many. A thread loads kDeep rows before it uses one.
constexpr int kSumThreads = 256;
constexpr int kWide = 4;
constexpr int kTall = kSumThreads / kWide;
constexpr int kDeep = 4;

template <typename T, int kIn, int kOut>
struct MapAndSum {
    Map<T, kIn, kOut> map;
    float* sums; // [cols], added to: over the rows of the first output
};
static_assert(sizeof(MapAndSum<float, 2, 1>) == 64, "as in Rust");

template <typename F, typename T, int kIn, int kOut>
__device__ __forceinline__ void map_and_sum(const MapAndSum<T, kIn, kOut>& args) {
    constexpr int kCols = kWide * kPack<T>;
    __shared__ alignas(16) float partial[kSumThreads / kWarp][kCols];
    const Map<T, kIn, kOut>& p = args.map;
    const int first = blockIdx.x * kCols;
    const int at = threadIdx.x % kWide * kPack<T>;
    const int col = first + at;
    float sum[kPack<T>] = {};
    if (col < p.cols) {
#pragma unroll 1
        for (long long row = threadIdx.x / kWide; row < p.rows; row += kDeep * kTall) {
            Pack<T> in[kDeep][kIn];
#pragma unroll
            for (int k = 0; k < kDeep; ++k) {
                if (row + k * kTall < p.rows) load_packs(p, row + k * kTall, col, in[k]);
            }
#pragma unroll
            for (int k = 0; k < kDeep; ++k) {
                if (row + k * kTall < p.rows) store_packs<F>(p, row + k * kTall, col, in[k], sum);
            }
        }
    }
    // The rows of a warp, by halves.
#pragma unroll
    for (int lanes = kWarp / 2; lanes >= kWide; lanes /= 2) {
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            sum[i] += __shfl_xor_sync(kAllLanes, sum[i], lanes);
        }
    }
    if (threadIdx.x % kWarp / kWide == 0) {
#pragma unroll
        for (int i = 0; i < kPack<T>; i += kPack<float>) {
            const Pack<float> part = {sum[i], sum[i + 1], sum[i + 2], sum[i + 3]};
            store_pack(&partial[threadIdx.x / kWarp][at + i], part);
        }
    }
    __syncthreads(); // sums of all warps before their reads
    const int own = threadIdx.x;
    if (own >= kCols || first + own >= p.cols) return;
    float total = 0.0f;
    for (int warp = 0; warp < kSumThreads / kWarp; ++warp) {
        total += partial[warp][own];
    }
    args.sums[first + own] += total;
}

} // namespace

// Blocks of kRows rows along x, of kThreads packs of columns along y.
extern "C" __global__ void __launch_bounds__(kThreads)
activation_forward_gelu_f32(const __grid_constant__ Map<float, 1, 1> p) {
    map<Gelu>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
activation_forward_gelu_bf16(const __grid_constant__ Map<__nv_bfloat16, 1, 1> p) {
    map<Gelu>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
activation_backward_gelu_f32(const __grid_constant__ Map<float, 2, 1> p) {
    map<GeluBackward>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
activation_backward_gelu_bf16(const __grid_constant__ Map<__nv_bfloat16, 2, 1> p) {
    map<GeluBackward>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
activation_forward_swiglu_f32(const __grid_constant__ Map<float, 2, 1> p) {
    map<Swiglu>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
activation_forward_swiglu_bf16(const __grid_constant__ Map<__nv_bfloat16, 2, 1> p) {
    map<Swiglu>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
activation_backward_swiglu_f32(const __grid_constant__ Map<float, 3, 3> p) {
    map<SwigluBackward>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
activation_backward_swiglu_bf16(const __grid_constant__ Map<__nv_bfloat16, 3, 3> p) {
    map<SwigluBackward>(p);
}
// A block per kWide packs of columns.
extern "C" __global__ void __launch_bounds__(kSumThreads)
activation_backward_gelu_bias_f32(const __grid_constant__ MapAndSum<float, 2, 1> p) {
    map_and_sum<GeluBackward>(p);
}
extern "C" __global__ void __launch_bounds__(kSumThreads)
activation_backward_gelu_bias_bf16(const __grid_constant__ MapAndSum<__nv_bfloat16, 2, 1> p) {
    map_and_sum<GeluBackward>(p);
}
