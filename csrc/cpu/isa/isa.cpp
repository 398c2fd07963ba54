#include "isa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace bico::cpu {
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

bool has_amx() {
#ifdef BICO_EMULATE_AMX
  return has_avx512_bf16();
#else
  // Linux hands out the 8 KB of tile registers on request only: ARCH_REQ_XCOMP_PERM for XTILEDATA, once in each
  // process.
  return has_avx512_bf16() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#endif
}

std::string names(bool supported_only) {
  std::string list;
  for (const Isa isa : every_isa) {
    if (!supported_only || supported(isa)) list += (list.empty() ? "" : ", ") + std::string(name(isa));
  }
  return list.empty() ? "none" : list;
}

Isa choose() {
  const char* wanted = std::getenv("BICO_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (const Isa isa : every_isa) {
      if (supported(isa)) return isa;
    }
    throw std::runtime_error(
        "the compiled kernels of bico-ext need a CPU with AVX2, FMA and F16C, which this one lacks");
  }
  for (const Isa isa : every_isa) {
    if (std::strcmp(name(isa), wanted) != 0) continue;
    if (supported(isa)) return isa;
    throw std::runtime_error("BICO_ISA is " + std::string(wanted) + ", which this CPU lacks; it has: " + names(true));
  }
  throw std::runtime_error("BICO_ISA must be one of " + names(false) + ", got " + wanted);
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::amx: return "amx";
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    default: return "avx2";
  }
}

bool supported(Isa isa) {
  static const bool amx = has_amx(), avx512_bf16 = has_avx512_bf16(), avx512 = has_avx512(), avx2 = has_avx2();
  switch (isa) {
    case Isa::amx: return amx;
    case Isa::avx512_bf16: return avx512_bf16;
    case Isa::avx512: return avx512;
    default: return avx2;
  }
}

Isa chosen_isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace bico::cpu
