// forward.cu — pictures cut into square patches, each patch a row of the vision tower.
//   v = byte · scale + shift     x = patches(v) · wᵀ + position
//   m = mean(x)      r = rsqrt(mean((x − m)²) + eps)      y = (x − m) · r · lw + lb
// pixels u8 [n, S·S·3]: rows, columns, channels    p: side of a patch    P = (S / p)² patches of a picture
// w [width, k] bf16, k = 3·p·p rounded up to 16: (channel, y, x), then any finite    position [P, width] bf16
// x (unless null) y [n·P, width] bf16    lw lb [width] bf16    m r [n·P] f32    width is a multiple of 16
// v is rounded to bf16, products are summed in f32, x and y are rounded once; m, r and y are those of x
// before it is rounded. A fixed order of sums, no atomics.
// 2·n·P·width·3·p·p FLOP. DRAM: pixels, w, position, y (and x), each once. L2: w again for every 32 patches.
//   8192 patches of 14 × 14, width 1664: 16 GFLOP, 38 MB; floors 16 us (989 TFLOP/s) and 8 us (4.8 TB/s)
//   on H200. What binds is w from L2, 504 MB: 92 us at 5.5 TB/s (reckoned), 0.2 % of the tower's pass.
// A block takes 32 patches and whole rows, 208 columns a warp in registers, so that x meets its
// statistics there. Wider rows go by parts of 1664 columns: once for the statistics, once more to store.
// A warp copies its own rows of w, behind no barrier but its own. Launched by src/ops/patch_embed/cuda.rs;
// reference in cpu.rs; the design in NOTES.md.
#include "common/tile.cuh"
#include "patch_embed/pixels.cuh"

namespace {

struct Forward {
    Pixels pixels;
    const bf16* weight;
    const bf16* position;
    const bf16* norm_weight;
    const bf16* norm_bias;
    bf16* x; // null: not wanted
    bf16* y;
    float* mean;
    float* rstd;
    long long weight_stride, position_stride, x_stride, y_stride, mean_stride, rstd_stride;
    int width;
    float eps;
};
static_assert(sizeof(Forward) == 176, "as in Rust");

// Columns of a unit, two blocks of an mma, and units of a warp: 2 · 2 · 4 accumulators each.
constexpr int kUnit = 16;
constexpr int kUnits = 13;
constexpr int kColumns = kWarps * kUnits * kUnit; // of a block at a time
constexpr int kStrips = kPatches / kSide;
// Rows of a lane: l / 4 and l / 4 + 8 of each strip.
constexpr int kRows = 2 * kStrips;
// Columns of a lane, of each unit.
constexpr int kQuad = 4;
using Quad = Pack<bf16, kQuad>;

// A warp's weights, kSide of k at a time, in two stages. A stage is copied in two pieces, of which three
// are under way while one is multiplied.
using UnitTile = Tile<kSide>;
constexpr int kUnitBytes = UnitTile::bytes(kUnit);
constexpr int kWarpStage = kUnits * kUnitBytes;
constexpr int kStage = kWarps * kWarpStage;
constexpr int kFirstPiece = (kUnits + 1) / 2; // units

struct alignas(8) Moments {
    float mean, squares; // Σ (x − mean)²
};

// Shared memory of a block beside the bytes and values of its patches.
struct Shared {
    float partial[2][kWarps][kPatches]; // Σ x of each warp, then Σ (x − mean)²
    Moments moments[kWarps][kPatches];  // of the columns so far; the same in each warp
    const unsigned char* corners[kPatches];
};
static_assert(sizeof(Shared) == 4352, "as in Rust");

// A lane's chunk of each unit's weights, and where it goes. The columns of a unit take places in the two
// blocks so that a lane's accumulators are those of four columns side by side.
struct Weights {
    const bf16* from;
    long long unit_stride;
    unsigned to;
    int units; // that are there; zeros for the others
    int steps; // of kSide of k

    // The units from kBegin to kEnd at step k, as a group of copies.
    template <int kBegin, int kEnd>
    __device__ __forceinline__ void copy(int k) const {
        if (k < steps) {
            const unsigned stage = to + k % 2 * kStage;
#pragma unroll
            for (int u = kBegin; u < kEnd; ++u) {
                copy_chunk(stage + u * kUnitBytes, from + u * unit_stride + k * kSide, u < units);
            }
        }
        commit_copies();
    }
};

__device__ __forceinline__ Weights
weights_of(const Forward& p, int col, int units, int steps, unsigned ring) {
    const int lane = threadIdx.x % kWarp, place = lane / 2, chunk = lane % 2;
    const int column = place % 8 / 2 * kQuad + place / 8 * 2 + place % 2;
    const long long row = units > 0 ? col + column : 0;
    return {p.weight + row * p.weight_stride + chunk * kChunkElements, kUnit * p.weight_stride,
            ring + UnitTile::at(place, chunk), units, steps};
}

using Sums = float[kUnits][kStrips][2][4]; // the last two as multiply_add has them, of two blocks

// sums += a · units kBegin to kEnd of a stage
template <int kBegin, int kEnd>
__device__ __forceinline__ void
multiply_units(Sums& sums, const unsigned (&a)[kStrips][4], unsigned stage) {
#pragma unroll
    for (int u = kBegin; u < kEnd; ++u) {
        unsigned b[4];
        load_matrices(b, stage + u * kUnitBytes);
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) {
            multiply_add(sums[u][strip][0], a[strip], b[0], b[1]);
            multiply_add(sums[u][strip][1], a[strip], b[2], b[3]);
        }
    }
}

// sums += patches · wᵀ, of the columns of this warp; three pieces are on their way.
__device__ __forceinline__ void
multiply(Sums& sums, const Weights& weights, unsigned values, int values_pitch, unsigned ring) {
    const int lane = threadIdx.x % kWarp;
    const unsigned a_at = values + lane % kSide * values_pitch + lane / kSide * kChunk;
    const unsigned b_at = ring + UnitTile::at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll 1
    for (int k = 0; k < weights.steps; ++k) {
        unsigned a[kStrips][4];
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) {
            load_matrices(a[strip], a_at + strip * kSide * values_pitch + 2 * k * kChunk);
        }
        const unsigned stage = b_at + k % 2 * kStage;
        wait_copies<2>();
        __syncwarp(); // the copies of all lanes before their reads; reads of the last piece before new copies
        weights.copy<kFirstPiece, kUnits>(k + 1);
        multiply_units<0, kFirstPiece>(sums, a, stage);
        wait_copies<2>();
        __syncwarp(); // as above
        weights.copy<0, kFirstPiece>(k + 2);
        multiply_units<kFirstPiece, kUnits>(sums, a, stage);
    }
}

// Row r of a lane, in its block.
__device__ __forceinline__ int row_of(int r) {
    return r * 8 + threadIdx.x % kWarp / 4;
}

// The four columns of a unit that are this lane's, of its row r: two of each block.
__device__ __forceinline__ float& sum_at(Sums& sums, int unit, int r, int i) {
    return sums[unit][r / 2][i / 2][r % 2 * 2 + i % 2];
}

// Σ over the lanes of a row, to the warp's place in `partial`.
__device__ __forceinline__ void share_sum(float x, float (&partial)[kWarps][kPatches], int r) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    x += __shfl_xor_sync(kAllLanes, x, 2);
    if (threadIdx.x % 4 == 0) partial[threadIdx.x / kWarp][row_of(r)] = x;
}

// Σ over the warps.
__device__ __forceinline__ float shared_sum(const float (&partial)[kWarps][kPatches], int r) {
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) {
        sum += partial[warp][row_of(r)];
    }
    return sum;
}

// The moments of the rows, `before` columns of which are known, with `cols` more, to be read
// after a barrier of the warp; all threads must call.
__device__ __forceinline__ void
add_moments(Shared& shared, Sums& sums, int units, int before, int cols) {
    auto& [level, spread] = shared.partial;
    __syncthreads(); // reads of sums of the columns before, before writes of these
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        float sum = 0.0f;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
#pragma unroll
            for (int i = 0; i < kQuad; ++i) {
                sum += sum_at(sums, u, r, i);
            }
        }
        share_sum(sum, level, r);
    }
    __syncthreads(); // sums of all warps before their reads
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const float mean = shared_sum(level, r) / cols;
        float squares = 0.0f;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            if (u >= units) continue;
#pragma unroll
            for (int i = 0; i < kQuad; ++i) {
                const float x = sum_at(sums, u, r, i) - mean;
                squares = fmaf(x, x, squares);
            }
        }
        share_sum(squares, spread, r);
    }
    __syncthreads(); // squares of all warps before their reads
    // Σ (x − mean)² = Σ of both parts + δ² · before · cols / (before + cols), with δ between their means
    const float share = static_cast<float>(cols) / (before + cols);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        Moments& all = shared.moments[threadIdx.x / kWarp][row_of(r)];
        const Moments old = before > 0 ? all : Moments{};
        const float apart = shared_sum(level, r) / cols - old.mean;
        const float squares = shared_sum(spread, r) + apart * apart * before * share;
        __syncwarp(); // reads of the lanes of a row before the write of one
        if (threadIdx.x % 4 == 0) all = {old.mean + apart * share, old.squares + squares};
    }
}

// Four columns, rounded. Rows are counted in these: of `y + quad` nvcc makes two stores, now and then.
__device__ __forceinline__ uint2 round_quad(float a, float b, float c, float d) {
    return {pack_pair(a, b), pack_pair(c, d)};
}

// x rounded, and y = (x − mean) · r · weight + bias, of the columns of this warp from `col` on.
__device__ __forceinline__ void store_rows(const Forward& p,
                                           const Shared& shared,
                                           Sums& sums,
                                           const bf16* norm,
                                           int units,
                                           int first,
                                           int col) {
    const int lane = threadIdx.x % kWarp, quad = lane % 4 * kQuad;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const int row = first + row_of(r);
        if (row >= p.pixels.patches) continue;
        const Moments moments = shared.moments[threadIdx.x / kWarp][row_of(r)];
        const float rstd = rsqrtf(moments.squares / p.width + p.eps);
        if (threadIdx.x < kWarp && lane % 4 == 0) {
            p.mean[row * p.mean_stride] = moments.mean;
            p.rstd[row * p.rstd_stride] = rstd;
        }
        auto* y = reinterpret_cast<uint2*>(p.y + row * p.y_stride + col) + lane % 4;
        auto* x = reinterpret_cast<uint2*>(p.x + row * p.x_stride + col) + lane % 4;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            if (u >= units) continue;
            const Quad weight = load_pack<bf16, kQuad>(norm + u * kUnit + quad);
            const Quad bias = load_pack<bf16, kQuad>(norm + (kUnits + u) * kUnit + quad);
            float out[kQuad];
#pragma unroll
            for (int i = 0; i < kQuad; ++i) {
                const float normal = (sum_at(sums, u, r, i) - moments.mean) * rstd;
                out[i] = fmaf(normal, to_float(weight.at[i]), to_float(bias.at[i]));
            }
            y[u * kUnit / kQuad] = round_quad(out[0], out[1], out[2], out[3]);
            if (p.x == nullptr) continue;
            x[u * kUnit / kQuad] = round_quad(sum_at(sums, u, r, 0), sum_at(sums, u, r, 1),
                                              sum_at(sums, u, r, 2), sum_at(sums, u, r, 3));
        }
    }
}

// Bytes, then normalised values, of the patches of a block: rows of `pitch`, zeros behind the values.
__device__ __forceinline__ void load_values(
    const Forward& p, Shared& shared, unsigned char* pixels, bf16* values, int pitch, int first) {
    constexpr int kAtOnce = 20;
    const int side = p.pixels.patch, patches = min(kPatches, p.pixels.patches - first);
    const Window whole{0, 0, side, side};
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (warp == 0) shared.corners[lane] = corner_of(p.pixels, first + lane);
    __syncthreads(); // corners before their reads
    const int count = side * kPatches * 3 * side / p.pixels.piece;
#pragma unroll 1
    for (int at = threadIdx.x; at < count; at += kAtOnce * kThreads) {
        Pieces<kAtOnce> pieces(p.pixels, whole, at);
        pieces.load(p.pixels, shared.corners, patches);
        pieces.store(p.pixels, pixels, patches);
    }
    __syncthreads(); // pixels before their reads
#pragma unroll 1
    for (int k = lane; k < pitch; k += kWarp) {
        const int channel = quotient(k, 1.0f / (side * side)), pixel = k - channel * side * side;
        const int y = quotient(pixel, 1.0f / side), x = pixel - y * side;
        const int byte = y * whole.pitch() + 3 * x + channel;
        const Source source(p.pixels, channel < 3, byte, min(channel, 2));
#pragma unroll
        for (int i = warp; i < kPatches; i += kWarps) {
            values[i * pitch + k] = source.value(pixels + i * whole.bytes(), i < patches);
        }
    }
    __syncthreads(); // values before their reads, and reads of the pixels before the weights in their place
}

extern __shared__ __align__(128) unsigned char memory[];

// The second stage of weights and the pixels share their place: stage | stage or pixels | Shared | values.
__device__ __forceinline__ void forward(const Forward& p) {
    const int side = p.pixels.patch;
    const int steps = (3 * side * side + kSide - 1) / kSide;
    const int pitch = steps * kSide + kChunkElements; // chunks odd in number: no conflicts
    const int pixel_bytes = kPatches * Window{0, 0, side, side}.bytes();
    unsigned char* const behind = memory + kStage + max(kStage, (pixel_bytes + 15) / 16 * 16);
    Shared& shared = *reinterpret_cast<Shared*>(behind);
    bf16* const values = reinterpret_cast<bf16*>(behind + sizeof(Shared));

    const int first = blockIdx.x * kPatches, period = p.pixels.grid * p.pixels.grid;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const unsigned ring = shared_address(memory) + warp * kWarpStage;
    const int chunks = (p.width - 1) / kColumns + 1;
    const int turns = chunks == 1 ? 1 : 2 * chunks;
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
        const int start = turn % chunks * kColumns, col = start + warp * kUnits * kUnit;
        const int units = min(max((p.width - col) / kUnit, 0), kUnits);
        const Weights weights = weights_of(p, col, units, steps, ring);
        __syncwarp(); // reads of the last turn's norm before the copies in its place
        weights.copy<0, kFirstPiece>(0);
        weights.copy<kFirstPiece, kUnits>(0);
        if (turn == 0) load_values(p, shared, memory + kStage, values, pitch, first);
        weights.copy<0, kFirstPiece>(1);

        // x = position + patches · wᵀ
        Sums sums;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const int row = first + row_of(r);
            const bf16* position =
                p.position + row % period * p.position_stride + col + lane % 4 * kQuad;
#pragma unroll
            for (int u = 0; u < kUnits; ++u) {
                const Quad pack = u < units ? load_pack<bf16, kQuad>(position + u * kUnit) : Quad{};
#pragma unroll
                for (int i = 0; i < kQuad; ++i) {
                    sum_at(sums, u, r, i) = to_float(pack.at[i]);
                }
            }
        }
        multiply(sums, weights, shared_address(values), pitch * sizeof(bf16), ring);

        const bool measures = turn < chunks, stores = turn >= turns - chunks;
        if (stores) {
            // Weight and bias of the norm, of the columns of this warp, side by side, in the place of a first
            // piece of weights: its reads came before the last barrier of the warp.
            static_assert(4 * kUnits * kChunk <= kFirstPiece * kUnitBytes, "in one place");
            for (int chunk = lane; chunk < 2 * units; chunk += kWarp) {
                const int at = chunk * kChunkElements;
                copy_chunk(ring + chunk * kChunk, p.norm_weight + col + at, true);
                copy_chunk(ring + (2 * kUnits + chunk) * kChunk, p.norm_bias + col + at, true);
            }
        }
        commit_copies();
        if (measures) add_moments(shared, sums, units, start, min(kColumns, p.width - start));
        if (stores) {
            wait_copies<0>();
            __syncwarp(); // moments, and norms that other lanes copied, before their reads
            const bf16* norm = reinterpret_cast<const bf16*>(memory + warp * kWarpStage);
            store_rows(p, shared, sums, norm, units, first, col);
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1)
patch_embed_forward_bf16(const __grid_constant__ Forward p) {
    forward(p);
}
