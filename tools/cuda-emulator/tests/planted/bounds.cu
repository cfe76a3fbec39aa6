// bounds.cu — kernels that touch what is not theirs, each beside its corrected twin. The line to be blamed ends
// in the kernel's name as a comment.

template <bool kIsRight>
__device__ __forceinline__ float read_one_too_many(const float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const bool is_inside = kIsRight ? i < n : i <= n;
    return is_inside ? x[i] : 0.0f; // off_by_one_bound
}

template <bool kIsRight>
__device__ __forceinline__ void write_one_too_many(float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (kIsRight ? i < n : i <= n) {
        y[i] = 1.0f; // write_out_of_bounds
    }
}

// y has room for all threads, x for n of them.
extern "C" __global__ void off_by_one_bound(const float* x, float* y, int n) {
    y[blockIdx.x * blockDim.x + threadIdx.x] = read_one_too_many<false>(x, n);
}
extern "C" __global__ void off_by_one_bound_right(const float* x, float* y, int n) {
    y[blockIdx.x * blockDim.x + threadIdx.x] = read_one_too_many<true>(x, n);
}

extern "C" __global__ void write_out_of_bounds(float* y, int n) {
    write_one_too_many<false>(y, n);
}
extern "C" __global__ void write_out_of_bounds_right(float* y, int n) {
    write_one_too_many<true>(y, n);
}

// The host decides whether x still lives.
extern "C" __global__ void use_after_free(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x] * 2.0f; // use_after_free
}

// The host decides whether x was ever written.
extern "C" __global__ void uninitialised_global(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x] + 1.0f; // uninitialised_global
}

// Four floats at a time, from x + shift.
extern "C" __global__ void misaligned_vector_load(const float* x, float* y, int shift) {
    const float4 four = *reinterpret_cast<const float4*>(x + shift + 4 * threadIdx.x); // misaligned_vector_load
    y[threadIdx.x] = four.x + four.y + four.z + four.w;
}

__constant__ float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};

// Through a pointer that has lost its const.
extern "C" __global__ void write_to_constant(float* y, int is_right) {
    float* to = is_right ? y : const_cast<float*>(table);
    to[threadIdx.x % 4] = table[threadIdx.x % 4] + 1.0f; // write_to_constant
}

// Copies the n bytes of x and zeros after them, wherever they end in a piece of 16; of a piece past the end nothing is
// read, though its address is no one's. Or what is left is taken for one byte more.
template <bool kIsRight>
__device__ __forceinline__ void copy_tail(const char* x, uint4* y, int n) {
    __shared__ uint4 tile[32];
    const int rest = n - 16 * static_cast<int>(threadIdx.x) + (kIsRight || n < 16 * static_cast<int>(threadIdx.x) ? 0 : 1);
    const int bytes = min(max(rest, 0), 16);
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(&tile[threadIdx.x]));
    const char* from = x + 16 * threadIdx.x;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory"); // copied_past_the_end
    asm volatile("cp.async.wait_all;" ::: "memory");
    y[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void copied_past_the_end(const char* x, uint4* y, int n) {
    copy_tail<false>(x, y, n);
}
extern "C" __global__ void copied_past_the_end_right(const char* x, uint4* y, int n) {
    copy_tail<true>(x, y, n);
}
