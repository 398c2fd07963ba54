// AVX-512 F, BW, VL and DQ. float16 and bfloat16 are computed in float.
#define BICO_KERNEL_NAMESPACE on_avx512
#include "../backward.h"

namespace bico::cpu {
constinit const Kernels avx512_float64 = kernels<ScalarOperands<double>>;
constinit const Kernels avx512_float32 = kernels<ScalarOperands<float>>;
}  // namespace bico::cpu
