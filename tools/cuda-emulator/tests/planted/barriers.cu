// barriers.cu — threads that do not meet, each kernel beside its corrected twin. The line to be blamed ends in the
// kernel's name as a comment.

// Half of each warp goes past the first barrier.
template <bool kIsRight>
__device__ __forceinline__ void half_a_warp(float* y) {
    __shared__ float own[64];
    own[threadIdx.x] = threadIdx.x;
    if (kIsRight || threadIdx.x % 32 < 16) {
        __syncthreads(); // divergent_barrier
    }
    y[threadIdx.x] = own[threadIdx.x];
    __syncthreads();
    own[threadIdx.x] = 0.0f;
}
extern "C" __global__ void divergent_barrier(float* y) {
    half_a_warp<false>(y);
}
extern "C" __global__ void divergent_barrier_right(float* y) {
    half_a_warp<true>(y);
}

// Each warp comes to a barrier of its own.
extern "C" __global__ void different_barriers(float* y) {
    __shared__ float own[64];
    if (threadIdx.x < 32) {
        own[threadIdx.x] = 1.0f;
        __syncthreads();
        y[threadIdx.x] = own[threadIdx.x + 32] + 3.0f;
    } else {
        own[threadIdx.x] = 2.0f;
        __syncthreads(); // different_barriers
        y[threadIdx.x] = own[threadIdx.x - 32] * 5.0f;
    }
}
extern "C" __global__ void different_barriers_right(float* y) {
    __shared__ float own[64];
    own[threadIdx.x] = threadIdx.x < 32 ? 1.0f : 2.0f;
    __syncthreads(); // own of both warps before their reads
    const float other = own[threadIdx.x ^ 32];
    y[threadIdx.x] = threadIdx.x < 32 ? other + 3.0f : other * 5.0f;
}

// Two warps hand over to each other by named barriers of 64 threads, and wait for the wrong one.
template <bool kIsRight>
__device__ __forceinline__ void hand_over(float* y) {
    __shared__ float own[64];
    own[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 32) {
        asm volatile("bar.sync 1, 64;" ::: "memory"); // deadlock
        y[threadIdx.x] = own[threadIdx.x + 32];
    } else {
        if (kIsRight) {
            asm volatile("bar.sync 1, 64;" ::: "memory");
        } else {
            asm volatile("bar.sync 2, 64;" ::: "memory");
        }
        y[threadIdx.x] = own[threadIdx.x - 32];
    }
}
extern "C" __global__ void deadlock(float* y) {
    hand_over<false>(y);
}
extern "C" __global__ void deadlock_right(float* y) {
    hand_over<true>(y);
}

// Half of the warp shuffles with the whole of it.
template <bool kIsRight>
__device__ __forceinline__ void shuffle_half(float* y) {
    float x = y[threadIdx.x];
    if (threadIdx.x < 16) {
        x += __shfl_xor_sync(kIsRight ? 0x0000ffffu : 0xffffffffu, x, 8); // missing_lanes
    }
    __syncwarp();
    y[threadIdx.x] = x;
}
extern "C" __global__ void missing_lanes(float* y) {
    shuffle_half<false>(y);
}
extern "C" __global__ void missing_lanes_right(float* y) {
    shuffle_half<true>(y);
}

// A reduction in which the lanes past the end have left.
template <bool kIsRight>
__device__ __forceinline__ void reduce_some(float* y, int n) {
    if (!kIsRight && threadIdx.x >= n) return;
    float x = threadIdx.x < n ? y[threadIdx.x] : 0.0f;
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        x += __shfl_down_sync(0xffffffffu, x, lanes); // exited_lanes
    }
    if (threadIdx.x == 0) y[0] = x;
}
extern "C" __global__ void exited_lanes(float* y, int n) {
    reduce_some<false>(y, n);
}
extern "C" __global__ void exited_lanes_right(float* y, int n) {
    reduce_some<true>(y, n);
}

// Reads from a lane that does not take part.
template <bool kIsRight>
__device__ __forceinline__ void read_absent_lane(float* y) {
    float x = y[threadIdx.x];
    if (threadIdx.x % 2 == 0) {
        x += __shfl_xor_sync(0x55555555u, x, kIsRight ? 2 : 1); // absent_lane
    }
    y[threadIdx.x] = x;
}
extern "C" __global__ void absent_lane(float* y) {
    read_absent_lane<false>(y);
}
extern "C" __global__ void absent_lane_right(float* y) {
    read_absent_lane<true>(y);
}

// A call that is not inlined: the report names the line in it and the line of the call.
__device__ __noinline__ float element(const float* x, int i) {
    return x[i]; // inside_a_call
}
extern "C" __global__ void inside_a_call(const float* x, float* y, int shift) {
    y[threadIdx.x] = element(x, threadIdx.x + shift) + 1.0f; // the call
}
