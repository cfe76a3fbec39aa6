// forward.cu — attention: every query's softmax over the keys that it sees, in one pass over them.
//   s = q kᵀ      P = softmax(scale · s) over the keys seen      o = P v      lse = log Σ e^(scale · s)
// q o [Tq, heads · dim]    k v [Tk, heads · dim] bf16, by token stride and head stride    lse [heads, Tq] f32
// plan: which tiles of keys a tile of queries visits, and what of them it computes (src/ops/attention/plan.rs).
// Instances for rows of 32, 64, 104 and 128; a dim between (a multiple of 8) runs the next, its rows filled up with zeros.
// Products of bf16 with sums in f32; P is rounded to bf16 relative to a maximum of its row, o once. No atomics, a
// fixed order of keys: the same bytes every time. A query without keys gets o = 0, lse = -inf. NaN stays NaN.
// Moves q, k, v and o once, 2 · dim bytes a row and head, and lse; k and v of a head again for each tile of 128 queries,
// from L2: blocks take the tiles of a head one after another. With S pairs seen, 4 · S · dim FLOP a head: compute bound.
//   8192 tokens causal, 32 heads of 128: 550 GFLOP, floor 0.56 ms at 989 TFLOP/s (H200); 268 MB take 56 us at 4.8 TB/s.
// A warp computes two strips of 16 queries, so that what it reads of k and v serves both; scores of 32 keys are
// in its registers at a time, 64 of them spill at dim 128. kernels/NOTES.md tells the rest.
// Launched by src/ops/attention/cuda/forward.rs; reference in cpu.rs.
#include "../common/math.cuh"
#include "../common/reduce.cuh"
#include "../common/tile.cuh"
#include "plan.cuh"
#include "softmax.cuh"

extern __shared__ __align__(1024) unsigned char shared[];

namespace {

constexpr int kRows = 128; // queries of a tile
constexpr int kThreads = 128;
constexpr int kBlocks = 2;            // of a multiprocessor
constexpr int kWarpRows = 2 * kStrip; // queries of a warp, slot by slot
constexpr int kUnits = 4;             // of keys, whose scores are in registers at a time

struct Forward {
    Heads q, k, v, o;
    float* lse;
    const unsigned* plan;
    long long lse_stride; // elements between heads
    int queries, keys, heads, dim;
    float scale;
    int unused;
};
static_assert(sizeof(Forward) == 144, "as in Rust");

// What lies where in shared memory, in bytes: q by warps and slots, which o replaces in the end; two stages
// of k and v; what each query of q sees; lse by rows of the tile.
template <int kDim>
struct Room {
    static constexpr int kWarpQueries = Tile<kDim>::bytes(kWarpRows);
    static constexpr int kKeys = Tile<kDim>::bytes(kOthers);
    static constexpr int kRanges = Tile<kDim>::bytes(kRows) + 4 * kKeys;
    static constexpr int kLse = kRanges + kRows * sizeof(uint4);
    static __device__ constexpr int queries(int warp) { return warp * kWarpQueries; }
    static __device__ constexpr int keys(int stage) { return 4 * kWarpQueries + 2 * stage * kKeys; }
    static __device__ constexpr int values(int stage) { return keys(stage) + kKeys; }
};

// A tile of one head, as a warp sees it. Read again wherever it is needed: registers are for sums.
struct Item {
    PlannedTile tile;
    int head, warp, lane;

    __device__ __forceinline__ Item(const Plan& plan, int tile, int head)
        : tile(plan.tile(List::kForward, tile)), head(head), warp(threadIdx.x / kWarp),
          lane(threadIdx.x % kWarp) {}

    __device__ __forceinline__ int strip(int slot) const {
        return tile.order >> (8 * warp + 4 * slot) & 0xf;
    }
    // At a row of the warp's.
    __device__ __forceinline__ int query(int row) const {
        return tile.first + kStrip * strip(row / kStrip) + row % kStrip;
    }
    // A tile of queries ends with its last row; it may begin amid them.
    __device__ __forceinline__ bool has(int query) const { return query >= tile.begin; }
};

// Of a warp's two strips: lane l has the rows l / 4 and l / 4 + 8 of each.
template <int kDim>
struct State {
    float o[2][kDim / kUnit][4]; // Σ P v, as an mma gives it
    float max[2][2];             // P = 2^(scale · log2e · s − max)
    float sum[2][2];             // Σ P over the lane's columns
};

using Scores = float[2][kUnits][4];
// P rounded, two neighbours along the keys in each: of a unit, what an mma takes of 16 rows by 8.
using Rounded = unsigned[2][kUnits][2];

// How a lane passes over the chunks of a strip: its column stays, its row steps.
template <int kDim>
struct Way {
    static constexpr int kStep = kWarp / Tile<kDim>::kChunks;
    int row, chunk;

    __device__ __forceinline__ Way(int lane)
        : row(lane / Tile<kDim>::kChunks), chunk(lane % Tile<kDim>::kChunks) {}

    __device__ __forceinline__ bool is_within(int dim) const {
        return row < kStep && chunk * kChunkElements < dim;
    }
};

template <int kDim>
__device__ __forceinline__ void load_queries(const Forward& p, const Plan& plan, const Item& item) {
    using Rows = Tile<kDim>;
    const Way<kDim> way(item.lane);
    const unsigned to = shared_address(shared + Room<kDim>::queries(item.warp));
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
        const int row = slot * kStrip + way.row, first = item.query(row);
        const __nv_bfloat16* source = p.q.row(first, item.head) + way.chunk * kChunkElements;
        if (way.row >= way.kStep) break;
#pragma unroll
        for (int i = 0; i < kStrip; i += way.kStep) {
            copy_chunk(to + Rows::at(row + i, way.chunk), source,
                       way.is_within(p.dim) && item.has(first + i));
            source += way.kStep * p.q.stride;
        }
    }
    const int query = item.query(item.lane);
    uint4* ranges = reinterpret_cast<uint4*>(shared + Room<kDim>::kRanges);
    ranges[threadIdx.x] = item.has(query) ? plan.ranges(query) : uint4{};
}

// Rows beyond those of the entry become zeros. A thread keeps its column, and its place within eight rows: then
// a step further is the same for all, and 8 rows of 104 are whole sectors.
template <int kDim>
__device__ __forceinline__ void
load_rows(int to, const Heads& from, int head, int dim, const Entry& entry) {
    using Rows = Tile<kDim>;
    constexpr int kStep = kThreads / Rows::kChunks / 8 * 8;
    const int row = threadIdx.x / Rows::kChunks, chunk = threadIdx.x % Rows::kChunks;
    if (row >= kStep) return;
    const unsigned at = shared_address(shared + to) + Rows::at(row, chunk);
    const __nv_bfloat16* source = from.row(entry.start + row, head) + chunk * kChunkElements;
    const int there = chunk * kChunkElements < dim ? entry.len - row : 0;
#pragma unroll
    for (int i = 0; i < kOthers; i += kStep) {
        copy_chunk(at + i * Rows::kRowBytes, source, i < there);
        source += kStep * from.stride;
    }
}

// Keys and values of an entry, into the stage that is its turn.
template <int kDim>
__device__ __forceinline__ void
load_entry(const Forward& p, const Plan& plan, const Item& item, int i) {
    const Entry entry = plan.entry(item.tile, i);
    load_rows<kDim>(Room<kDim>::keys(i % 2), p.k, item.head, p.dim, entry);
    load_rows<kDim>(Room<kDim>::values(i % 2), p.v, item.head, p.dim, entry);
}

// Queries and first keys, all where there are no more than two entries. Returns how many there are.
template <int kDim>
__device__ __forceinline__ int load_first(const Forward& p, const Plan& plan, const Item& item) {
    const int count = item.tile.count;
    load_queries<kDim>(p, plan, item);
    if (count > 0) load_entry<kDim>(p, plan, item, 0);
    if (count == 2) load_entry<kDim>(p, plan, item, 1);
    commit_copies();
    return count;
}

// s = q kᵀ, where a strip needs the unit.
template <int kDim, bool kMasked>
__device__ __forceinline__ void
score(Scores& s, unsigned queries, unsigned keys, int lane, const unsigned (&needed)[2]) {
    using Rows = Tile<kDim>;
    constexpr int kChunks = Rows::kChunks;
    const unsigned query = queries + Rows::at(lane % 16, lane / 16);
    const unsigned key = keys + Rows::at(lane / 16 * kUnit + lane % kUnit, lane / kUnit % 2);
#pragma unroll(kMasked ? 1 : kChunks)
    for (int k = 0; k + 1 < kChunks; k += 2) {
        unsigned a[2][4];
        load_matrices(a[0], Rows::along(query, k));
        load_matrices(a[1], Rows::along(query, k) + kStrip * Rows::kRowBytes);
#pragma unroll
        for (int u = 0; u < kUnits; u += 2) {
            if (kMasked && !((needed[0] | needed[1]) >> u & 0b11)) continue;
            unsigned b[4];
            load_matrices(b, Rows::along(key, k) + u * kUnit * Rows::kRowBytes);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int slot = i / 2, half = i % 2;
                if (kMasked && !(needed[slot] >> (u + half) & 1)) continue;
                multiply_add(s[slot][u + half], a[slot], b[2 * half], b[2 * half + 1]);
            }
        }
    }
    if constexpr (kChunks % 2 == 1) {
        static_assert(kUnits == 4, "one load");
        unsigned a[2][2], b[4];
        load_matrices(a[0], queries + Rows::at(lane % 16, kChunks - 1));
        load_matrices(a[1], queries + Rows::at(kStrip + lane % 16, kChunks - 1));
        load_matrices(b, keys + Rows::at(lane, kChunks - 1));
#pragma unroll
        for (int i = 0; i < 2 * kUnits; ++i) {
            const int slot = i / kUnits, unit = i % kUnits;
            if (kMasked && !(needed[slot] >> unit & 1)) continue;
            multiply_add(s[slot][unit], a[slot], b[unit]);
        }
    }
}

// o += P v, where a strip needs one of two units.
template <int kDim, bool kMasked>
__device__ __forceinline__ void accumulate(float (&o)[2][kDim / kUnit][4],
                                           const Rounded& rounded,
                                           unsigned values,
                                           int lane,
                                           const unsigned (&needed)[2]) {
    using Rows = Tile<kDim>;
    constexpr int kChunks = Rows::kChunks;
    const unsigned value = values + Rows::at(lane % 16, lane / 16);
#pragma unroll
    for (int u = 0; u < kUnits; u += 2) {
        if (kMasked && !((needed[0] | needed[1]) >> u & 0b11)) continue;
        unsigned a[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            a[i / 4][i % 4] = rounded[i / 4][u + i % 4 / 2][i % 2];
        }
#pragma unroll
        for (int n = 0; n + 1 < kChunks; n += 2) {
            unsigned b[4];
            load_transposed(b, Rows::along(value, n) + u * kUnit * Rows::kRowBytes);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int slot = i / 2, half = i % 2;
                if (kMasked && !(needed[slot] >> u & 0b11)) continue;
                multiply_add(o[slot][n + half], a[slot], b[2 * half], b[2 * half + 1]);
            }
        }
        if constexpr (kChunks % 2 == 1) {
            unsigned b[2];
            load_transposed(b, values + Rows::at(u * kUnit + lane % 16, kChunks - 1));
#pragma unroll
            for (int slot = 0; slot < 2; ++slot) {
                if (kMasked && !(needed[slot] >> u & 0b11)) continue;
                multiply_add(o[slot][kChunks - 1], a[slot], b[0], b[1]);
            }
        }
    }
}

// The keys of entry `i`, which are in its stage.
template <int kDim, bool kMasked>
__device__ __forceinline__ void
attend(State<kDim>& state, const Item& item, const Entry& entry, int i, float scale) {
    using Room = Room<kDim>;
    const unsigned queries = shared_address(shared + Room::queries(item.warp));
    const uint4* ranges =
        reinterpret_cast<const uint4*>(shared + Room::kRanges) + item.warp * kWarpRows;
#pragma unroll 1
    for (int first = 0; first < kOthers / kUnit; first += kUnits) {
        constexpr unsigned kAll = (1u << kUnits) - 1;
        const unsigned needed[2] = {entry.units(item.strip(0)) >> first & kAll,
                                    entry.units(item.strip(1)) >> first & kAll};
        if (kMasked && (needed[0] | needed[1]) == 0) continue;
        const int row = first * kUnit, at = row * Tile<kDim>::kRowBytes;
        Scores s = {};
        Rounded rounded;
        score<kDim, kMasked>(s, queries, shared_address(shared + Room::keys(i % 2) + at), item.lane,
                             needed);
#pragma unroll
        for (int slot = 0; slot < 2; ++slot) {
            if (kMasked && needed[slot] == 0) continue;
            if (kMasked && !(entry.full >> item.strip(slot) & 1)) {
                mask(s[slot], ranges + slot * kStrip, entry.start + row, entry.len - row,
                     item.lane);
            }
            softmax(rounded[slot], s[slot], state.o[slot], state.max[slot], state.sum[slot], scale);
        }
        accumulate<kDim, kMasked>(
            state.o, rounded, shared_address(shared + Room::values(i % 2) + at), item.lane, needed);
    }
}

// o = Σ P v / Σ P, in the place of q, then from there in whole sectors; lse into shared memory.
template <int kDim>
__device__ __forceinline__ void
store(const Forward& p, const State<kDim>& state, const Item& item) {
    using Rows = Tile<kDim>;
    unsigned char* o = shared + Room<kDim>::queries(item.warp);
    float* lse = reinterpret_cast<float*>(shared + Room<kDim>::kLse);
    const unsigned own = Rows::at(item.lane / 4, 0) + item.lane % 4 * sizeof(unsigned);
    __syncwarp(); // q read by all lanes
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int slot = i / 2, half = i % 2;
        float sum = state.sum[slot][half];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        const int row = kStrip * item.strip(slot) + half * 8 + item.lane / 4;
        lse[row] = (state.max[slot][half] + log2f(sum)) / kLog2e; // of four lanes, the same
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
        for (int n = 0; n < Rows::kChunks; ++n) {
            const float* pair = &state.o[slot][n][half * 2];
            const unsigned at = Rows::along(own, n) + (slot * kStrip + half * 8) * Rows::kRowBytes;
            *reinterpret_cast<unsigned*>(o + at) = pack_pair(pair[0] * inverse, pair[1] * inverse);
        }
    }
    __syncwarp(); // o of all lanes before its reads
    const Way<kDim> way(item.lane);
    if (!way.is_within(p.dim)) return;
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
        const int row = slot * kStrip + way.row, first = item.query(row);
        __nv_bfloat16* to = p.o.row(first, item.head) + way.chunk * kChunkElements;
#pragma unroll
        for (int i = 0; i < kStrip; i += way.kStep) {
            if (item.has(first + i)) {
                *reinterpret_cast<uint4*>(to) =
                    *reinterpret_cast<const uint4*>(o + Rows::at(row + i, way.chunk));
            }
            to += way.kStep * p.o.stride;
        }
    }
}

// In whole sectors, wherever the tile begins.
template <int kDim>
__device__ __forceinline__ void store_lse(const Forward& p, const Item& item) {
    const float* lse = reinterpret_cast<const float*>(shared + Room<kDim>::kLse);
    constexpr int kSector = 32 / sizeof(float);
    const int first = item.tile.begin / kSector * kSector;
    for (int at = first + threadIdx.x; at < item.tile.end; at += kThreads) {
        if (item.has(at)) p.lse[item.head * p.lse_stride + at] = lse[at - item.tile.first];
    }
}

template <int kDim>
__device__ __forceinline__ void forward(const Forward& p) {
    const Plan plan{p.plan};
    plan.check(p.queries, p.keys);
    const int tiles = plan.tiles(List::kForward);
#pragma unroll 1
    for (int i = blockIdx.x; i < tiles * p.heads; i += gridDim.x) {
        const int tile = i % tiles, head = i / tiles;
        const int count = load_first<kDim>(p, plan, Item(plan, tile, head));
        State<kDim> state = {};
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            state.max[row / 2][row % 2] = -INFINITY;
        }
        wait_copies<0>();
        __syncthreads(); // queries, ranges and the first keys before their reads
#pragma unroll 1
        for (int e = 0; e < count; ++e) {
            const bool has_next = e + 1 < count;
            if (e > 0 && has_next) {
                wait_copies<0>();
                __syncthreads(); // this entry's keys before their reads, after those of the one before
            }
            const Item item(plan, tile, head);
            if (count > 2 && has_next) {
                load_entry<kDim>(p, plan, item, e + 1);
                commit_copies();
                if (e + 2 == count) {
                    wait_copies<0>();
                    __syncthreads(); // the last two entries before their reads: the plan pairs strips for it
                }
            }
            const Entry entry = plan.entry(item.tile, e);
            const float scale = p.scale * kLog2e;
            if (entry.full >> item.strip(0) & entry.full >> item.strip(1) & 1) {
                attend<kDim, false>(state, item, entry, e, scale);
            } else {
                attend<kDim, true>(state, item, entry, e, scale);
            }
        }
        const Item item(plan, tile, head);
        store<kDim>(p, state, item);
        __syncthreads(); // keys and values read by all warps, lse written
        store_lse<kDim>(p, item);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
attention_forward_d32_bf16(const __grid_constant__ Forward p) {
    forward<32>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
attention_forward_d64_bf16(const __grid_constant__ Forward p) {
    forward<64>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
attention_forward_d104_bf16(const __grid_constant__ Forward p) {
    forward<104>(p);
}
extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
attention_forward_d128_bf16(const __grid_constant__ Forward p) {
    forward<128>(p);
}
