// mathematics.cu — CUDA's mathematical functions of one and of two arguments, in f32 and in f64. They branch by
// ranges of their arguments, call functions, keep arrays in local memory and convert in every direction.

#define OF_TYPE(name, type, ...)                                                                   \
    extern "C" __global__ void name##_##type(const type* xs, const type* ys, type* to) {           \
        const int i = blockIdx.x * blockDim.x + threadIdx.x;                                       \
        const type x = xs[i], y = ys[i];                                                           \
        to[i] = __VA_ARGS__;                                                                       \
    }
#define FUNCTION(name) OF_TYPE(name, float, name##f(x)) OF_TYPE(name, double, name(x))
#define FUNCTION2(name) OF_TYPE(name, float, name##f(x, y)) OF_TYPE(name, double, name(x, y))

FUNCTION(sin)
FUNCTION(cos)
FUNCTION(tan)
FUNCTION(asin)
FUNCTION(acos)
FUNCTION(atan)
FUNCTION(sinh)
FUNCTION(cosh)
FUNCTION(tanh)
FUNCTION(asinh)
FUNCTION(acosh)
FUNCTION(atanh)
FUNCTION(exp)
FUNCTION(exp2)
FUNCTION(expm1)
FUNCTION(log)
FUNCTION(log2)
FUNCTION(log10)
FUNCTION(log1p)
FUNCTION(sqrt)
FUNCTION(cbrt)
FUNCTION(erf)
FUNCTION(erfc)
FUNCTION(tgamma)
FUNCTION(floor)
FUNCTION(rint)
FUNCTION(trunc)
FUNCTION2(pow)
FUNCTION2(atan2)
FUNCTION2(hypot)
FUNCTION2(fmod)
FUNCTION2(remainder)
FUNCTION2(fmax)
FUNCTION2(fmin)
