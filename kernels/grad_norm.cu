// grad_norm.cu — the norm of a flat gradient, and the verdict on the step.
//   sum = Σ g²      norm = sqrt(sum) · scale      clip = min(most / (norm + 1e-6), 1), most 0: 1
//   finite = isfinite(sum) and isfinite(loss)      updates or skipped += 1
// g [n] f32, 16-byte aligned    partial [⌈n / 65536⌉] f64    step, verdict: common/step.cuh
// A square of a float is exact in f64 and no sum of them overflows it: sum is not finite if and
// only if an element of g is not.
// The order of the sum is fixed, and that of src/ops/grad_norm/cpu.rs, bit for bit:
//   a piece of 8192 elements in 128 lanes, lane l adding those with i mod 128 = l, rising; then
//     lanes by halves: lane l and lane l + 64, then 32, 16, 8, 4, 2, 1
//   a chunk of 8 pieces, their sums as they follow: one partial sum
//   the partial sums in 256 lanes; 32 lanes at a time by halves, then these 8 sums as they follow
// A warp takes a piece, four lanes a thread: 512 bytes at a time.
// Gradients are f32 in every mode of training (they accumulate over packs): no variant in bf16.
// Moves 4·n bytes at 2 f64 FLOP an element: memory bound.
//   112 M (rank 64 on Qwen-VL) = 449 MB, floor 94 us at 4.8 TB/s (H200).
// Launched by src/ops/grad_norm/cuda.rs; reference in cpu.rs.
#include "common/pack.cuh"
#include "common/reduce.cuh"
#include "common/step.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Lanes of a thread: 16 bytes.
constexpr int kLanes = kPack<float>;
// Elements of a warp, and of a block.
constexpr int kPiece = 8192;
constexpr int kChunk = kWarps * kPiece;

// Σ x² of the `n` elements of a piece; all lanes must call, each gets it.
__device__ __forceinline__ double sum_of_squares(const float* x, int n) {
    double sum[kLanes] = {};
    int i = threadIdx.x % kWarp * kLanes;
#pragma unroll 4
    for (; i + kLanes <= n; i += kWarp * kLanes) {
        const Pack<float> pack = load_pack(x + i);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
            sum[lane] += (double)pack.at[lane] * pack.at[lane];
        }
    }
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
        if (i + lane < n) sum[lane] += (double)x[i + lane] * x[i + lane];
        sum[lane] = warp_sum(sum[lane]);
    }
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
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
    __shared__ double sums[kWarps];
    const long long chunk = (long long)blockIdx.x * kChunk;
    const long long first = chunk + threadIdx.x / kWarp * kPiece;
    const int n = (int)max(0ll, min((long long)kPiece, p.n - first));
    const double sum = sum_of_warps<kThreads>(sum_of_squares(p.g + first, n), sums);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

// One block.
extern "C" __global__ void __launch_bounds__(kThreads)
grad_norm_verdict(const __grid_constant__ Judge p) {
    __shared__ double sums[kWarps];
    double sum = 0.0;
#pragma unroll 8
    for (long long i = threadIdx.x; i < p.partials; i += kThreads) {
        sum += p.partial[i];
    }
    sum = block_sum<kThreads>(sum, sums);
    if (threadIdx.x == 0) judge(p, sum);
}
