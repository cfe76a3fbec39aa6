// backward.cu — the weight's gradient of patch embedding.
//   dw += dxᵀ · patches(v)      v = byte · scale + shift, as in forward.cu
// pixels u8 [n, S·S·3]    dx [n·P, width] bf16, of the sum before ln_pre    dw [width, 3·p·p] f32: (channel, y, x)
// v is rounded to bf16, products are summed in f32 in the order of the patches; no atomics.
// 2·n·P·width·3·p·p FLOP. DRAM: pixels and dx once, dw read and written. L2: dx for each window of a
// patch, pixels for each 128 columns of dx.
//   8192 patches of 14 × 14, width 1664: 16 GFLOP, 40 MB; floors 16 us (989 TFLOP/s) and 8 us (4.8 TB/s)
//   on H200; 191 MB of dx and 63 MB of pixels from L2: 46 us at 5.5 TB/s (reckoned). What binds is issue: some 580
//   PTX instructions a warp for 32 patches (counted), 22 of them products: 170 us if SASS has as many.
// A block takes 128 columns of dx and a window of every patch, 2 of 14 pixel rows: 91 blocks. Within a window values
// keep the order of the bytes, so that blocks share no byte; their order in dw comes with the sums.
// Launched by src/ops/patch_embed/cuda.rs; reference in cpu.rs; the design in NOTES.md.
#include "common/tile.cuh"
#include "patch_embed/pixels.cuh"

namespace {

struct Backward {
    Pixels pixels;
    const bf16* dx;
    float* dweight;
    long long dx_stride, dweight_stride;
    int width;
    int window_rows, window_cols; // of a block, at most: kPixels together
};
static_assert(sizeof(Backward) == 104, "as in Rust");

// A block's part of dweight: 16 columns of dx a warp, by the values of at most kPixels pixels, in the order
// of the bytes of a picture, so that no pixel is read that is not needed.
constexpr int kPixels = 28;
constexpr int kBlocks = 11; // of 8 values; those beyond 3 · kPixels are zeros
using GradientTile = Tile<kWarps * kSide>;
using ValueTile = Tile<8 * kBlocks>;
constexpr int kGradientStages = 3;
constexpr int kGradientBytes = GradientTile::bytes(kPatches);
constexpr int kRing = kGradientStages * kGradientBytes;
constexpr int kValueBytes = ValueTile::bytes(kPatches);
// Most bytes of a window: of narrow ones many rows, each with its gap.
constexpr int kWindowBytes = 4 * kPixels;
// Most pieces of a thread.
constexpr int kPieces = (kPatches * 3 * kPixels + kThreads - 1) / kThreads;
// Sums on their way to dweight, 8 rows of a warp at a time: two floats a lane without conflicts.
constexpr int kStaged = 104;
using Staged = float[8][kStaged];

// The gradients of a step's patches, of the columns from `col` on, as a group of copies; zeros beyond.
__device__ __forceinline__ void
copy_gradients(const Backward& p, unsigned ring, int step, int col) {
    constexpr int kChunks = GradientTile::kChunks;
    const unsigned to = ring + step % kGradientStages * kGradientBytes;
#pragma unroll
    for (int i = threadIdx.x; i < kPatches * kChunks; i += kThreads) {
        const int in_tile = i / kChunks, patch = step * kPatches + in_tile;
        const int chunk = i % kChunks, at = col + chunk * kChunkElements;
        const bool is_there = patch < p.pixels.patches && at < p.width;
        const bf16* from = is_there ? p.dx + patch * p.dx_stride + at : p.dx;
        copy_chunk(to + GradientTile::at(in_tile, chunk), from, is_there);
    }
    commit_copies();
}

// sums += dxᵀ · values, of kPatches patches
__device__ __forceinline__ void
multiply_patches(float (&sums)[kBlocks][4], unsigned gradients, unsigned values) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < kPatches; k += kSide) {
        unsigned a[4];
        load_transposed(
            a, gradients + GradientTile::at(k + lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2));
        const int patch = k + lane % 16;
#pragma unroll
        for (int block = 0; block + 1 < kBlocks; block += 2) {
            unsigned b[4];
            load_transposed(b, values + ValueTile::at(patch, block + lane / 16));
            multiply_add(sums[block], a, b[0], b[1]);
            multiply_add(sums[block + 1], a, b[2], b[3]);
        }
        unsigned b[2];
        load_transposed(b, values + ValueTile::at(patch, kBlocks - 1));
        multiply_add(sums[kBlocks - 1], a, b[0], b[1]);
    }
}

// dweight += the sums of a warp: rows from `row` on, the values of a window.
__device__ __forceinline__ void add_gradient(const Backward& p,
                                             const float (&sums)[kBlocks][4],
                                             Staged& staged,
                                             const Window& window,
                                             int row) {
    const int lane = threadIdx.x % kWarp, side = p.pixels.patch;
    const int y = quotient(lane, 1.0f / window.cols), x = lane - y * window.cols;
    const bool is_there = lane < window.rows * window.cols;
    const int pixel = (window.y + y) * side + window.x + x;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            const Pack<float, 2> pair{{sums[block][2 * half], sums[block][2 * half + 1]}};
            store_pack(&staged[lane / 4][8 * block + lane % 4 * 2], pair);
        }
        __syncwarp(); // sums before their reads
        float old[8][3];
#pragma unroll
        for (int i = 0; i < 8 * 3; ++i) {
            const int at = row + 8 * half + i / 3;
            if (!is_there || at >= p.width) continue;
            old[i / 3][i % 3] = p.dweight[at * p.dweight_stride + i % 3 * side * side + pixel];
        }
#pragma unroll
        for (int i = 0; i < 8 * 3; ++i) {
            const int at = row + 8 * half + i / 3;
            if (!is_there || at >= p.width) continue;
            p.dweight[at * p.dweight_stride + i % 3 * side * side + pixel] =
                old[i / 3][i % 3] + staged[i / 3][3 * lane + i % 3];
        }
        __syncwarp(); // reads before the sums of the other half
    }
}

__device__ __forceinline__ void backward(const Backward& p) {
    // Of a step while there are steps, then sums on their way.
    static_assert(kWarps * sizeof(Staged) <= kRing + kValueBytes, "in one place");
    __shared__ __align__(128) unsigned char memory[kRing + kValueBytes];
    __shared__ __align__(16) unsigned char pixels[kPatches * kWindowBytes];
    __shared__ const unsigned char* corners[2][kPatches]; // of a step, and of the next

    const int side = p.pixels.patch, across = (side - 1) / p.window_cols + 1;
    Window window;
    window.y = blockIdx.x / across * p.window_rows;
    window.x = blockIdx.x % across * p.window_cols;
    window.rows = min(p.window_rows, side - window.y);
    window.cols = min(p.window_cols, side - window.x);
    const int col = blockIdx.y * kWarps * kSide;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const unsigned ring = shared_address(memory), values = ring + kRing;
    bf16* const value_tile = reinterpret_cast<bf16*>(memory + kRing);
    const int steps = (p.pixels.patches + kPatches - 1) / kPatches;

    copy_gradients(p, ring, 0, col);
    copy_gradients(p, ring, 1, col);
    // Of a step's patches, those that there are.
    const auto patches_of = [&](int step) {
        return min(kPatches, p.pixels.patches - step * kPatches);
    };
    const auto find_corners = [&](int step) {
        if (warp == 0) corners[step % 2][lane] = corner_of(p.pixels, step * kPatches + lane);
    };
    Pieces<kPieces> pieces(p.pixels, window, threadIdx.x);
    find_corners(0);
    __syncthreads(); // corners before their reads
    pieces.load(p.pixels, corners[0], patches_of(0));
    // The values of a lane, of each patch of its warp.
    const auto source_of = [&](int column) {
        const int y = quotient(column, 1.0f / (3 * window.cols));
        const int in_row = column - y * 3 * window.cols;
        return Source(p.pixels, y < window.rows, y * window.pitch() + in_row, in_row % 3);
    };
    const Source sources[] = {source_of(lane), source_of(lane + kWarp),
                              source_of(lane + 2 * kWarp)};
    static_assert(8 * kBlocks <= 3 * kWarp, "all values of a window");

    float sums[kBlocks][4] = {};
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const int patches = patches_of(step);
        pieces.store(p.pixels, pixels, patches);
        find_corners(step + 1);
        // pixels and corners before their reads; reads of the values and gradients of the last step before the
        // next ones in their place
        __syncthreads();
        pieces.load(p.pixels, corners[(step + 1) % 2], patches_of(step + 1));
#pragma unroll
        for (int i = warp; i < kPatches; i += kWarps) {
#pragma unroll
            for (int part = 0; part < 3; ++part) {
                const int column = part * kWarp + lane;
                if (column >= 8 * kBlocks) continue;
                const int at = ValueTile::at(i, column / kChunkElements) / sizeof(bf16);
                value_tile[at + column % kChunkElements] =
                    sources[part].value(pixels + i * window.bytes(), i < patches);
            }
        }
        wait_copies<1>();
        __syncthreads(); // values and gradients before their reads; reads of the pixels before the next
        copy_gradients(p, ring, step + 2, col);
        multiply_patches(sums, ring + step % kGradientStages * kGradientBytes, values);
    }
    wait_copies<0>();
    __syncthreads(); // reads of the last step before sums in their place
    Staged& staged = reinterpret_cast<Staged*>(memory)[warp];
    add_gradient(p, sums, staged, window, col + warp * kSide);
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
patch_embed_backward_weight_bf16(const __grid_constant__ Backward p) {
    backward(p);
}
