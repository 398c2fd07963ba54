// AMX: products of bfloat16 by tiles of [16, 32] and [32, 16], at up to 16 times the rate of AVX-512's pairs.
#define BICO_KERNEL_NAMESPACE on_amx
#include "../backward.h"
#include "../products/amx_product.h"

namespace bico::cpu {
constinit const Kernels amx_bfloat16 = kernels<BFloat16Tiles>;
}  // namespace bico::cpu
