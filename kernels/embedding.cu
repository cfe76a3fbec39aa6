// embedding.cu — the decoder's input: rows of the token table, image features in their slots.
//   forward    x[t] = source[t] < V ? table[source[t]] : features[source[t] − V]
//   backward   dtable[v] += Σ dx[t] over source[t] = v       dfeatures[f] = Σ dx[t] over source[t] = V + f
// source [T] u32    table [V, D] f32 or bf16    features x dx dfeatures [rows, D] T    dtable [V, D] f32
// inverse of source: common/index.cuh. Rows are 16-byte packs at multiples of 16 bytes.
// T is f32 or bf16, of its own or the table's type (widen: table bf16, x f32; round: the reverse).
// Sums in f32, in token order; what is narrowed is rounded once. A source beyond the features gives a
// row of NaN; no gradient goes there. Rows of dtable and dfeatures that no token names stay.
// Forward moves 2·T·D·sizeof(T) bytes, no arithmetic: memory bound.
//   8192 × 4096 bf16 = 134 MB, floor 28 us at 4.8 TB/s (H200).
// Backward reads dx once, reads and writes each named row of dtable once, writes dfeatures once:
//   8192 tokens, 2048 of them images, 1500 distinct ids: 133 MB, 28 us.
// Launched by src/ops/embedding/cuda.rs; reference in cpu.rs.
#include "common/index.cuh"
#include "common/pack.cuh"
#include "common/row_tile.cuh"

namespace {

template <typename Table, typename T>
struct Forward {
    const unsigned* source;
    const Table* table;
    const T* features;
    T* x;
    long long source_stride, table_stride, features_stride, x_stride; // elements between rows
    int vocab, feature_rows, cols;
};
static_assert(sizeof(Forward<float, float>) == 80, "as in Rust");

template <typename Table, typename T>
__device__ __forceinline__ void forward(const Forward<Table, T>& p) {
    constexpr int kElements = kCount<Table, T>;
    const Tile tile = tile_of(p.cols, kTileOfRow<Table, T>);
    const unsigned source = p.source[tile.row * p.source_stride];
    T* x = p.x + tile.row * p.x_stride;
    const auto store = [x](int col, const Pack<T, kElements>& pack) { store_pack(x + col, pack); };
    if (source < (unsigned)p.vocab) {
        const Table* row = p.table + source * p.table_stride;
        for_tile<Table, T>(
            tile, p.cols,
            [row](int col) { return convert<T>(load_pack<Table, kElements>(row + col)); }, store);
    } else {
        const unsigned row = source - p.vocab;
        for_tile<Table, T>(
            tile, p.cols,
            [&p, row](int col) {
                return load_row<kElements>(p.features, p.features_stride, p.feature_rows, row, col);
            },
            store);
    }
}

template <typename T>
struct Backward {
    Inverse inverse;
    const T* dx;
    float* dtable; // null: frozen
    T* dfeatures;
    long long dx_stride, dtable_stride, dfeatures_stride; // elements between rows
    int tokens, vocab, feature_rows, cols;
};
static_assert(sizeof(Backward<float>) == 80, "as in Rust");

template <typename T>
__device__ __forceinline__ void backward(const Backward<T>& p) {
    constexpr int kElements = kCount<float, T>;
    const Tile tile = tile_of(p.cols, kTileOfRows<float, T>);
    const int col = tile.col + threadIdx.x * kElements;
    const Segment segment = load_segment(p.inverse, tile.row);
    if (segment.begin >= segment.end || col >= p.cols) return;
    if (segment.row < (unsigned)p.vocab) {
        if (p.dtable == nullptr) return;
        float* at = p.dtable + segment.row * p.dtable_stride + col;
        Pack<float, kElements> sum = load_pack<float, kElements>(at);
        add_sources(sum, segment, p.dx, p.dx_stride, p.tokens, col);
        store_pack(at, sum);
    } else if (segment.row - p.vocab < (unsigned)p.feature_rows) {
        Pack<float, kElements> sum;
        for (float& x : sum.at) {
            x = -0.0f; // what changes no other number
        }
        add_sources(sum, segment, p.dx, p.dx_stride, p.tokens, col);
        store_pack(p.dfeatures + (segment.row - p.vocab) * p.dfeatures_stride + col,
                   convert<T>(sum));
    }
}

} // namespace

// A block per tile of a row of x.
extern "C" __global__ void __launch_bounds__(kThreads)
embedding_forward_f32(const __grid_constant__ Forward<float, float> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
embedding_forward_bf16(const __grid_constant__ Forward<__nv_bfloat16, __nv_bfloat16> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
embedding_forward_widen_f32(const __grid_constant__ Forward<__nv_bfloat16, float> p) {
    forward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
embedding_forward_round_bf16(const __grid_constant__ Forward<float, __nv_bfloat16> p) {
    forward(p);
}
// A block per tile of a segment.
extern "C" __global__ void __launch_bounds__(kThreads)
embedding_backward_f32(const __grid_constant__ Backward<float> p) {
    backward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
embedding_backward_bf16(const __grid_constant__ Backward<__nv_bfloat16> p) {
    backward(p);
}
