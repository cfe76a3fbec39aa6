// rope.cu — rotary position embedding of q and k, in place, half-split.
//   [x₁, x₂] ← [x₁·c − x₂·s,  x₂·c + x₁·s]      (c, s) = (cos, ±sin) of the token's position, + forward,
//   then q ← q · logn[position]                   − backward: the inverse turn, the same logn
// qk [tokens, 2·heads·head_dim] T: q, then k; rows start at multiples of 16 bytes
// table [positions, head_dim] f32: cos | sin    logn [positions] f32, or null    position [tokens] u32
// head_dim is a multiple of 8. Arithmetic in f32, logn taken into c and s, one rounding to T.
// A position beyond the table or logn makes its row NaN: nothing is read there.
// Moves 2·tokens·2·heads·head_dim·sizeof(T) bytes, and a row of the table for each token, at
// 3 FLOP an element: memory bound.
//   8192 tokens of 32 heads of 128, bf16: 273 MB, floor 57 us at 4.8 TB/s (H200).
// A warp per token: its lanes keep a row of the table in registers over all heads of the token, so
// that it is read once. (A block per token would read it once for each warp, or pass it through
// shared memory behind a barrier.) Launched by src/ops/rope/cuda.rs; reference in cpu.rs.
#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

constexpr int kThreads = 256;
// Elements of a lane at a time, of each half of a head: half of head_dim is a multiple of it.
constexpr int kQuad = 4;
// Heads that a lane loads before it turns one.
constexpr int kDeep = 4;

template <typename T>
struct Turn {
    T* qk;
    const unsigned* position;
    const float* table;
    const float* logn;                                               // null: none
    long long qk_stride, position_stride, table_stride, logn_stride; // elements between rows
    long long tokens;
    int q_heads; // and as many of k
    int head_dim;
    unsigned positions; // that table and logn hold
    float direction;    // of sin: 1 forward, −1 backward
};
static_assert(sizeof(Turn<float>) == 88, "as in Rust");

// kQuad elements of each half of a head.
template <typename T>
struct Halves {
    Pack<T, kQuad> low, high;
};

template <typename T>
__device__ __forceinline__ Halves<T> load_halves(const T* at, int half) {
    return {load_pack<T, kQuad>(at), load_pack<T, kQuad>(at + half)};
}

template <typename T>
__device__ __forceinline__ void turn_halves(T* at,
                                            int half,
                                            Halves<T> x,
                                            const Pack<float, kQuad>& cos,
                                            const Pack<float, kQuad>& sin,
                                            float factor) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        const float x1 = to_float(x.low.at[i]), x2 = to_float(x.high.at[i]);
        const float c = cos.at[i] * factor, s = sin.at[i] * factor;
        x.low.at[i] = from_float<T>(x1 * c - x2 * s);
        x.high.at[i] = from_float<T>(x2 * c + x1 * s);
    }
    store_pack(at, x.low);
    store_pack(at + half, x.high);
}

template <typename T>
__device__ __forceinline__ void turn(const Turn<T>& p) {
    const long long token = (long long)blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
    if (token >= p.tokens) return;
    const int half = p.head_dim / 2;
    // Lanes side by side on one head, and heads side by side in the warp.
    const int wide = min(half / kQuad, kWarp);
    const int step = kWarp / wide;
    const int lane = threadIdx.x % kWarp;
    if (lane >= wide * step) return;
    const unsigned position = p.position[token * p.position_stride];
    const bool known = position < p.positions;
    const float* table = p.table + position * p.table_stride;
    float scale = 1.0f;
    if (known && p.logn != nullptr) scale = p.logn[position * p.logn_stride];
    T* row = p.qk + token * p.qk_stride;
    const int heads = 2 * p.q_heads;
    // More than once for heads of more than 256 elements only.
#pragma unroll 1
    for (int i = lane % wide * kQuad; i < half; i += wide * kQuad) {
        Pack<float, kQuad> cos = {NAN, NAN, NAN, NAN}, sin = cos;
        if (known) {
            cos = load_pack(table + i);
            sin = load_pack(table + half + i);
        }
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
            sin.at[k] *= p.direction;
        }
#pragma unroll 1
        for (int first = lane / wide; first < heads; first += kDeep * step) {
            Halves<T> x[kDeep];
#pragma unroll
            for (int k = 0; k < kDeep; ++k) {
                const int head = first + k * step;
                if (head < heads) x[k] = load_halves(row + head * p.head_dim + i, half);
            }
#pragma unroll
            for (int k = 0; k < kDeep; ++k) {
                const int head = first + k * step;
                const float factor = head < p.q_heads ? scale : 1.0f;
                if (head < heads) {
                    turn_halves(row + head * p.head_dim + i, half, x[k], cos, sin, factor);
                }
            }
        }
    }
}

} // namespace

// A warp per token.
extern "C" __global__ void __launch_bounds__(kThreads)
rope_turn_f32(const __grid_constant__ Turn<float> p) {
    turn(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rope_turn_bf16(const __grid_constant__ Turn<__nv_bfloat16> p) {
    turn(p);
}
