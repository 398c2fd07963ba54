// AVX-512 with BF16: products of bfloat16 pairs, at twice the rate of float.
#define BICO_KERNEL_NAMESPACE on_avx512_bf16
#include "../backward.h"

namespace bico::cpu {
constinit const Kernels avx512_bf16_bfloat16 = kernels<BFloat16Pairs>;
}  // namespace bico::cpu
