// pack.cuh — several elements at a time, up to 16 bytes: the widest load and store of a thread,
// and their conversion to float.
#pragma once

#include <cuda_bf16.h>
#include <type_traits>

// Elements of T in 16 bytes.
template <typename T>
constexpr int kPack = 16 / sizeof(T);

// Aligned to its size, at most to 16 bytes: a larger one is several loads.
template <typename T, int kCount = kPack<T>>
struct alignas(kCount < kPack<T> ? kCount * sizeof(T) : 16) Pack {
    T at[kCount];
};

__device__ __forceinline__ float to_float(float x) {
    return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

template <typename T, int kCount = kPack<T>>
__device__ __forceinline__ Pack<T, kCount> load_pack(const T* at) {
    return *reinterpret_cast<const Pack<T, kCount>*>(at);
}

// The same 16 bytes as words. What waits for the next turn of a loop waits so: of a pack of bf16 the
// compiler keeps every element in a register of its own.
template <typename T>
__device__ __forceinline__ uint4 load_words(const T* at) {
    return *reinterpret_cast<const uint4*>(at);
}

template <typename T>
__device__ __forceinline__ Pack<T> as_pack(uint4 words) {
    // Opaque: else it would keep for this use what it made of the words for an earlier one.
    asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
    return reinterpret_cast<const Pack<T>&>(words);
}

template <typename T>
__device__ __forceinline__ uint4 as_words(const Pack<T>& pack) {
    return reinterpret_cast<const uint4&>(pack);
}

template <typename T, int kCount>
__device__ __forceinline__ void store_pack(T* at, const Pack<T, kCount>& pack) {
    *reinterpret_cast<Pack<T, kCount>*>(at) = pack;
}

// Loads and stores of what the kernel does not touch again: the first to leave L2, so that what it will
// read again stays.
template <typename T>
__device__ __forceinline__ Pack<T> load_last(const T* at) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(at));
    return reinterpret_cast<const Pack<T>&>(words);
}

template <typename T>
__device__ __forceinline__ void store_last(T* at, uint2 words) {
    __stcs(reinterpret_cast<uint2*>(at), words);
}

// Element by element; narrower ones are rounded.
template <typename Y, typename X, int kCount>
__device__ __forceinline__ Pack<Y, kCount> convert(const Pack<X, kCount>& x) {
    if constexpr (std::is_same_v<X, Y>) {
        return x;
    } else {
        Pack<Y, kCount> y;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            y.at[i] = from_float<Y>(to_float(x.at[i]));
        }
        return y;
    }
}

// y += x, rounded.
template <typename X, typename Y, int kCount>
__device__ __forceinline__ void add_pack(Pack<Y, kCount>& y, const Pack<X, kCount>& x) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        y.at[i] = from_float<Y>(to_float(y.at[i]) + to_float(x.at[i]));
    }
}
