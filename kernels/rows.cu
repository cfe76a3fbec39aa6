// rows.cu — whole rows: moved, converted, scaled, added.
//   gather         y[i] = x[index[i]]                scatter        y[row] = x[last source of row]
//   scale          x[i] = x[i] · factors[i]          scatter_add    y[row] += Σ x[source of row]
//   copy           y = x                             add            y += x
//   add_cycled     y[i] += x[i mod P]                its backward   y[p] += Σ_n x[n·P + p]
// x y [rows, cols] T, rows of 16-byte packs at multiples of 16 bytes    index [rows] u32
// factors [rows] f32    inverse: common/index.cuh
// T is f32 or bf16; copy, add and the backward of add_cycled also take y as f32 where x is bf16
// (widen), copy x as f32 where y is bf16 (round). Where both types meet a thread takes 4 elements
// at a time, so that the accesses to both are whole sectors.
// Sums in f32, starting from y, in the order of their sources; one rounding to T on store: the same
// bits every time. An index beyond the rows of x gives NaN; one beyond the rows of y is passed over.
// Move x once and y once, twice where it is added to, at one FLOP an element: memory bound.
//   gather, copy, scale 8192 × 4096 bf16 = 134 MB, floor 28 us at 4.8 TB/s (H200); scatter the same,
//   scatter_add, add 201 MB, 42 us; add_cycled 16 × [256, 4096] 69 MB, 14 us, its backward 38 MB, 8 us.
// Launched by src/ops/rows/cuda.rs; reference in cpu.rs.
#include "common/index.cuh"
#include "common/pack.cuh"
#include "common/row_tile.cuh"

namespace {

// Of copy and add.
template <typename X, typename Y>
struct Move {
    const X* x;
    Y* y;
    long long x_stride, y_stride; // elements between rows
    int cols;
};
static_assert(sizeof(Move<float, float>) == 40, "as in Rust");

template <typename X, typename Y>
__device__ __forceinline__ void copy(const Move<X, Y>& p) {
    constexpr int kElements = kCount<X, Y>;
    const Tile tile = tile_of(p.cols, kTileOfRow<X, Y>);
    const X* x = p.x + tile.row * p.x_stride;
    Y* y = p.y + tile.row * p.y_stride;
    for_tile<X, Y>(
        tile, p.cols, [x](int col) { return load_pack<X, kElements>(x + col); },
        [y](int col, const Pack<X, kElements>& pack) { store_pack(y + col, convert<Y>(pack)); });
}

template <typename X, typename Y>
__device__ __forceinline__ void add(const Move<X, Y>& p) {
    constexpr int kElements = kCount<X, Y>;
    struct Terms {
        Pack<X, kElements> x;
        Pack<Y, kElements> y;
    };
    const Tile tile = tile_of(p.cols, kTileOfRow<X, Y>);
    const X* x = p.x + tile.row * p.x_stride;
    Y* y = p.y + tile.row * p.y_stride;
    for_tile<X, Y>(
        tile, p.cols,
        [x, y](int col) {
            return Terms{load_pack<X, kElements>(x + col), load_pack<Y, kElements>(y + col)};
        },
        [y](int col, Terms terms) {
            add_pack(terms.y, terms.x);
            store_pack(y + col, terms.y);
        });
}

template <typename T>
struct Gather {
    const T* x;
    const unsigned* index;
    T* y;
    long long x_stride, index_stride, y_stride; // elements between rows
    int x_rows, cols;
};
static_assert(sizeof(Gather<float>) == 56, "as in Rust");

template <typename T>
__device__ __forceinline__ void gather(const Gather<T>& p) {
    const Tile tile = tile_of(p.cols, kTileOfRow<T, T>);
    const unsigned row = p.index[tile.row * p.index_stride];
    T* y = p.y + tile.row * p.y_stride;
    for_tile<T, T>(
        tile, p.cols,
        [&p, row](int col) { return load_row<kPack<T>>(p.x, p.x_stride, p.x_rows, row, col); },
        [y](int col, const Pack<T>& pack) { store_pack(y + col, pack); });
}

template <typename T>
struct Scale {
    const float* factors;
    T* x;
    long long factors_stride, x_stride; // elements between rows
    int cols;
};
static_assert(sizeof(Scale<float>) == 40, "as in Rust");

template <typename T>
__device__ __forceinline__ void scale(const Scale<T>& p) {
    const Tile tile = tile_of(p.cols, kTileOfRow<T, T>);
    const float factor = p.factors[tile.row * p.factors_stride];
    T* x = p.x + tile.row * p.x_stride;
    for_tile<T, T>(
        tile, p.cols, [x](int col) { return load_pack(x + col); },
        [x, factor](int col, Pack<T> pack) {
            for (T& element : pack.at) {
                element = from_float<T>(to_float(element) * factor);
            }
            store_pack(x + col, pack);
        });
}

// Of scatter and scatter_add.
template <typename T>
struct Scatter {
    const T* x;
    Inverse inverse;
    T* y;
    long long x_stride, y_stride; // elements between rows
    int x_rows, y_rows, cols;
};
static_assert(sizeof(Scatter<float>) == 64, "as in Rust");

template <typename T>
__device__ __forceinline__ void scatter(const Scatter<T>& p) {
    const Tile tile = tile_of(p.cols, kTileOfRow<T, T>);
    const Segment segment = load_segment(p.inverse, tile.row);
    if (segment.begin >= segment.end || segment.row >= (unsigned)p.y_rows) return;
    const unsigned last = segment.end[-1];
    T* y = p.y + segment.row * p.y_stride;
    for_tile<T, T>(
        tile, p.cols,
        [&p, last](int col) { return load_row<kPack<T>>(p.x, p.x_stride, p.x_rows, last, col); },
        [y](int col, const Pack<T>& pack) { store_pack(y + col, pack); });
}

template <typename T>
__device__ __forceinline__ void scatter_add(const Scatter<T>& p) {
    const Tile tile = tile_of(p.cols, kTileOfRows<T, T>);
    const int col = tile.col + threadIdx.x * kPack<T>;
    const Segment segment = load_segment(p.inverse, tile.row);
    if (segment.begin >= segment.end || segment.row >= (unsigned)p.y_rows || col >= p.cols) return;
    T* y = p.y + segment.row * p.y_stride + col;
    Pack<float, kPack<T>> sum = convert<float>(load_pack(y));
    add_sources(sum, segment, p.x, p.x_stride, p.x_rows, col);
    store_pack(y, convert<T>(sum));
}

// Of add_cycled, y[n·period + i] += x[i], and its backward, y[i] += Σ_n x[n·period + i].
template <typename X, typename Y>
struct Cycle {
    const X* x;
    Y* y;
    long long x_stride, y_stride; // elements between rows
    int period, cycles, cols;
};
static_assert(sizeof(Cycle<float, float>) == 48, "as in Rust");

template <typename T>
__device__ __forceinline__ void add_cycled(const Cycle<T, T>& p) {
    const Tile tile = tile_of(p.cols, kTileOfRows<T, T>);
    const int col = tile.col + threadIdx.x * kPack<T>;
    if (col >= p.cols) return;
    const Pack<T> x = load_pack(p.x + tile.row * p.x_stride + col);
    const long long cycle = p.period * p.y_stride;
    T* y = p.y + tile.row * p.y_stride + col;
    // Several rows of y on their way at a time.
    for (int n = p.cycles / kPacks; n != 0; --n) {
        Pack<T> kept[kPacks];
        const T* next = y;
        for (Pack<T>& pack : kept) {
            pack = load_pack(next);
            next += cycle;
        }
        for (Pack<T>& pack : kept) {
            add_pack(pack, x);
            store_pack(y, pack);
            y += cycle;
        }
    }
    for (int n = p.cycles % kPacks; n != 0; --n) {
        Pack<T> pack = load_pack(y);
        add_pack(pack, x);
        store_pack(y, pack);
        y += cycle;
    }
}

template <typename X, typename Y>
__device__ __forceinline__ void add_cycled_backward(const Cycle<X, Y>& p) {
    constexpr int kElements = kCount<X, Y>;
    const Tile tile = tile_of(p.cols, kTileOfRows<X, Y>);
    const int col = tile.col + threadIdx.x * kElements;
    if (col >= p.cols) return;
    const X* x = p.x + tile.row * p.x_stride + col;
    Y* y = p.y + tile.row * p.y_stride + col;
    const long long cycle = p.period * p.x_stride;
    Pack<float, kElements> sum = convert<float>(load_pack<Y, kElements>(y));
#pragma unroll 4
    for (int n = 0; n < p.cycles; ++n) {
        add_pack(sum, load_pack<X, kElements>(x + n * cycle));
    }
    store_pack(y, convert<Y>(sum));
}

} // namespace

// A block per tile of a row of y.
extern "C" __global__ void __launch_bounds__(kThreads)
rows_copy_f32(const __grid_constant__ Move<float, float> p) {
    copy(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_copy_bf16(const __grid_constant__ Move<__nv_bfloat16, __nv_bfloat16> p) {
    copy(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_copy_widen_f32(const __grid_constant__ Move<__nv_bfloat16, float> p) {
    copy(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_copy_round_bf16(const __grid_constant__ Move<float, __nv_bfloat16> p) {
    copy(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_add_f32(const __grid_constant__ Move<float, float> p) {
    add(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_add_bf16(const __grid_constant__ Move<__nv_bfloat16, __nv_bfloat16> p) {
    add(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_add_widen_f32(const __grid_constant__ Move<__nv_bfloat16, float> p) {
    add(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_gather_f32(const __grid_constant__ Gather<float> p) {
    gather(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_gather_bf16(const __grid_constant__ Gather<__nv_bfloat16> p) {
    gather(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_scale_f32(const __grid_constant__ Scale<float> p) {
    scale(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_scale_bf16(const __grid_constant__ Scale<__nv_bfloat16> p) {
    scale(p);
}
// A block per tile of a segment.
extern "C" __global__ void __launch_bounds__(kThreads)
rows_scatter_f32(const __grid_constant__ Scatter<float> p) {
    scatter(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_scatter_bf16(const __grid_constant__ Scatter<__nv_bfloat16> p) {
    scatter(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_scatter_add_f32(const __grid_constant__ Scatter<float> p) {
    scatter_add(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_scatter_add_bf16(const __grid_constant__ Scatter<__nv_bfloat16> p) {
    scatter_add(p);
}
// A block per tile of a row of the period.
extern "C" __global__ void __launch_bounds__(kThreads)
rows_add_cycled_f32(const __grid_constant__ Cycle<float, float> p) {
    add_cycled(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_add_cycled_bf16(const __grid_constant__ Cycle<__nv_bfloat16, __nv_bfloat16> p) {
    add_cycled(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_add_cycled_backward_f32(const __grid_constant__ Cycle<float, float> p) {
    add_cycled_backward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_add_cycled_backward_bf16(const __grid_constant__ Cycle<__nv_bfloat16, __nv_bfloat16> p) {
    add_cycled_backward(p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
rows_add_cycled_backward_widen_f32(const __grid_constant__ Cycle<__nv_bfloat16, float> p) {
    add_cycled_backward(p);
}
