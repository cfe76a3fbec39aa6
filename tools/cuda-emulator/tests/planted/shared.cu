// shared.cu — misuse of shared memory, each kernel beside its corrected twin. The line to be blamed ends in the
// kernel's name as a comment.
#include <cstdint>

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// Every thread but the last writes; all read their neighbour.
template <bool kIsRight>
__device__ __forceinline__ void read_unwritten(float* y) {
    __shared__ float own[128];
    if (kIsRight || threadIdx.x < 127) own[threadIdx.x] = threadIdx.x;
    __syncthreads(); // own of all threads before their reads
    y[threadIdx.x] = own[threadIdx.x ^ 1]; // uninitialised_shared
}
extern "C" __global__ void uninitialised_shared(float* y) {
    read_unwritten<false>(y);
}
extern "C" __global__ void uninitialised_shared_right(float* y) {
    read_unwritten<true>(y);
}

// The barrier makes nothing of a copy that its thread has not waited for.
template <bool kIsRight>
__device__ __forceinline__ void copy_and_read(const float4* x, float* y) {
    __shared__ float4 tile[64];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&tile[threadIdx.x])),
                 "l"(x + threadIdx.x)
                 : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (kIsRight) asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads(); // copies of all threads before their reads
    y[threadIdx.x] = tile[63 - threadIdx.x].x; // missing_wait
}
extern "C" __global__ void missing_wait(const float4* x, float* y) {
    copy_and_read<false>(x, y);
}
extern "C" __global__ void missing_wait_right(const float4* x, float* y) {
    copy_and_read<true>(x, y);
}

// Overwrites what a copy is still on its way to.
template <bool kIsRight>
__device__ __forceinline__ void copy_and_write(const float4* x, float* y) {
    __shared__ float tile[256];
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(&tile[4 * threadIdx.x])),
                 "l"(x + threadIdx.x)
                 : "memory");
    if (kIsRight) asm volatile("cp.async.wait_all;" ::: "memory");
    volatile float* own = tile + 4 * threadIdx.x;
    own[3] = 7.0f; // overwritten_copy
    asm volatile("cp.async.wait_all;" ::: "memory");
    y[threadIdx.x] = own[0] + own[3];
}
extern "C" __global__ void overwritten_copy(const float4* x, float* y) {
    copy_and_write<false>(x, y);
}
extern "C" __global__ void overwritten_copy_right(const float4* x, float* y) {
    copy_and_write<true>(x, y);
}

// A tile of 16 rows of 16 bytes in room for 24: one row too far, the last lanes leave the tile.
template <bool kIsRight>
__device__ __forceinline__ void load_rows(unsigned* y) {
    __shared__ uint4 tile[24];
    if (threadIdx.x < 16) tile[threadIdx.x] = make_uint4(threadIdx.x, 1, 2, 3);
    __syncwarp(); // the tile before ldmatrix
    const int row = threadIdx.x % 16 + (kIsRight ? 0 : 1);
    unsigned a, b;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(a), "=r"(b)
                 : "r"(shared_address(&tile[row]))); // wrong_ldmatrix_row
    y[threadIdx.x] = a + b;
}
extern "C" __global__ void wrong_ldmatrix_row(unsigned* y) {
    load_rows<false>(y);
}
extern "C" __global__ void wrong_ldmatrix_row_right(unsigned* y) {
    load_rows<true>(y);
}

// Between two static arrays lies nothing that belongs to either.
template <bool kIsRight>
__device__ __forceinline__ void overflow(float* y, int n) {
    __shared__ float first[32], second[32];
    first[threadIdx.x] = threadIdx.x;
    second[threadIdx.x] = -1.0f;
    __syncthreads(); // both arrays before their reads
    const int i = kIsRight ? threadIdx.x : threadIdx.x + n;
    y[threadIdx.x] = first[i] + second[i]; // shared_overflow
}
extern "C" __global__ void shared_overflow(float* y, int n) {
    overflow<false>(y, n);
}
extern "C" __global__ void shared_overflow_right(float* y, int n) {
    overflow<true>(y, n);
}

// Pieces of 16 bytes of dynamic shared memory, the last 8 of which are a matrix: one row too far.
template <bool kIsRight>
__device__ __forceinline__ void fill_dynamic(const uint4* x, unsigned* y, int pieces) {
    __shared__ uint4 first[8];
    extern __shared__ uint4 dynamic[];
    for (int i = threadIdx.x; i < pieces; i += blockDim.x) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&dynamic[i])), "l"(x + i % 8)
                     : "memory");
    }
    if (threadIdx.x < 8) first[threadIdx.x] = make_uint4(pieces, 0, 0, 0);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads(); // first, and all pieces before ldmatrix
    const int row = pieces - 8 + threadIdx.x % 8 + (kIsRight ? 0 : 1);
    unsigned a;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(a)
                 : "r"(shared_address(&dynamic[row]))); // dynamic_overflow
    y[blockIdx.x * blockDim.x + threadIdx.x] = a + first[threadIdx.x % 8].y;
}
extern "C" __global__ void dynamic_overflow(const uint4* x, unsigned* y, int pieces) {
    fill_dynamic<false>(x, y, pieces);
}
extern "C" __global__ void dynamic_overflow_right(const uint4* x, unsigned* y, int pieces) {
    fill_dynamic<true>(x, y, pieces);
}

// Nor is the end of a static array the beginning of the dynamic ones.
template <bool kIsRight>
__device__ __forceinline__ void overflow_to_dynamic(unsigned* y, int n) {
    __shared__ unsigned first[32];
    extern __shared__ unsigned words[];
    words[threadIdx.x] = 0;
    __syncthreads(); // the zeros before the sums
    first[threadIdx.x + (kIsRight ? 0 : n)] = threadIdx.x; // into_dynamic
    y[threadIdx.x] = first[threadIdx.x] + words[threadIdx.x];
}
extern "C" __global__ void into_dynamic(unsigned* y, int n) {
    overflow_to_dynamic<false>(y, n);
}
extern "C" __global__ void into_dynamic_right(unsigned* y, int n) {
    overflow_to_dynamic<true>(y, n);
}
