// tile.cuh — rows of bf16 in shared memory, and what tensor cores want of them: cp.async, ldmatrix, mma.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>

// Bytes that cp.async copies, and of a row of the 8 × 8 matrices of ldmatrix.
constexpr int kChunk = 16;
constexpr int kChunkElements = kChunk / sizeof(__nv_bfloat16);

// Rows of kCols bf16, one after another without gaps. Eight rows at one chunk lie in eight different
// sixteenths of the banks, so that ldmatrix meets none twice: where the chunks of a row are odd in
// number they do so as they are (104: 13 chunks), else a chunk's place is turned by its row.
template <int kCols>
struct Tile {
    static_assert(kCols % kChunkElements == 0, "rows of whole chunks");
    static constexpr int kChunks = kCols / kChunkElements;
    static_assert(kChunks % 2 == 1 || kChunks == 2 || kChunks == 4 || kChunks % 8 == 0,
                  "rows without conflicts");
    static constexpr int kRowBytes = kCols * sizeof(__nv_bfloat16);

    static constexpr int bytes(int rows) { return rows * kRowBytes; }

    // Where a chunk lies, in bytes from the start of the tile.
    static __device__ __forceinline__ unsigned at(int row, int chunk) {
        int place = chunk;
        if constexpr (kChunks % 8 == 0) {
            place = chunk ^ (row % 8);
        } else if constexpr (kChunks % 2 == 0) {
            place = chunk ^ (row / (8 / kChunks) % kChunks);
        }
        return row * kRowBytes + place * kChunk;
    }

    // From the address of chunk `c` of a row to that of chunk `c + chunks`, where the two share no bit and the tile
    // lies at a multiple of a row's bytes: one instruction, where `at` takes several.
    static __device__ __forceinline__ unsigned along(unsigned address, int chunks) {
        return kChunks % 2 == 1 ? address + chunks * kChunk : address ^ (chunks * kChunk);
    }
};

// An address as ldmatrix, cp.async and ld.shared take it.
__device__ __forceinline__ unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// 16 bytes into shared memory, past the registers and L1; zeros where `is_there` is false, and then `from` is not
// read. Visible to this thread after wait_copies, to others after a barrier behind it.
__device__ __forceinline__ void copy_chunk(unsigned to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(is_there ? kChunk : 0)
                 : "memory");
}

// As copy_chunk, 4 bytes.
__device__ __forceinline__ void copy_word(unsigned to, const void* from, bool is_there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                 "r"(is_there ? 4 : 0)
                 : "memory");
}

// Ends a group of copies, which may be empty.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Matrices of 8 × 8, whose rows are the chunks at the lanes' addresses: matrix i those of lanes 8i to 8i + 7. Lane l
// gets of each the elements (l / 4, 2 (l % 4)) and the next one, low half first; transposed, those of its
// transpose.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_matrices(unsigned (&r)[2], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_matrices(unsigned (&r)[1], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_transposed(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_transposed(unsigned (&r)[2], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_transposed(unsigned (&r)[1], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(at)
                 : "memory");
}

// d += a · b, 16 × 8 f32. a is 16 rows by 16 (or 8) of k: matrices (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7,
// k 8-15), (rows 8-15, k 8-15), as load_matrices gives them of rows that run along k. b is 8 columns, matrices
// k 0-7 and k 8-15, as load_matrices gives them of columns that run along k. d: lane l holds the columns
// 2 (l % 4) and the next of rows l / 4 (first two) and l / 4 + 8: packed to bf16, two neighbours of d along n
// are an a whose k is that n.
__device__ __forceinline__ void
multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, "
                 "%6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[2], unsigned b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Two floats rounded to bf16, `low` in the low half.
__device__ __forceinline__ unsigned pack_pair(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const unsigned&>(pair);
}
