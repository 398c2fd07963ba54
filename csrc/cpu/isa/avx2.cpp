// AVX2 with FMA and F16C. float16 and bfloat16 are computed in float.
#define BICO_KERNEL_NAMESPACE on_avx2
#include "../backward.h"

namespace bico::cpu {
constinit const Kernels avx2_float64 = kernels<ScalarOperands<double>>;
constinit const Kernels avx2_float32 = kernels<ScalarOperands<float>>;
}  // namespace bico::cpu
