// printf.cu — a kernel that says what it does.
#include <cstdio>

extern "C" __global__ void say(const char* text) {
    if (threadIdx.x % 2 == 1) {
        const int count = printf("thread %d of %s: %.3f, %llx\n", threadIdx.x, text, threadIdx.x / 8.0, 1ull << 40);
        if (count != 4) __trap();
    }
}
