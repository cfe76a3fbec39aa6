// column_sums.cu — the sum of the rows of a matrix: the gradient of a bias.
//   c += Σ_rows a
// a [rows, cols] T, rows at multiples of 16 bytes, whole packs of 16 bytes    c [cols] f32
// Sums in f32, in a fixed order, no atomics: a chunk of rows is summed by one block, warp w taking the
// rows with i mod 8 = w, then warp after warp; the sums of more than one chunk are rows of a matrix
// that the same kernel sums in one. So it also adds up what the norms' blocks left of dw and db.
// Moves rows·cols·sizeof(T) bytes, reading a once, at 1 FLOP an element: memory bound. With chunks of
// 256 rows their sums, written and read again, are 8 / (256·sizeof(T)) of it: 1.6 % for bf16.
//   8192 × 4096 bf16 = 67 MB, floor 14 us at 4.8 TB/s (H200), on 16 × 32 blocks.
// A warp is 512 bytes wide, and a thread has four rows under way.
// Launched by src/ops/column_sums/cuda.rs; reference in cpu.rs.
#include "common/columns.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <typename T>
struct Sums {
    const T* a;
    float* sums;                     // of a chunk each
    long long a_stride, sums_stride; // elements between rows
    int rows, cols;
    int chunk; // rows
    int adds;  // to sums, else overwrites them
};
static_assert(sizeof(Sums<float>) == 48, "as in Rust");

template <typename T>
__device__ __forceinline__ void column_sums(const Sums<T>& p) {
    constexpr int kCols = kWarp * kPack<T>;
    __shared__ __align__(16) float partial[kWarps][kCols];
    const int warp = threadIdx.x / kWarp;
    const int first_col = blockIdx.x * kCols;
    const int col = first_col + threadIdx.x % kWarp * kPack<T>;
    const int first = blockIdx.y * p.chunk;
    const int end = chunk_end(first, p.chunk, p.rows);
    float sum[kPack<T>] = {};
    if (col < p.cols) {
#pragma unroll 4
        for (int row = first + warp; row < end; row += kWarps) {
            const Pack<T> a = load_pack(p.a + row * p.a_stride + col);
#pragma unroll
            for (int i = 0; i < kPack<T>; ++i) {
                sum[i] += to_float(a.at[i]);
            }
        }
    }
    store_columns<T>(partial[warp], sum, kCols);
    __syncthreads(); // sums of all warps before their reads
    const int at = threadIdx.x;
    if (at >= kCols || first_col + at >= p.cols) return;
    float* sums = p.sums + blockIdx.y * p.sums_stride + first_col + at;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        total += partial[w][at];
    }
    *sums = p.adds ? *sums + total : total;
}

} // namespace

// A block per chunk of rows and 512 bytes of columns.
extern "C" __global__ void __launch_bounds__(kThreads)
column_sums_f32(const __grid_constant__ Sums<float> p) {
    column_sums(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
column_sums_bf16(const __grid_constant__ Sums<__nv_bfloat16> p) {
    column_sums(p);
}
