// grad_norm.cu — the norm of a flat gradient, and the verdict on the step.
//   sum = Σ g²      norm = sqrt(sum) · scale      clip = min(most / (norm + 1e-6), 1), most 0: 1
//   finite = isfinite(sum) and isfinite(loss)      updates or skipped += 1
// g [n] f32, 16-byte aligned    partial [⌈n / 65536⌉] f64    step, verdict: common/step.cuh
// A square of a float is exact in f64 and no sum of them overflows it: sum is not finite if and
// only if an element of g is not.
// The order of the sum is fixed, and that of src/ops/grad_norm/cpu.rs, bit for bit. A block sums
// a chunk of 65536 elements in 1024 lanes: lane l adds the elements i with i mod 1024 = l, rising.
// Thread t holds lanes 4t to 4t + 3 and adds (0 + 1) + (2 + 3); then warps by halves, then the
// warps in their order (reduce.cuh). The partial sums are added in the same way by one block.
// Gradients are f32 in every mode of training (they accumulate over packs): no variant in bf16.
// Moves 4·n bytes at 2 f64 FLOP an element: memory bound.
//   112 M (rank 64 on Qwen-VL) = 449 MB, floor 94 us at 4.8 TB/s (H200).
// Launched by src/ops/grad_norm/cuda.rs; reference in cpu.rs.
#include "common/pack.cuh"
#include "common/reduce.cuh"
#include "common/step.cuh"

namespace {

constexpr int kThreads = 256;
// Elements that a thread sums side by side.
constexpr int kLanes = 4;
// Elements of a block.
constexpr int kChunk = 65536;
static_assert(kChunk % (kThreads * kLanes) == 0, "lanes of a chunk take turns");

// Σ term(x[i]), i < n, by one block, in the order told above; every thread gets it.
template <typename T, typename Term>
__device__ __forceinline__ double sum_in_order(const T* x, long long n, Term term) {
    __shared__ double partial[kThreads / kWarp];
    double sum[kLanes] = {};
    long long i = threadIdx.x * kLanes;
#pragma unroll 4
    for (; i + kLanes <= n; i += kThreads * kLanes) {
        const Pack<T, kLanes> pack = load_pack<T, kLanes>(x + i);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
            sum[lane] += term(pack.at[lane]);
        }
    }
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
        if (i + lane < n) sum[lane] += term(x[i + lane]);
    }
    return block_sum<kThreads>((sum[0] + sum[1]) + (sum[2] + sum[3]), partial);
}

struct Partial {
    const float* g;
    double* partial; // [gridDim.x]
    long long n;
};
static_assert(sizeof(Partial) == 24, "as in Rust");

struct Judge {
    const double* partial;
    const Step* step;
    Verdict* verdict;
    long long partials;
    double most; // the norm to clip to; 0: never
};
static_assert(sizeof(Judge) == 40, "as in Rust");

// Each operation rounded by itself, as Rust does: nvcc must not contract a product and a sum.
__device__ __forceinline__ void judge(const Judge& p, double sum) {
    const Step step = *p.step;
    Verdict verdict = *p.verdict;
    const bool finite = isfinite(sum) && isfinite(step.loss);
    verdict.norm = __dmul_rn(__dsqrt_rn(sum), step.scale);
    const double clip = __ddiv_rn(p.most, __dadd_rn(verdict.norm, 1e-6));
    const double clipped = __dmul_rn(step.scale, p.most > 0.0 && clip < 1.0 ? clip : 1.0);
    verdict.scale = finite ? clipped : 0.0;
    verdict.finite = finite ? 1.0 : 0.0;
    verdict.updates += finite ? 1.0 : 0.0;
    verdict.skipped += finite ? 0.0 : 1.0;
    *p.verdict = verdict;
}

} // namespace

// A block per chunk.
extern "C" __global__ void __launch_bounds__(kThreads)
grad_norm_partial_f32(const __grid_constant__ Partial p) {
    const long long first = (long long)blockIdx.x * kChunk;
    const long long n = min((long long)kChunk, p.n - first);
    const double sum = sum_in_order(p.g + first, n, [](float g) { return (double)g * g; });
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

// One block.
extern "C" __global__ void __launch_bounds__(kThreads)
grad_norm_verdict(const __grid_constant__ Judge p) {
    const double sum = sum_in_order(p.partial, p.partials, [](double sum) { return sum; });
    if (threadIdx.x == 0) judge(p, sum);
}
