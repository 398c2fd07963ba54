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

// The rule, apart from the CPU, so that the compiler can check it for CPUs that no test has.
struct Cpu {
  bool amx, avx512_bf16, avx512, avx2;
  bool intel;
};

// Intel's vdpbf16ps multiplies pairs more slowly than two vfmadd231ps do their halves: forward and backward of
// (1, 8, 2048, 128) in bfloat16 took 107 ms with it and 70 ms in float on a Xeon with AMX. AMD's is twice as fast as
// its vfmadd231ps (benchmarks/results/cpu-epyc-zen4/instruction_sets.md).
constexpr Choice preferred(const Cpu& cpu) {
  if (cpu.amx) return {Isa::amx, "the best that this CPU has"};
  if (cpu.avx512_bf16 && cpu.intel) return {Isa::avx512, "faster than avx512_bf16 on CPUs of Intel"};
  if (cpu.avx512_bf16) return {Isa::avx512_bf16, "the best that this CPU has"};
  if (cpu.avx512) return {Isa::avx512, "the best that this CPU has"};
  return {Isa::avx2, cpu.avx2 ? "the best that this CPU has" : nullptr};
}

static_assert(preferred({true, true, true, true, true}).isa == Isa::amx);
static_assert(preferred({false, true, true, true, true}).isa == Isa::avx512);
static_assert(preferred({false, true, true, true, false}).isa == Isa::avx512_bf16);
static_assert(preferred({false, false, true, true, true}).isa == Isa::avx512);
static_assert(preferred({false, false, false, true, false}).isa == Isa::avx2);
static_assert(preferred({false, false, false, false, false}).reason == nullptr);

Choice choose() {
  const char* wanted = std::getenv("BICO_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    const Choice choice = preferred({supported(Isa::amx), supported(Isa::avx512_bf16), supported(Isa::avx512),
                                     supported(Isa::avx2), bool(__builtin_cpu_is("intel"))});
    if (choice.reason != nullptr) return choice;
    throw std::runtime_error(
        "the compiled kernels of bico-ext need a CPU with AVX2, FMA and F16C, which this one lacks");
  }
  for (const Isa isa : every_isa) {
    if (std::strcmp(name(isa), wanted) != 0) continue;
    if (supported(isa)) return {isa, "the environment variable BICO_ISA"};
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

Choice chosen_isa() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace bico::cpu
