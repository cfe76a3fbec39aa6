// adamw.cu — AdamW on every trained tensor in one launch, over flat buffers of one layout.
//   g ← g · scale        m ← m + (1 − β₁)(g − m)        v ← β₂ · v + (1 − β₂) · g²
//   p ← p · (1 − lr · wd) − lr / (1 − β₁ᵗ) · m / (sqrt(v) / sqrt(1 − β₂ᵗ) + eps)
//   copy ← p, rounded to bf16
// g p m v [n] f32, copy [n] bf16, all 16-byte aligned    chunks: see Chunk
// step, verdict: common/step.cuh. t, scale and whether anything happens at all come from the
// verdict, lr from the step: neither is an argument, a replayed graph finds them in memory.
// Masters, moments and gradients are f32 in every mode of training. The variant bf16 also writes
// the copy that the network's products read, in the same pass; with an f32 network p is that copy.
// Scalars in f64, rounded to f32 once for each chunk. Elements in f32, each operation rounded by
// itself, in PyTorch's order, as in src/ops/adamw/cpu.rs: the same bits, hence the intrinsics,
// which nvcc does not contract. copy is rounded to nearest even.
// Moves 28·n bytes (bf16: 30) at 14 FLOP an element: memory bound.
//   112 M (rank 64 on Qwen-VL) = 3.14 GB, floor 654 us at 4.8 TB/s (H200).
// A block per chunk. Launched by src/ops/adamw/cuda.rs; reference in cpu.rs.
#include "common/pack.cuh"
#include "common/step.cuh"

namespace {

constexpr int kThreads = 256;
// Elements of a thread at a time: 16 bytes of f32.
constexpr int kCount = 4;

// Elements that share a tensor.
struct Chunk {
    long long first;     // a multiple of kCount
    long long count;     // whatever is left of the tensor
    double lr_scale;     // factor on the learning rate of its tensor
    double weight_decay; // of its tensor
};
static_assert(sizeof(Chunk) == 32, "as in Rust");

struct AdamWUpdate {
    const float* g;
    const Step* step;
    const Verdict* verdict;
    const Chunk* chunks; // [gridDim.x]
    float* p;
    float* m;
    float* v;
    __nv_bfloat16* copy; // variant bf16 only
    double beta1, beta2, eps;
};
static_assert(sizeof(AdamWUpdate) == 88, "as in Rust");

// What is the same for all elements of a chunk.
struct Scalars {
    float grad_scale;
    float pull;  // 1 − β₁
    float decay; // β₂
    float fresh; // 1 − β₂
    float keep;  // 1 − lr · wd
    float size;  // −lr / (1 − β₁ᵗ)
    float root;  // sqrt(1 − β₂ᵗ)
    float eps;
};

// base^n by squaring, in Rust's order.
__device__ __forceinline__ double power(double base, unsigned long long n) {
    double result = 1.0;
    for (; n > 0; n /= 2) {
        if (n % 2 == 1) result = __dmul_rn(result, base);
        base = __dmul_rn(base, base);
    }
    return result;
}

__device__ __forceinline__ Scalars scalars(const AdamWUpdate& p, const Chunk& chunk) {
    const auto t = (unsigned long long)p.verdict->updates;
    const double lr = __dmul_rn(p.step->lr, chunk.lr_scale);
    const auto correction = [t](double beta) { return __dsub_rn(1.0, power(beta, t)); };
    Scalars s;
    s.grad_scale = __double2float_rn(p.verdict->scale);
    s.pull = __double2float_rn(__dsub_rn(1.0, p.beta1));
    s.decay = __double2float_rn(p.beta2);
    s.fresh = __double2float_rn(__dsub_rn(1.0, p.beta2));
    s.keep = __double2float_rn(__dsub_rn(1.0, __dmul_rn(lr, chunk.weight_decay)));
    s.size = -__double2float_rn(__ddiv_rn(lr, correction(p.beta1)));
    s.root = __double2float_rn(__dsqrt_rn(correction(p.beta2)));
    s.eps = __double2float_rn(p.eps);
    return s;
}

__device__ __forceinline__ void
update_element(const Scalars& s, float grad, float& p, float& m, float& v) {
    const float g = __fmul_rn(grad, s.grad_scale);
    m = __fadd_rn(m, __fmul_rn(s.pull, __fsub_rn(g, m)));
    v = __fadd_rn(__fmul_rn(v, s.decay), __fmul_rn(__fmul_rn(s.fresh, g), g));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), s.root), s.eps);
    p = __fadd_rn(__fmul_rn(p, s.keep), __fdiv_rn(__fmul_rn(s.size, m), denominator));
}

// Elements i to i + kElements − 1.
template <int kElements, bool kCopies>
__device__ __forceinline__ void
update_pack(const AdamWUpdate& args, const Scalars& s, long long i) {
    const Pack<float, kElements> g = load_pack<float, kElements>(args.g + i);
    Pack<float, kElements> p = load_pack<float, kElements>(args.p + i);
    Pack<float, kElements> m = load_pack<float, kElements>(args.m + i);
    Pack<float, kElements> v = load_pack<float, kElements>(args.v + i);
    Pack<__nv_bfloat16, kElements> copy;
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
        update_element(s, g.at[k], p.at[k], m.at[k], v.at[k]);
        copy.at[k] = from_float<__nv_bfloat16>(p.at[k]);
    }
    store_pack(args.p + i, p);
    store_pack(args.m + i, m);
    store_pack(args.v + i, v);
    if (kCopies) store_pack(args.copy + i, copy);
}

template <bool kCopies>
__device__ __forceinline__ void update(const AdamWUpdate& args) {
    __shared__ Scalars shared;
    if (args.verdict->finite == 0.0) return;
    const Chunk chunk = args.chunks[blockIdx.x];
    if (threadIdx.x == 0) shared = scalars(args, chunk);
    __syncthreads(); // the scalars before their reads
    const Scalars s = shared;
    const long long end = chunk.first + chunk.count;
    long long i = chunk.first + threadIdx.x * kCount;
    for (; i + kCount <= end; i += kThreads * kCount) {
        update_pack<kCount, kCopies>(args, s, i);
    }
#pragma unroll 1 // at most three elements, whose registers would spill
    for (; i < end; ++i) {
        update_pack<1, kCopies>(args, s, i);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
adamw_step_f32(const __grid_constant__ AdamWUpdate p) {
    update<false>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
adamw_step_bf16(const __grid_constant__ AdamWUpdate p) {
    update<true>(p);
}
