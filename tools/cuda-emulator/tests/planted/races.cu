// races.cu — threads that nothing orders, each kernel beside its corrected twin. The two lines that race end in the
// kernel's name as a comment, the second with "too".
#include <cstdint>

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// Threads of one warp read what those of the other have written.
enum Between { kNothing, kWarp, kBlock };
template <Between kBetween>
__device__ __forceinline__ void exchange(const float* x, float* y) {
    __shared__ float own[64];
    own[threadIdx.x] = 0.0f;
    __syncthreads();                   // the zeros before the reads
    own[threadIdx.x] = x[threadIdx.x]; // missing_syncthreads
    if (kBetween == kWarp) __syncwarp();
    if (kBetween == kBlock) __syncthreads();
    y[threadIdx.x] = own[threadIdx.x ^ 32]; // missing_syncthreads too
}
extern "C" __global__ void missing_syncthreads(const float* x, float* y) {
    exchange<kNothing>(x, y);
}
extern "C" __global__ void syncwarp_in_its_place(const float* x, float* y) {
    exchange<kWarp>(x, y);
}
extern "C" __global__ void missing_syncthreads_right(const float* x, float* y) {
    exchange<kBlock>(x, y);
}

// Lanes of a warp read what other lanes have written; a vote in between orders nothing.
template <bool kIsRight>
__device__ __forceinline__ void exchange_in_warp(const float* x, float* y) {
    __shared__ float own[32];
    own[threadIdx.x] = x[threadIdx.x]; // missing_syncwarp
    const bool any = __any_sync(0xffffffffu, x[threadIdx.x] > 0.0f);
    if (kIsRight) __syncwarp();
    y[threadIdx.x] = own[threadIdx.x ^ 1] + (any ? 1.0f : 0.0f); // missing_syncwarp too
}
extern "C" __global__ void missing_syncwarp(const float* x, float* y) {
    exchange_in_warp<false>(x, y);
}
extern "C" __global__ void missing_syncwarp_right(const float* x, float* y) {
    exchange_in_warp<true>(x, y);
}

// Halves of a warp exchange values; each half meets for itself, or also the other.
template <unsigned kLow, unsigned kHigh>
__device__ __forceinline__ void exchange_halves(const float* x, float* y) {
    __shared__ float own[32];
    own[threadIdx.x] = x[threadIdx.x]; // narrow_syncwarp
    if (threadIdx.x < 16) {
        __syncwarp(kLow);
    } else {
        __syncwarp(kHigh);
    }
    y[threadIdx.x] = own[threadIdx.x ^ 16]; // narrow_syncwarp too
}
extern "C" __global__ void narrow_syncwarp(const float* x, float* y) {
    exchange_halves<0x0000ffffu, 0xffff0000u>(x, y);
}
extern "C" __global__ void narrow_syncwarp_right(const float* x, float* y) {
    __shared__ float own[32];
    own[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    const float other = own[threadIdx.x ^ 16];
    const unsigned half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
    __syncwarp();
    own[threadIdx.x] = other;
    __syncwarp(half); // own of the half before its reads
    y[threadIdx.x] = own[threadIdx.x ^ 1];
}

// The block that comes last adds what all have left.
enum Fence { kNoFence, kBlockFence, kDeviceFence };
template <Fence kBefore, bool kAfter>
__device__ __forceinline__ void
sum_blocks(const float* x, float* partials, unsigned* ticket, float* total) {
    __shared__ bool is_last;
    float sum = x[blockIdx.x * 32 + threadIdx.x];
    for (int lanes = 16; lanes > 0; lanes /= 2)
        sum += __shfl_down_sync(0xffffffffu, sum, lanes);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum; // missing_threadfence
        if (kBefore == kBlockFence) __threadfence_block();
        if (kBefore == kDeviceFence) __threadfence();
        is_last = atomicAdd(ticket, 1) == gridDim.x - 1;
        if (kAfter) __threadfence();
    }
    __syncthreads(); // is_last, and with it the partial sums
    if (is_last) {
        float all = 0.0f;
        for (int block = threadIdx.x; block < gridDim.x; block += 32) {
            all += partials[block]; // missing_threadfence too
        }
        for (int lanes = 16; lanes > 0; lanes /= 2)
            all += __shfl_down_sync(0xffffffffu, all, lanes);
        if (threadIdx.x == 0) {
            *total = all;
            *ticket = 0;
        }
    }
}
extern "C" __global__ void
missing_threadfence(const float* x, float* partials, unsigned* ticket, float* total) {
    sum_blocks<kNoFence, true>(x, partials, ticket, total);
}
extern "C" __global__ void
narrow_threadfence(const float* x, float* partials, unsigned* ticket, float* total) {
    sum_blocks<kBlockFence, true>(x, partials, ticket, total);
}
extern "C" __global__ void
missing_second_threadfence(const float* x, float* partials, unsigned* ticket, float* total) {
    sum_blocks<kDeviceFence, false>(x, partials, ticket, total);
}
extern "C" __global__ void
missing_threadfence_right(const float* x, float* partials, unsigned* ticket, float* total) {
    sum_blocks<kDeviceFence, true>(x, partials, ticket, total);
}

// The same with the fences of all threads on the other side of the barriers, as CUDA's guide has it.
extern "C" __global__ void
fence_of_all_right(const float* x, float* partials, unsigned* ticket, float* total) {
    __shared__ bool is_last;
    partials[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
    __threadfence();
    __syncthreads(); // partials of all threads before the ticket
    if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1) == gridDim.x - 1;
    __syncthreads(); // is_last
    __threadfence();
    if (is_last && threadIdx.x == 0) {
        float all = 0.0f;
        for (int i = 0; i < 32 * gridDim.x; i++)
            all += partials[i];
        *total = all;
        *ticket = 0;
    }
}

// A buffer is filled again while others still read it.
template <bool kIsRight>
__device__ __forceinline__ void iterate(const float* x, float* y) {
    __shared__ float own[64];
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) {
        own[threadIdx.x] = x[threadIdx.x] + i; // write_after_read
        __syncthreads();                       // own before the reads
        sum += own[threadIdx.x ^ 32];          // write_after_read too
        if (kIsRight) __syncthreads();         // the reads before own is filled again
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void write_after_read(const float* x, float* y) {
    iterate<false>(x, y);
}
extern "C" __global__ void write_after_read_right(const float* x, float* y) {
    iterate<true>(x, y);
}

// Blocks shift an array in place, or into another.
extern "C" __global__ void cross_block(const float* x, float* y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    const float next = x[(i + blockDim.x) % n]; // cross_block
    y[i] = next;                                // cross_block too
}

// Bytes of one word belong to different threads.
template <bool kIsRight>
__device__ __forceinline__ void share_words(const uint8_t* x, uint8_t* y) {
    __shared__ uint8_t own[64];
    own[threadIdx.x] = x[threadIdx.x];                                  // bytes_of_a_word
    const uint8_t mine = own[kIsRight ? threadIdx.x : threadIdx.x ^ 1]; // bytes_of_a_word too
    own[threadIdx.x] = mine + 1;
    y[threadIdx.x] = own[threadIdx.x];
}
extern "C" __global__ void bytes_of_a_word(const uint8_t* x, uint8_t* y) {
    share_words<false>(x, y);
}
extern "C" __global__ void bytes_of_a_word_right(const uint8_t* x, uint8_t* y) {
    share_words<true>(x, y);
}

// Warp 0 copies, warp 1 reads.
template <bool kIsRight>
__device__ __forceinline__ void copy_for_others(const float4* x, float* y) {
    __shared__ float4 tile[32];
    if (threadIdx.x < 32) tile[threadIdx.x] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    __syncthreads(); // the zeros before the copies
    if (threadIdx.x < 32) {
        asm volatile(
            "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&tile[threadIdx.x])),
            "l"(x + threadIdx.x) // copy_for_others
            : "memory");
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
    if (kIsRight) __syncthreads(); // the copies before the reads
    if (threadIdx.x >= 32) {
        y[threadIdx.x] = tile[threadIdx.x - 32].x; // copy_for_others too
    }
}
extern "C" __global__ void copy_for_others(const float4* x, float* y) {
    copy_for_others<false>(x, y);
}
extern "C" __global__ void copy_for_others_right(const float4* x, float* y) {
    copy_for_others<true>(x, y);
}

// The source of a copy is overwritten before the copy is waited for.
template <bool kIsRight>
__device__ __forceinline__ void overwrite_source(float4* x, float* y) {
    __shared__ float4 tile[32];
    if (threadIdx.x < 32) {
        asm volatile(
            "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&tile[threadIdx.x])),
            "l"(x + threadIdx.x) // overwritten_source
            : "memory");
        if (kIsRight) asm volatile("cp.async.wait_all;" ::: "memory");
    }
    __syncthreads(); // the copies before their source is written
    if (threadIdx.x >= 32) {
        x[threadIdx.x - 32] = make_float4(1.0f, 1.0f, 1.0f, 1.0f); // overwritten_source too
    } else {
        asm volatile("cp.async.wait_all;" ::: "memory");
        y[threadIdx.x] = tile[threadIdx.x].x;
    }
}
extern "C" __global__ void overwritten_source(float4* x, float* y) {
    overwrite_source<false>(x, y);
}
extern "C" __global__ void overwritten_source_right(float4* x, float* y) {
    overwrite_source<true>(x, y);
}

// Warp 0 waits for a flag of warp 1.
__device__ __forceinline__ unsigned weak_load(unsigned at) {
    unsigned value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(at) : "memory"); // weak_flag
    return value;
}
__device__ __forceinline__ void weak_store(unsigned at, unsigned value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(value) : "memory"); // weak_flag too
}
enum Flag { kWeak, kUnfenced, kFenced, kAcquire };
template <Flag kFlag>
__device__ __forceinline__ void wait_for_flag(const float* x, float* y) {
    __shared__ unsigned flag;
    __shared__ float value;
    if (threadIdx.x == 0) {
        flag = 0;
        value = 0.0f;
    }
    __syncthreads(); // flag and value before warp 1 sets them
    volatile unsigned* strong = &flag;
    if (threadIdx.x == 32) {
        value = x[0]; // unfenced_flag
        if (kFlag == kFenced) __threadfence_block();
        if (kFlag == kWeak) {
            weak_store(shared_address(&flag), 1);
        } else if (kFlag == kAcquire) {
            asm volatile("st.release.cta.shared.u32 [%0], 1;" ::"r"(shared_address(&flag))
                         : "memory");
        } else {
            *strong = 1;
        }
    }
    if (threadIdx.x == 0) {
        if (kFlag == kWeak) {
            while (weak_load(shared_address(&flag)) == 0) {
            }
        } else if (kFlag == kAcquire) {
            unsigned seen = 0;
            while (seen == 0) {
                asm volatile("ld.acquire.cta.shared.u32 %0, [%1];"
                             : "=r"(seen)
                             : "r"(shared_address(&flag))
                             : "memory");
            }
        } else {
            while (*strong == 0) {
            }
        }
        if (kFlag == kFenced) __threadfence_block();
        y[0] = value; // unfenced_flag too
        flag = 0;
    }
}
extern "C" __global__ void weak_flag(const float* x, float* y) {
    wait_for_flag<kWeak>(x, y);
}
extern "C" __global__ void unfenced_flag(const float* x, float* y) {
    wait_for_flag<kUnfenced>(x, y);
}
extern "C" __global__ void weak_flag_right(const float* x, float* y) {
    wait_for_flag<kFenced>(x, y);
}
extern "C" __global__ void unfenced_flag_right(const float* x, float* y) {
    wait_for_flag<kAcquire>(x, y);
}

// Four warps read a value, and warp 0 overwrites it once it has met three of them, or all.
template <int kThreads>
__device__ __forceinline__ void overwrite_for_all(const float* x, float* y) {
    __shared__ float value;
    if (threadIdx.x == 0) value = x[0];
    __syncthreads();        // value before the reads
    y[threadIdx.x] = value; // forgotten_reader
    if (threadIdx.x < kThreads) asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
    if (threadIdx.x == 0) value = 1.0f; // forgotten_reader too
}
extern "C" __global__ void forgotten_reader(const float* x, float* y) {
    overwrite_for_all<96>(x, y);
}
extern "C" __global__ void forgotten_reader_right(const float* x, float* y) {
    overwrite_for_all<128>(x, y);
}

// Warp 1 arrives and goes on, warp 0 waits for it; or arrives, and goes on too early.
template <bool kIsRight>
__device__ __forceinline__ void produce_and_consume(const float* x, float* y) {
    __shared__ float own[32];
    if (threadIdx.x < 32) own[threadIdx.x] = 0.0f;
    __syncthreads(); // the zeros before warp 1 writes
    if (threadIdx.x >= 32) {
        own[threadIdx.x - 32] = x[threadIdx.x]; // early_consumer
        if (kIsRight) {
            asm volatile("bar.arrive 1, 64;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 64;" ::: "memory");
        }
    } else {
        if (kIsRight) {
            asm volatile("bar.sync 1, 64;" ::: "memory");
        } else {
            asm volatile("bar.arrive 1, 64;" ::: "memory");
        }
        y[threadIdx.x] = own[threadIdx.x]; // early_consumer too
    }
}
extern "C" __global__ void early_consumer(const float* x, float* y) {
    produce_and_consume<false>(x, y);
}
extern "C" __global__ void early_consumer_right(const float* x, float* y) {
    produce_and_consume<true>(x, y);
}

// Pairs of lanes write the same place with one instruction: different values, or the same.
template <int kShift>
__device__ __forceinline__ void write_in_pairs(const float* x, float* y) {
    y[threadIdx.x / 2] = x[threadIdx.x >> kShift]; // colliding_lanes
}
extern "C" __global__ void colliding_lanes(const float* x, float* y) {
    write_in_pairs<0>(x, y);
}
extern "C" __global__ void colliding_lanes_right(const float* x, float* y) {
    write_in_pairs<1>(x, y);
}

// Counts are added by atomic operations, and read without, after a barrier or before it.
template <bool kIsRight>
__device__ __forceinline__ void count_all(const unsigned* x, unsigned* y) {
    __shared__ unsigned counts[4];
    if (threadIdx.x < 4) counts[threadIdx.x] = 0;
    __syncthreads();                                           // the zeros before the counts
    atomicAdd(&counts[x[threadIdx.x] % 4], 1);                 // early_count
    if (kIsRight) __syncthreads();                             // the counts before they are read
    if (threadIdx.x < 4) y[threadIdx.x] = counts[threadIdx.x]; // early_count too
}
extern "C" __global__ void early_count(const unsigned* x, unsigned* y) {
    count_all<false>(x, y);
}
extern "C" __global__ void early_count_right(const unsigned* x, unsigned* y) {
    count_all<true>(x, y);
}

// Branches, loops of different lengths, barriers of the block and of the warp, lanes that leave: what is run hangs
// on the lane alone.
extern "C" __global__ void divergence(const unsigned* x, unsigned* y) {
    __shared__ unsigned own[128];
    const unsigned lane = threadIdx.x % 32;
    unsigned value = x[threadIdx.x];
    for (unsigned i = 0; i <= threadIdx.x % 7; i++) {
        value = i % 2 == lane % 2 ? value * 1664525u + i : value ^ i << lane;
        if (value % 5 == lane % 5) value += own[threadIdx.x] = i;
    }
    own[threadIdx.x] = value;
    __syncthreads(); // own of all before the reads
    unsigned sum = 0;
    for (unsigned i = 0; i < lane; i++) {
        if (i % 3 == 0) continue;
        sum += own[(threadIdx.x + i) % 128];
    }
    __syncwarp();
    sum += __shfl_xor_sync(0xffffffffu, sum, 5);
    if (lane > 20) return;
    for (unsigned i = 0; i < 1000 * (lane % 2); i++)
        sum = sum * 5 + i;
    y[threadIdx.x] = sum;
}

// Lane 0 waits, past the patience of a warp, for what the other lanes do after a long loop.
extern "C" __global__ void waiting_lane(const unsigned* x, unsigned* y) {
    __shared__ unsigned counts[4];
    volatile unsigned* count = &counts[threadIdx.x / 32];
    if (threadIdx.x % 32 == 0) *count = 0;
    __syncwarp(); // the zero before the counts
    unsigned value = x[threadIdx.x];
    while (threadIdx.x % 32 == 0 && *count < 31)
        value++;
    if (threadIdx.x % 32 != 0) {
        for (int i = 0; i < 1000; i++)
            value = value * 1664525u ^ i;
        atomicAdd(&counts[threadIdx.x / 32], 1);
    }
    y[threadIdx.x] = value;
}
