// lora.cu — the tail columns of adapted weights: what an adapter adds, as part of one product.
//   [x | u] [W | s·B]ᵀ = x Wᵀ + s · (x Aᵀ) Bᵀ        u = x Aᵀ
// B [rows, r] f32, masters in the flat buffer of what is trained    s = alpha / r f32
// tail [rows, groups · r] bf16, the last columns of a weight, any row stride. Of a pair's tail one group
// is s·B, rounded once to nearest even, the others are 0: where two maps read one input, u is u₁ | u₂
// and the weight [W₁ | s·B₁ | 0] over [W₂ | 0 | s·B₂].
// All pairs of a model in one launch, from a table in device memory; backward is products alone.
// Moves 6 bytes an element of B, 2 an element of 0, at one FLOP: memory bound.
//   Qwen-VL-Chat at rank 64 (c_attn, attn.c_proj, w1, w2 of 32 blocks): 78.6 M of B and 45.1 M of 0,
//   562 MB, floor 117 us at 4.8 TB/s (H200).
// A block per chunk of rows. Launched by src/ops/lora/cuda.rs; reference in cpu.rs.
#include "common/pack.cuh"

namespace {

constexpr int kThreads = 256;
// Elements of a thread at a time, so that the accesses of a warp are whole sectors of both types.
constexpr int kCount = 4;

// Rows of one tail.
struct Chunk {
    __nv_bfloat16* tail; // its first row
    long long first;     // of its elements of B
    long long stride;    // elements between rows of the tail
    int rows;
    int cols;  // of the tail
    int start; // column of the group that is s·B
    int rank;
    float scale;
    int reserved;
};
static_assert(sizeof(Chunk) == 48, "as in Rust");

struct WriteTails {
    const float* masters;
    const Chunk* chunks; // [gridDim.x]
};
static_assert(sizeof(WriteTails) == 16, "as in Rust");

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
lora_write_tails_bf16(const __grid_constant__ WriteTails p) {
    const Chunk chunk = p.chunks[blockIdx.x];
    const float* masters = p.masters + chunk.first;
    const int packs = chunk.cols / kCount;
#pragma unroll 4
    for (int i = threadIdx.x; i < chunk.rows * packs; i += kThreads) {
        const int row = i / packs, col = i % packs * kCount;
        const int own = col - chunk.start;
        Pack<float, kCount> b{};
        if ((unsigned)own < (unsigned)chunk.rank) {
            b = load_pack<float, kCount>(masters + (long long)row * chunk.rank + own);
        }
        for (float& x : b.at) {
            x *= chunk.scale;
        }
        store_pack(chunk.tail + row * chunk.stride + col, convert<__nv_bfloat16>(b));
    }
}
