// log_ratio.cu — logits of a chunk of rows → log-probabilities of the targets and their gradients, in place.
//   e_v = exp(z_v − max z)      others = Σ_{v≠y} e_v      total = e_y + others
//   log p = z_y − max z − ln total
//   g_v = −c · e_v / total      g_y = c · others / total, summed without e_y: 1 − p_y loses its digits near 1
//   branch sums: s_b = Σ log p over rows offsets[b] to offsets[b + 1]
// z [rows, cols] f32: whole packs of 16 bytes at multiples of 16 bytes    y [rows] u32
// c [rows] f32, absent: 1    log p [rows] f32    offsets [branches + 1] u32    s [branches] f64
// g [rows, cols] bf16 lies over z: row r begins where z's row r does, and takes half of its bytes.
// e in f32, 0 below 2⁻¹²⁶; up to 32 are summed in f32, then once for 16384 columns; sums of threads and ln in
// f64; log p and g are rounded once. Fixed order, no atomics. A row with a NaN or +inf, of nothing but −inf,
// or with y >= cols gets NaN everywhere; a target of −inf among others log p = −inf, g_y = c.
// Branch sums add in f64, row by row: the CPU's bits.
//
// Log-probabilities read z once. With gradients the row is read twice, for the sums and for g, and g written. A row of
// 151,936 is 608 KB: the columns that fit stay in shared memory (H200: 57,856), the others are read again. Rows of 132
// multiprocessors are 80 MB, L2 is 50: so the sums go from the row's end to its start and g from start to end, what
// was read last is read again first, and the held part and g, which nobody reads again, are told to leave L2
// first. What must stay are then the other columns alone: 50 MB at the very most, half of it on average.
// DRAM moves 6 bytes an element at 12 FLOP: memory bound.
//   512 × 151,936 = 467 MB, floor 97 us at 4.8 TB/s (H200); log-probabilities alone 311 MB, 65 us.
// In place: columns [b, 2b) of g lie over columns [b/2, b) of z. With [0, held) in shared memory and the barrier of the
// sums behind all first reads, g of [0, 2 held) may be written at once, and then twice as many columns after every
// barrier: two for a row of 151,936.
// A block per row. Launched by src/ops/log_ratio/cuda.rs; reference in cpu.rs.
#include "common/math.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"
#include "common/tile.cuh"

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
// Packs of a thread that are loaded before the first is used: 64 KB of a block are under way, where the bandwidth of
// a multiprocessor times the latency of memory asks for about 30.
constexpr int kPacks = 8;
// Columns between two packs of a thread, and of a block at a time.
constexpr int kStep = kThreads * kPack<float>;
constexpr int kSpan = kPacks * kStep;

struct LogRatio {
    float* logits;
    const unsigned* targets;
    const float* factors; // null: 1
    float* log_probs;     // null: not asked for
    long long logits_stride, targets_stride, factors_stride,
        log_probs_stride; // elements between rows
    int cols;
    int held; // columns that dynamic shared memory has room for, whole packs
};
static_assert(sizeof(LogRatio) == 72, "as in Rust");

struct BranchSums {
    const float* log_probs;
    const unsigned* offsets;
    double* sums;
    long long log_probs_stride, sums_stride;
    int rows, branches;
};
static_assert(sizeof(BranchSums) == 48, "as in Rust");

using Packs = Pack<float>[kPacks];

// The largest of some logits, and Σ exp(z − max).
struct Sum {
    float max;
    double sum;
};

// exp(x − max)
__device__ __forceinline__ float power(float x, float max) {
    return exp2_flushed((x - max) * kLog2e);
}

// Of nothing but −inf every power is 0, not NaN.
__device__ __forceinline__ float base(float max) {
    return max == -INFINITY ? 0.0f : max;
}

// Spans of the block over the columns [begin, end).
__device__ __forceinline__ int spans(int begin, int end) {
    return (end - begin + kSpan - 1) / kSpan;
}

// The packs of a thread, the first of them at column `col`; −inf from `end` on.
template <bool kLast>
__device__ __forceinline__ void load(Packs& packs, const float* row, int col, int end) {
#pragma unroll
    for (auto& pack : packs) {
        if (col < end) {
            pack = kLast ? load_last(row + col) : load_pack(row + col);
        } else {
            pack = {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}};
        }
        col += kStep;
    }
}

__device__ __forceinline__ void store(float* row, const Packs& packs, int col, int end) {
#pragma unroll
    for (const auto& pack : packs) {
        if (col < end) store_pack(row + col, pack);
        col += kStep;
    }
}

// The target becomes −inf.
__device__ __forceinline__ void leave_out(Packs& packs, int col, unsigned target) {
#pragma unroll
    for (auto& pack : packs) {
        int here = col;
        for (float& x : pack.at) {
            if (here++ == target) x = -INFINITY;
        }
        col += kStep;
    }
}

// sum += Σ exp(z − max), both about what is now the largest.
__device__ __forceinline__ void add(float& max, float& sum, const Packs& packs) {
    const float before = max;
#pragma unroll
    for (const auto& pack : packs) {
        for (const float x : pack.at) {
            max = fmaxf(max, x);
        }
    }
    float part = 0.0f;
#pragma unroll
    for (const auto& pack : packs) {
        const auto e = [&](int i) { return power(pack.at[i], base(max)); };
        part += (e(0) + e(1)) + (e(2) + e(3));
    }
    sum = fmaf(sum, power(before, base(max)), part);
}

// Adds the columns [begin, end) to max and sum, the last ones first; keeps them at `kept` where there is one.
template <bool kKeep>
__device__ __forceinline__ void add_columns(
    float& max, float& sum, const float* row, int begin, int end, unsigned target, float* kept) {
    const int thread = begin + threadIdx.x * kPack<float>;
#pragma unroll 1
    for (int span = spans(begin, end) - 1; span >= 0; --span) {
        const int first = thread + span * kSpan;
        Packs packs;
        load<kKeep>(packs, row, first, end);
        if (kKeep) store(kept, packs, first, end);
        if ((target - begin) / kSpan == span) leave_out(packs, first, target);
        add(max, sum, packs);
    }
}

// Of the whole block, every thread the same; all must call.
__device__ __forceinline__ Sum block_sum(float max, float sum) {
    __shared__ float max_of[kWarps];
    __shared__ double sum_of[kWarps];
    const int lane = threadIdx.x % kWarp;
    // A product by itself: the compiler would join it to some of the additions that follow, and not to others.
    const auto about = [](double sum, float max, float largest) {
        return warp_sum(__dmul_rn(sum, power(max, base(largest))));
    };
    const float max_of_warp = warp_max(max);
    const double sum_of_warp = about(sum, max, max_of_warp);
    if (lane == 0) {
        max_of[threadIdx.x / kWarp] = max_of_warp;
        sum_of[threadIdx.x / kWarp] = sum_of_warp;
    }
    __syncthreads(); // sums of all warps before their reads; all first reads of logits before gradients over them
    const Sum mine = lane < kWarps ? Sum{max_of[lane], sum_of[lane]} : Sum{-INFINITY, 0.0};
    const float largest = warp_max(mine.max);
    return {largest, about(mine.sum, mine.max, largest)};
}

// The gradients of columns [begin, end), from the logits at `from`.
template <bool kLast>
__device__ __forceinline__ void write_gradients(
    __nv_bfloat16* gradients, const float* from, int begin, int end, float max, float scale) {
    const int thread = begin + threadIdx.x * kPack<float>;
    const int count = spans(begin, end);
#pragma unroll 1
    for (int span = 0; span != count; ++span) {
        int col = thread + span * kSpan;
        Packs packs;
        load<kLast>(packs, from, col, end);
#pragma unroll
        for (const auto& pack : packs) {
            const auto g = [&](int i) { return -scale * power(pack.at[i], max); };
            if (col < end)
                store_last(gradients + col, {pack_pair(g(0), g(1)), pack_pair(g(2), g(3))});
            col += kStep;
        }
    }
}

template <bool kGradient>
__device__ __forceinline__ void log_ratio(const LogRatio& p) {
    extern __shared__ float4 shared[];
    float* held = reinterpret_cast<float*>(shared);
    const long long r = blockIdx.x;
    float* row = p.logits + r * p.logits_stride;
    const unsigned target = p.targets[r * p.targets_stride];
    const float own = target < p.cols ? row[target] : NAN;

    // others = Σ_{v≠y} e_v, from the row's end to its start
    const int kept = kGradient ? p.held : 0;
    float most = -INFINITY, sum = 0.0f;
    add_columns<false>(most, sum, row, kept, p.cols, target, nullptr);
    if (kGradient) add_columns<true>(most, sum, row, 0, kept, target, held);
    const Sum rest = block_sum(most, sum);

    // log p = z_y − max z − ln total
    const float max = fmaxf(rest.max, own);
    const double others = rest.sum * power(rest.max, base(max));
    const double total = power(own, max) + others;
    if (threadIdx.x == 0 && p.log_probs) {
        p.log_probs[r * p.log_probs_stride] = (double)own - (double)max - log(total);
    }
    if (!kGradient) return;

    // g_v = −c · e_v / total, from the row's start to its end
    const float factor = p.factors ? p.factors[r * p.factors_stride] : 1.0f;
    const float scale = factor / (float)total;
    auto* gradients = reinterpret_cast<__nv_bfloat16*>(row);
    write_gradients<false>(gradients, held, 0, kept, max, scale);
    int end;
    for (int begin = kept; begin < p.cols; begin = end) {
        end = begin + min(begin, p.cols - begin);
        __syncthreads(); // logits of columns before `begin` are read before gradients of later ones lie there
        write_gradients<true>(gradients, row, begin, end, max, scale);
    }
    __syncthreads(); // −c · p_y before what takes its place
    if (threadIdx.x == 0 && target < p.cols)
        gradients[target] = __float2bfloat16_rn((float)others * scale);
}

// A warp per branch: it reads 32 rows at a time, and every lane adds them all.
__device__ __forceinline__ void branch_sums(const BranchSums& p) {
    const int branch = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (branch >= p.branches) return;
    const int lane = threadIdx.x % kWarp;
    const unsigned begin = p.offsets[branch], end = p.offsets[branch + 1];
    double sum = 0.0;
    if (begin > end || end > p.rows) {
        sum = NAN;
    } else {
        for (long long row = begin; row != end;) {
            const int count = min((int)(end - row), kWarp);
            const float mine = lane < count ? p.log_probs[(row + lane) * p.log_probs_stride] : NAN;
            for (int i = 0; i < count; ++i) {
                sum += __shfl_sync(kAllLanes, mine, i);
            }
            row += count;
        }
    }
    if (lane == 0) p.sums[branch * p.sums_stride] = sum;
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 2)
log_ratio_log_probs_f32(const __grid_constant__ LogRatio p) {
    log_ratio<false>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
log_ratio_gradients_f32(const __grid_constant__ LogRatio p) {
    log_ratio<true>(p);
}
extern "C" __global__ void log_ratio_branch_sums_f32(const __grid_constant__ BranchSums p) {
    branch_sums(p);
}
