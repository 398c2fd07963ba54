// Which kernels each instruction set has for each dtype: the one table of what runs where.
#include "../kernels.h"
#include "isa.h"

namespace bico::cpu {

// float16 is computed in float: a product of float16 pairs exists on no machine that the project has met.
const Kernels& kernels_for(DType dtype) {
  const Isa isa = chosen_isa().isa;
  if (isa == Isa::avx2) return dtype == DType::float64 ? avx2_float64 : avx2_float32;
  if (dtype == DType::bfloat16 && isa == Isa::amx) return amx_bfloat16;
  if (dtype == DType::bfloat16 && isa == Isa::avx512_bf16) return avx512_bf16_bfloat16;
  return dtype == DType::float64 ? avx512_float64 : avx512_float32;
}

}  // namespace bico::cpu
