// sampling.cu — one token of each row of logits: the most likely, or one of the most likely.
//   greedy    the largest logit, the lowest id among equals
//   nucleus   w = exp((x − max x) / temperature)        W = ⌊w · 2⁴⁴⌋
//     order   w falling, ids rising among equals        M(i) = Σ W up to and with i, in this order
//     kept    all up to the first i with M(i) >= top_p · M(last)
//     token   the first i with M(i) > uniform · M(last kept)
// logits [rows, vocab] f32    nucleus: temperature, top_p f32    uniform [rows] f64
// weights [rows, vocab] f32, scratch: w    token [rows] u32
// Rows of logits and weights are whole packs of 16 bytes at multiples of 16 bytes; vocab <= 2¹⁹, so
// that no sum of W overflows.
// NaN never wins: it and −inf weigh 0. A row of nothing else gives token 0. Where the largest is
// +inf only such weigh anything.
// w is rounded operation by operation as in src/ops/sampling/cpu.rs, and W are whole numbers, whose
// sums know no order: the CPU's tokens, always.
// Nothing is sorted: the w that a mass falls on is found 4 bits at a time from the highest, by sums of
// W over the 16 values of the next 4 bits; then the id among equals in the same way.
// greedy reads a row once: 4·rows·vocab bytes. nucleus reads it twice, writes w once, and reads that
// 21 times: 8 for each of the two masses, 5 for the id. A row of Qwen's 151,936 tokens is 608 KB and
// stays in L2: memory is read once, the rest is what one multiprocessor gets out of L2. At 64 bytes
// a clock that is 5 us a pass, 130 us in all for any number of rows up to the multiprocessors':
// 4 % of the 3.3 ms in which the weights of a 7 B model are read for the same tokens.
// A block per row. Launched by src/ops/sampling/cuda.rs; reference in cpu.rs.
#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

// Calls use(pack, first) on the packs of a row of n elements, spread over the block.
template <typename F>
__device__ __forceinline__ void for_each_pack(const float* row, int n, F use) {
    constexpr int kDeep = 4; // packs that are loaded before one is used
    constexpr int kStep = kThreads * kPack<float>;
#pragma unroll 1
    for (int first = threadIdx.x * kPack<float>; first < n; first += kDeep * kStep) {
        Pack<float> packs[kDeep];
#pragma unroll
        for (int k = 0; k < kDeep; ++k) {
            if (first + k * kStep < n) packs[k] = load_pack(row + first + k * kStep);
        }
#pragma unroll
        for (int k = 0; k < kDeep; ++k) {
            if (first + k * kStep < n) use(packs[k], first + k * kStep);
        }
    }
}

// The same by element: use(x, i).
template <typename F>
__device__ __forceinline__ void for_each(const float* row, int n, F use) {
    for_each_pack(row, n, [&](const Pack<float>& pack, int first) {
#pragma unroll
        for (int k = 0; k < kPack<float>; ++k) {
            use(pack.at[k], first + k);
        }
    });
}

// A logit and its token.
struct Best {
    float x;
    unsigned token;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.x > a.x || (b.x == a.x && b.token < a.token) ? b : a;
}

__device__ __forceinline__ Best warp_best(Best best) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        const float x = __shfl_xor_sync(kAllLanes, best.x, lanes);
        const unsigned token = __shfl_xor_sync(kAllLanes, best.token, lanes);
        best = better(best, {x, token});
    }
    return best;
}

// The largest logit of a row, of equals the first; (−inf, 0) where there is none above −inf. Every
// thread gets it; all must call.
__device__ __forceinline__ Best best_of(const float* row, int n) {
    __shared__ Best partial[kWarps];
    Best best = {-INFINITY, 0};
    for_each(row, n, [&](float x, int i) {
        if (x > best.x) best = {x, (unsigned)i}; // ids rise
    });
    best = warp_best(best);
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = best;
    __syncthreads(); // the best of all warps before their reads
    return warp_best(partial[threadIdx.x % kWarps]);
}

// e^x for x <= 0 as ops::math::exp computes it, bit for bit: no product and sum may become one.
__device__ __forceinline__ float exp_as_on_the_cpu(float x) {
    const auto times_plus = [](float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); };
    x = fmaxf(x, -87.3f);
    const float shifted = times_plus(x, 1.44269504f, 12582912.0f);
    const float n = __fsub_rn(shifted, 12582912.0f);
    const float high = __fsub_rn(x, __fmul_rn(n, 0.6933594f));
    const float r = __fsub_rn(high, __fmul_rn(n, -2.1219444e-4f));
    float p = 1.3926176e-3f;
    p = times_plus(p, r, 8.363173e-3f);
    p = times_plus(p, r, 4.1666555e-2f);
    p = times_plus(p, r, 1.6666577e-1f);
    p = times_plus(p, r, 0.5f);
    const float e = __fadd_rn(1.0f, __fadd_rn(r, __fmul_rn(__fmul_rn(r, r), p)));
    const float half = __uint_as_float((__float_as_uint(shifted) + 126u) << 23);
    return __fmul_rn(__fmul_rn(e, half), 2.0f);
}

__device__ __forceinline__ float weigh(float x, float largest, float temperature) {
    if (x == largest) return x == -INFINITY ? 0.0f : 1.0f;
    const float below = __fdiv_rn(__fsub_rn(x, largest), temperature);
    return below <= 0.0f ? exp_as_on_the_cpu(below) : 0.0f; // not so: NaN
}

typedef unsigned long long Mass;

__device__ __forceinline__ Mass mass_of(float weight) {
    return __float2ull_rz(weight * 17592186044416.0f); // 2⁴⁴
}

// Bits of a digit, and its values.
constexpr int kBits = 4;
constexpr int kDigits = 1 << kBits;
// A warp adds what the threads found of a digit.
static_assert(kWarps == kDigits, "a warp per digit");

// Where a mass falls: on the elements of this key; `before` is the mass of those of larger keys.
struct Found {
    unsigned key;
    Mass before;
    Mass target;
};

struct Element {
    unsigned key;
    Mass mass;
};

// Keys fall. Finds the elements on which the mass so far exceeds target_of(total), which is less
// than the total. element(x, i) is i's key, of kKeyBits, and mass. Every thread gets it; all must
// call. The bins may be used again at once.
template <int kKeyBits, typename ElementOf, typename TargetOf>
__device__ __forceinline__ Found
find(const float* row, int n, Mass* bins, ElementOf element, TargetOf target_of) {
    __shared__ Mass sums[kDigits];
    Found found = {};
#pragma unroll 1
    for (int shift = kKeyBits - kBits; shift >= 0; shift -= kBits) {
        Mass* own = bins + threadIdx.x;
        for (int digit = 0; digit < kDigits; ++digit) {
            own[digit * kThreads] = 0;
        }
        for_each(row, n, [&](float x, int i) {
            const Element e = element(x, i);
            const unsigned long long differs = e.key ^ found.key;
            if (differs >> (shift + kBits) != 0) return; // not of the digits found so far
            own[(e.key >> shift) % kDigits * kThreads] += e.mass;
        });
        __syncthreads(); // bins before their reads, all reads of sums before their writes
        const Mass* digit_bins = bins + threadIdx.x / kWarp * kThreads;
        Mass sum = 0;
        for (int thread = threadIdx.x % kWarp; thread < kThreads; thread += kWarp) {
            sum += digit_bins[thread];
        }
        sum = warp_sum(sum);
        if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
        __syncthreads(); // sums before their reads, all reads of bins before their writes
        if (shift == kKeyBits - kBits) {
            Mass total = 0;
            for (int digit = 0; digit < kDigits; ++digit) {
                total += sums[digit];
            }
            found.target = target_of(total);
        }
        int digit = kDigits - 1;
        for (; found.before + sums[digit] <= found.target; --digit) {
            found.before += sums[digit];
        }
        found.key |= (unsigned)digit << shift;
    }
    return found;
}

// ⌊x⌋ of a mass, 0 of what is no number.
__device__ __forceinline__ Mass whole(double x) {
    return __double2ull_rz(fmax(x, 0.0));
}

struct Nucleus {
    float temperature;
    float top_p;
};
static_assert(sizeof(Nucleus) == 8, "as in Rust");

struct Sampling {
    const float* logits;
    const Nucleus* nucleus; // nucleus only, as are uniform and weights
    const double* uniform;
    float* weights;
    unsigned* token;
    long long logits_stride, uniform_stride, weights_stride, token_stride; // elements between rows
    long long vocab;
};
static_assert(sizeof(Sampling) == 80, "as in Rust");

__device__ __forceinline__ unsigned greedy(const Sampling& p) {
    return best_of(p.logits + blockIdx.x * p.logits_stride, (int)p.vocab).token;
}

__device__ __forceinline__ unsigned nucleus(const Sampling& p, Mass* bins) {
    const long long row = blockIdx.x;
    const int vocab = (int)p.vocab;
    const float* logits = p.logits + row * p.logits_stride;
    float* weights = p.weights + row * p.weights_stride;
    const Nucleus nucleus = *p.nucleus;
    const double uniform = p.uniform[row * p.uniform_stride];
    const float largest = best_of(logits, vocab).x;
    for_each_pack(logits, vocab, [&](Pack<float> pack, int first) {
#pragma unroll
        for (int k = 0; k < kPack<float>; ++k) {
            pack.at[k] = weigh(pack.at[k], largest, nucleus.temperature);
        }
        store_pack(weights + first, pack); // which this very thread reads below
    });
    if (largest == -INFINITY) return 0;
    const auto by_weight = [](float weight, int) {
        return Element{__float_as_uint(weight), mass_of(weight)};
    };
    // The last token that is kept, of equals the (target − before) / W-th.
    const Found last = find<32>(weights, vocab, bins, by_weight, [&](Mass total) {
        const Mass part = whole(ceil(__dmul_rn(nucleus.top_p, __ull2double_rn(total))));
        return min(part > 0 ? part - 1 : 0, total - 1);
    });
    const Mass unit = mass_of(__uint_as_float(last.key));
    const Mass kept = last.before + ((last.target - last.before) / unit + 1) * unit;
    const Found drawn = find<32>(weights, vocab, bins, by_weight, [&](Mass) {
        return min(whole(__dmul_rn(uniform, __ull2double_rn(kept))), kept - 1);
    });
    const Mass rank = (drawn.target - drawn.before) / mass_of(__uint_as_float(drawn.key));
    // Its id: those of equals rise, the keys fall.
    constexpr int kIdBits = 20;
    constexpr unsigned kLast = (1u << kIdBits) - 1;
    const auto by_id = [&](float weight, int i) {
        return Element{kLast - i, __float_as_uint(weight) == drawn.key ? 1ull : 0ull};
    };
    const Found id = find<kIdBits>(weights, vocab, bins, by_id, [&](Mass) { return rank; });
    return kLast - id.key;
}

} // namespace

// A block per row.
extern "C" __global__ void __launch_bounds__(kThreads)
sampling_greedy_f32(const __grid_constant__ Sampling p) {
    const unsigned token = greedy(p);
    if (threadIdx.x == 0) p.token[blockIdx.x * p.token_stride] = token;
}
// A block per row, with kDigits · kThreads sums in dynamic shared memory.
extern "C" __global__ void __launch_bounds__(kThreads)
sampling_nucleus_f32(const __grid_constant__ Sampling p) {
    extern __shared__ Mass bins[];
    const unsigned token = nucleus(p, bins);
    if (threadIdx.x == 0) p.token[blockIdx.x * p.token_stride] = token;
}
