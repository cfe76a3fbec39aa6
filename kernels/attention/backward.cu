// backward.cu — attention: gradients of q, k and v. P is computed anew from lse, dP from dO and v.
//   P = e^(scale · q kᵀ − lse) of the keys seen      dP = dO vᵀ      dS = P · (dP − delta)
//   dq = scale · dS k      dk = scale · dSᵀ q      dv = Pᵀ dO
// q d_o dq [Tq, heads · dim]    k v dk dv [Tk, heads · dim] bf16, by token stride and head stride
// lse delta [heads, Tq] f32    plan: as forward.cu, its lists of tiles of 64 queries and of 64 keys
// Instances for rows of 32, 64, 104 and 128; a dim between (a multiple of 8) runs the next, its rows filled up with zeros.
// Products of bf16 with sums in f32; P and dS are rounded to bf16 before theirs, gradients once, after `scale`. Where
// nobody sees a row, and where it sees none, the gradient is 0. NaN stays NaN.
// Deterministic: a tile's sums are its own, over the others in the order of the plan; no atomics. The price is that
// P and dP are computed twice, for tiles of queries and for tiles of keys: 7 products of S · dim where an order
// that is not fixed takes 5. With S pairs seen 14 · S · dim FLOP a head, 10 needed: compute bound.
//   8192 tokens causal, 32 heads of 128: 1.92 TFLOP (1.37 needed), floor 1.95 ms (1.39) at 989 TFLOP/s (H200); q, k, v,
//   d_o read and dq, dk, dv written, 470 MB, take 98 us at 4.8 TB/s.
// Two pairs of warps, two strips each (pair.cuh). Of keys, one warp of a pair sums dk and the other dv: each hands
// the other what it needs of its units, fragment by fragment. Of queries each sums dq over its units,
// and the two are added in the end. kernels/NOTES.md tells the rest.
// Launched by src/ops/attention/cuda/backward.rs; reference in cpu.rs.
#include "../common/barrier.cuh"
#include "../common/math.cuh"
#include "../common/reduce.cuh"
#include "../common/tile.cuh"
#include "pair.cuh"
#include "plan.cuh"

namespace {

constexpr int kRows = 64; // of a tile
constexpr int kThreads = 128;
constexpr int kPairThreads = 2 * kWarp;

struct Backward {
    Heads q, k, v, d_o, dq, dk, dv;
    const unsigned* plan;
    const float* lse;
    const float* delta;
    long long lse_stride, delta_stride; // elements between heads
    int queries, keys, heads, dim;
    float scale;
    int unused;
};
static_assert(sizeof(Backward) == 232, "as in Rust");

// Shared memory, in bytes: own rows, two stages of others, what the warps of a pair hand to each other, and two
// stages of log-sum-exp and delta.
template <int kDim>
struct Room {
    static constexpr int kTile = Tile<kDim>::bytes(kRows);
    static constexpr int kHanded = sizeof(Rounded) * kWarp; // of a warp
    static constexpr int kStatistics = 2 * kRows * sizeof(float);
    static __device__ constexpr int own(int i) { return i * kTile; }
    static __device__ constexpr int others(int stage, int i) { return (2 + 2 * stage + i) * kTile; }
    static __device__ constexpr int handed(int warp) { return 6 * kTile + warp * kHanded; }
    static __device__ constexpr int statistics(int stage) {
        return handed(4) + stage * kStatistics;
    }
};

// How the threads take the 64 rows of a tile, a chunk each: so many rows at a time, whose chunks lie in the
// same places as those of the rows after them. A chunk of shared memory is always the same thread's: it
// stores a gradient from where it then copies a row of the next tile to.
template <int kDim>
struct Turn {
    static constexpr int kChunks = Tile<kDim>::kChunks;
    static constexpr int kTurn = kThreads / kChunks / 8 * 8;
    static constexpr int kBytes = kTurn * Tile<kDim>::kRowBytes;
    int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;

    // Whether this thread takes part, and its chunk is one of a head.
    __device__ __forceinline__ bool held(int dim) const {
        return row < kTurn && chunk * kChunkElements < dim;
    }
};

// Rows first to first + 63 of a head; zeros outside of begin to end, and beyond the columns of a head.
template <int kDim>
__device__ __forceinline__ void
load_rows(unsigned to, const Heads& from, int head, int dim, int first, int begin, int end) {
    const Turn<kDim> turn;
    if (turn.row >= turn.kTurn) return;
    const unsigned held = turn.held(dim) ? end - begin : 0;
    const __nv_bfloat16* source = from.row(first + turn.row, head) + turn.chunk * kChunkElements;
    to += Tile<kDim>::at(turn.row, turn.chunk);
#pragma unroll
    for (int i = 0; i < kRows / turn.kTurn; ++i) {
        const int row = first + turn.row + i * turn.kTurn;
        copy_chunk(to + i * turn.kBytes, source, unsigned(row - begin) < held);
        source += turn.kTurn * from.stride;
    }
}

// Log-sum-exp of 64 queries, then delta of these.
__device__ __forceinline__ void
load_statistics(unsigned to, const Backward& p, int head, int first, int begin, int end) {
    const int at = first + threadIdx.x % kRows;
    const bool is_there = at >= begin && at < end;
    const float* lse = p.lse + head * p.lse_stride;
    const float* delta = p.delta + head * p.delta_stride;
    const float* from = threadIdx.x < kRows ? lse : delta;
    copy_word(to + threadIdx.x * sizeof(float), from + (is_there ? at : begin), is_there);
}

// What a warp has to know of an entry that is in shared memory.
struct Visit {
    unsigned own[2], others[2];
    const float* statistics;
    uint4* handed; // of the first warp of the pair
    unsigned units[2];
    unsigned seen;
};

template <int kDim, bool kKeys, bool kMasked>
__device__ __forceinline__ void
visit(Sums<kDim>& sums, const Visit& at, const Share& share, float scale) {
    // P = 2^(scale · log2e · X₁ − log2e · lse), X₁ = own₁ · others₁ᵀ
    Scores x = {};
    multiply<kDim, kMasked>(x, at.own[0], at.others[0], share, at.units);
    const OfQueries<kKeys> lse(at.statistics, share);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float p =
                    exp2_flushed(fmaf(x[s][i][e], scale * kLog2e, -kLog2e * lse.at(s, i, e)));
                const bool is_seen = !kMasked || at.seen >> (4 * (kUnits * s + i) + e) & 1;
                x[s][i][e] = is_seen ? p : 0.0f;
            }
        }
    }
    // dS = P · (dP − delta), dP = own₂ · others₂ᵀ
    Scores ds = {};
    multiply<kDim, kMasked>(ds, at.own[1], at.others[1], share, at.units);
    const OfQueries<kKeys> delta(at.statistics + kRows, share);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                ds[s][i][e] = x[s][i][e] * (ds[s][i][e] - delta.at(s, i, e));
            }
        }
    }
    Rounded gradient;
    round_to(gradient, ds);
    if constexpr (!kKeys) {
        accumulate<kDim, kMasked>(sums, gradient, at.others[0], share.half, share.lane, at.units);
    } else {
        Rounded p;
        round_to(p, x);
        const int half = share.half;
        uint4* given = at.handed + half * (sizeof(Rounded) / sizeof(uint4)) * kWarp + share.lane;
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
            for (int i = 0; i < kUnits; i += 2) {
                uint4 words;
                words.x = half ? gradient[s][i][0] : p[s][i][0];
                words.y = half ? gradient[s][i][1] : p[s][i][1];
                words.z = half ? gradient[s][i + 1][0] : p[s][i + 1][0];
                words.w = half ? gradient[s][i + 1][1] : p[s][i + 1][1];
                given[(s * kUnits + i) / 2 * kWarp] = words;
            }
        }
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
            for (int i = 0; i < kUnits; ++i) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    p[s][i][h] = half ? p[s][i][h] : gradient[s][i][h];
                }
            }
        }
        const unsigned others = half ? at.others[1] : at.others[0];
        accumulate<kDim, kMasked>(sums, p, others, half, share.lane, at.units);
        sync_some<kPairThreads>(1 + share.pair); // what is given before it is taken
        const uint4* taken =
            at.handed + (1 - half) * (sizeof(Rounded) / sizeof(uint4)) * kWarp + share.lane;
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
            for (int i = 0; i < kUnits; i += 2) {
                const uint4 words = taken[(s * kUnits + i) / 2 * kWarp];
                p[s][i][0] = words.x, p[s][i][1] = words.y;
                p[s][i + 1][0] = words.z, p[s][i + 1][1] = words.w;
            }
        }
        accumulate<kDim, kMasked>(sums, p, others, 1 - half, share.lane, at.units);
    }
}

// A strip of gradients, times `scale` and rounded, into a tile of shared memory.
template <int kDim>
__device__ __forceinline__ void
put(char* tile, const float (&sums)[kDim / kUnit][4], int strip, int lane, float scale) {
#pragma unroll
    for (int c = 0; c < kDim / kUnit; ++c) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = kStrip * strip + lane / 4 + 8 * h;
            const unsigned two = pack_pair(sums[c][2 * h] * scale, sums[c][2 * h + 1] * scale);
            char* at = tile + Tile<kDim>::at(row, c) + lane % 4 * sizeof(unsigned);
            *reinterpret_cast<unsigned*>(at) = two;
        }
    }
}

// The tile's own rows of a head.
template <int kDim>
__device__ __forceinline__ void
store_rows(const Heads& to, int head, int dim, const char* from, const PlannedTile& tile) {
    const Turn<kDim> turn;
    const unsigned held = turn.held(dim) ? tile.end - tile.begin : 0;
    from += Tile<kDim>::at(turn.row, turn.chunk);
#pragma unroll
    for (int i = 0; i < kRows / turn.kTurn; ++i) {
        const int row = tile.first + turn.row + i * turn.kTurn;
        if (unsigned(row - tile.begin) < held) {
            const uint4 words = *reinterpret_cast<const uint4*>(from + i * turn.kBytes);
            reinterpret_cast<uint4*>(to.row(row, head))[turn.chunk] = words;
        }
    }
}

// One strip of a pair to each of its warps, which so far have the sums over half of the others each.
template <int kDim>
__device__ __forceinline__ void add_halves(float (&finished)[kDim / kUnit][4],
                                           const Sums<kDim>& sums,
                                           const Share& share,
                                           char* room) {
    constexpr int kChunks = kDim / kUnit;
    float4* given = reinterpret_cast<float4*>(room) + share.lane;
    const int warp = 2 * share.pair + share.half;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        float give[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            give[e] = share.half ? sums[0][c][e] : sums[1][c][e];
        }
        given[(warp * kChunks + c) * kWarp] = {give[0], give[1], give[2], give[3]};
    }
    sync_some<kPairThreads>(1 + share.pair); // what is given before it is taken
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
        const float4 taken = given[((warp ^ 1) * kChunks + c) * kWarp];
        const float more[4] = {taken.x, taken.y, taken.z, taken.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            finished[c][e] = (share.half ? sums[1][c][e] : sums[0][c][e]) + more[e];
        }
    }
}

// Tile `index` of the keys, dK and dV; or of the queries, dQ.
template <int kDim, bool kKeys>
__device__ __forceinline__ void
work(const Backward& p, const Plan& plan, int index, int head, char* room) {
    using At = Room<kDim>;
    constexpr List kList = kKeys ? List::kKeyGradient : List::kQueryGradient;
    const unsigned shared = shared_address(room);
    const int warp = threadIdx.x / kWarp;
    const PlannedTile tile = plan.tile(kList, index);
    Share share{warp / 2, warp % 2, (int)(threadIdx.x % kWarp), {}};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
        share.strips[s] = tile.order >> 4 * (2 * share.pair + s) & 0xf;
    }
    const auto load_own = [&] {
        const int first = tile.first, begin = tile.begin, end = tile.end;
        const Heads &one = kKeys ? p.k : p.q, &two = kKeys ? p.v : p.d_o;
        load_rows<kDim>(shared + At::own(0), one, head, p.dim, first, begin, end);
        load_rows<kDim>(shared + At::own(1), two, head, p.dim, first, begin, end);
        if (!kKeys) load_statistics(shared + At::statistics(0), p, head, first, begin, end);
    };
    const auto load_entry = [&](unsigned i) {
        const Entry entry = plan.entry(tile, i);
        const int stage = i % 2, begin = entry.start, end = begin + entry.len;
        const Heads &one = kKeys ? p.q : p.k, &two = kKeys ? p.d_o : p.v;
        load_rows<kDim>(shared + At::others(stage, 0), one, head, p.dim, begin, begin, end);
        load_rows<kDim>(shared + At::others(stage, 1), two, head, p.dim, begin, begin, end);
        if (kKeys) load_statistics(shared + At::statistics(stage), p, head, begin, begin, end);
    };
    load_own();
    if (tile.count) load_entry(0);
    commit_copies();

    Sums<kDim> sums = {};
#pragma unroll 1
    for (unsigned i = 0; i < tile.count; ++i) {
        const int stage = i % 2;
        const Entry entry = plan.entry(tile, i);
        wait_copies<0>();
        __syncthreads(); // this entry before its reads; reads of the entry before this before the next one
        if (i + 1 < tile.count) load_entry(i + 1);
        commit_copies();
        Visit at{
            {shared + At::own(0), shared + At::own(1)},
            {shared + At::others(stage, 0), shared + At::others(stage, 1)},
            reinterpret_cast<const float*>(room + At::statistics(kKeys ? stage : 0)),
            reinterpret_cast<uint4*>(room + At::handed(2 * share.pair)),
            {entry.units(share.strips[0]), entry.units(share.strips[1])},
            0,
        };
        if (entry.full >> share.strips[0] & entry.full >> share.strips[1] & 1) {
            visit<kDim, kKeys, false>(sums, at, share, p.scale);
        } else {
            at.seen = seen_by<kKeys>(plan, tile, entry, share);
            visit<kDim, kKeys, true>(sums, at, share, p.scale);
        }
    }
    wait_copies<0>();
    __syncthreads(); // reads of rows before what takes their place
    char* gradients[2] = {room + At::others(0, 0), room + At::others(0, 1)};
    if constexpr (kKeys) {
        const float scale = share.half ? 1.0f : p.scale;
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            char* to = share.half ? gradients[1] : gradients[0];
            put<kDim>(to, sums[s], share.strips[s], share.lane, scale);
        }
    } else {
        float finished[kDim / kUnit][4];
        add_halves<kDim>(finished, sums, share, room + At::own(0));
        const int strip = share.half ? share.strips[1] : share.strips[0];
        put<kDim>(gradients[0], finished, strip, share.lane, p.scale);
    }
    __syncthreads(); // gradients of all strips before their reads
    const PlannedTile done =
        plan.tile(kList, index); // again: registers for it in the loop would spill
    store_rows<kDim>(kKeys ? p.dk : p.dq, head, p.dim, gradients[0], done);
    if (kKeys) store_rows<kDim>(p.dv, head, p.dim, gradients[1], done);
}

// Every tile of every head, head after head: those at work at one time share theirs in L2. Of a head keys
// first, which take longer, and the longest of each first.
template <int kDim>
__device__ __forceinline__ void backward(const Backward& p) {
    // at a multiple of any row's bytes, as Tile::along wants
    extern __shared__ __align__(Tile<128>::kRowBytes) char room[];
    const Plan plan{p.plan};
    plan.check(p.queries, p.keys);
    const int of_keys = plan.tiles(List::kKeyGradient);
    const int tiles = of_keys + plan.tiles(List::kQueryGradient);
#pragma unroll 1
    for (int item = blockIdx.x; item < tiles * p.heads; item += gridDim.x) {
        const int head = item / tiles, i = item % tiles;
        if (i < of_keys) {
            work<kDim, true>(p, plan, i, head, room);
        } else {
            work<kDim, false>(p, plan, i - of_keys, head, room);
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 2)
attention_backward_d32_bf16(const __grid_constant__ Backward p) {
    backward<32>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, 2)
attention_backward_d64_bf16(const __grid_constant__ Backward p) {
    backward<64>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, 2)
attention_backward_d104_bf16(const __grid_constant__ Backward p) {
    backward<104>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, 2)
attention_backward_d128_bf16(const __grid_constant__ Backward p) {
    backward<128>(p);
}
