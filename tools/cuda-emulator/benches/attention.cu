// attention.cu — what the emulator's speed is measured on: O = softmax(Q Kᵀ / 8) V, online, as kernels do it.
// q k v o [heads, tokens, 64] bf16. A block per 64 queries of a head, a warp per 16 of them. Tiles of 64 keys
// come by cp.async into two stages of shared memory, swizzled so that ldmatrix meets no bank twice.
#include <cuda_bf16.h>

#include <cstdint>

namespace {

constexpr int kDim = 64;
constexpr int kTile = 64;   // queries of a block, keys of a stage
constexpr int kWarps = 4;   // 16 queries each
constexpr int kThreads = kWarps * 32;
constexpr int kChunks = kDim / 8; // 16-byte chunks of a row
// Of exp2 instead of exp: log2(e) / sqrt(64)
constexpr float kScale = 1.4426950408889634f / 8.0f;

using Tile = uint4[kTile][kChunks];

// The chunk's place in its row, so that 8 rows at one chunk fall on 8 different banks of 16 bytes.
__device__ __forceinline__ int swizzle(int row, int chunk) {
    return chunk ^ (row % 8);
}

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// Rows at or past `rows` become zero.
__device__ __forceinline__ void load_tile(Tile& tile, const __nv_bfloat16* from, int first, int rows) {
#pragma unroll
    for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        const bool is_inside = first + row < rows;
        const __nv_bfloat16* source = from + (is_inside ? (long long)(first + row) * kDim + chunk * 8 : 0);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                         shared_address(&tile[row][swizzle(row, chunk)])),
                     "l"(source), "r"(is_inside ? 16 : 0)
                     : "memory");
    }
}

__device__ __forceinline__ void commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void load_fragments(unsigned (&r)[4], const Tile& tile, int row, int chunk) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(&tile[row][swizzle(row, chunk)])));
}

__device__ __forceinline__ void load_transposed(unsigned (&r)[4], const Tile& tile, int row, int chunk) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(&tile[row][swizzle(row, chunk)])));
}

__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
attention(const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, __nv_bfloat16* o, int tokens) {
    __shared__ Tile sK[2], sV[2];
    const long long head = (long long)blockIdx.y * tokens * kDim;
    const int first_query = blockIdx.x * kTile;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = lane / 4, pair = lane % 4;

    // Q goes through the second stage of K into registers.
    load_tile(sK[1], q + head, first_query, tokens);
    commit();
    load_tile(sK[0], k + head, 0, tokens);
    load_tile(sV[0], v + head, 0, tokens);
    commit();
    wait<1>();
    __syncthreads(); // Q of all threads before its reads
    unsigned rQ[kDim / 16][4];
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
        load_fragments(rQ[step], sK[1], warp * 16 + lane % 16, step * 2 + lane / 16);
    }
    __syncthreads(); // reads of Q before K's second stage takes its place

    float rO[kDim / 8][4] = {};
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    const int tiles = (tokens + kTile - 1) / kTile;
    for (int tile = 0; tile < tiles; ++tile) {
        const int stage = tile % 2;
        if (tile + 1 < tiles) {
            load_tile(sK[1 - stage], k + head, (tile + 1) * kTile, tokens);
            load_tile(sV[1 - stage], v + head, (tile + 1) * kTile, tokens);
        }
        commit();
        wait<1>();
        __syncthreads(); // this stage's copies of all threads before their reads

        // S = Q Kᵀ
        float rS[kTile / 8][4] = {};
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
            for (int n = 0; n < kTile / 16; ++n) {
                unsigned rK[4];
                load_fragments(rK, sK[stage], n * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2);
                multiply_add(rS[n * 2], rQ[step], rK[0], rK[1]);
                multiply_add(rS[n * 2 + 1], rQ[step], rK[2], rK[3]);
            }
        }
        // Keys past the end do not count.
        if ((tile + 1) * kTile > tokens) {
#pragma unroll
            for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (tile * kTile + n * 8 + pair * 2 + i % 2 >= tokens) rS[n][i] = -INFINITY;
                }
            }
        }
        // m = max(m, rowmax S), P = exp(S - m), O and the sum shrink to the new m
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float highest = maximum[half];
#pragma unroll
            for (int n = 0; n < kTile / 8; ++n) {
                highest = fmaxf(highest, fmaxf(rS[n][half * 2], rS[n][half * 2 + 1]));
            }
            highest = row_max(highest);
            const float shrink = exp2f((maximum[half] - highest) * kScale);
            maximum[half] = highest;
            sum[half] *= shrink;
#pragma unroll
            for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; ++i) {
                    rS[n][i] = exp2f((rS[n][i] - highest) * kScale);
                    sum[half] += rS[n][i];
                }
            }
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
                rO[n][half * 2] *= shrink;
                rO[n][half * 2 + 1] *= shrink;
            }
        }
        // O += P V
#pragma unroll
        for (int step = 0; step < kTile / 16; ++step) {
            const unsigned rP[4] = {
                pack(rS[step * 2][0], rS[step * 2][1]), pack(rS[step * 2][2], rS[step * 2][3]),
                pack(rS[step * 2 + 1][0], rS[step * 2 + 1][1]), pack(rS[step * 2 + 1][2], rS[step * 2 + 1][3])};
#pragma unroll
            for (int n = 0; n < kDim / 16; ++n) {
                unsigned rV[4];
                load_transposed(rV, sV[stage], step * 16 + lane % 16, n * 2 + lane / 16);
                multiply_add(rO[n * 2], rP, rV[0], rV[1]);
                multiply_add(rO[n * 2 + 1], rP, rV[2], rV[3]);
            }
        }
        __syncthreads(); // reads of this stage before the next copies into it
    }

    // O / sum
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = first_query + warp * 16 + half * 8 + group;
        const float scale = 1.0f / row_sum(sum[half]);
        if (query >= tokens) continue;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
            *reinterpret_cast<unsigned*>(o + head + (long long)query * kDim + n * 8 + pair * 2) =
                pack(rO[n][half * 2] * scale, rO[n][half * 2 + 1] * scale);
        }
    }
}
