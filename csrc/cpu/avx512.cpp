// AVX-512 F, BW, VL and DQ. float16 and bfloat16 are computed in float.
#define BICO_ISA on_avx512
#include "backward.h"

namespace bico::cpu {
extern const Kernels avx512_float64 = kernels<Double>;
extern const Kernels avx512_float32 = kernels<Single>;
}  // namespace bico::cpu
