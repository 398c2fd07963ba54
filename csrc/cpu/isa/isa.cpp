#include "isa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <optional>
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

// The newest wins, but for vdpbf16ps on Intel. A Xeon took 107 ms with it for what it did in 70 ms in float; that Xeon
// has AMX, and its relatives without AMX have not been measured. AMD's vdpbf16ps is twice as fast as its vfmadd231ps
// (instruction_sets.md in benchmarks/results/cpu-epyc-zen4 and cpu-epyc-zen5).
constexpr std::optional<Choice> preferred(const Cpu& cpu) {
  constexpr const char* newest = "the newest that this CPU has";
  if (cpu.amx) return Choice{Isa::amx, newest};
  if (cpu.avx512_bf16 && cpu.intel) return Choice{Isa::avx512, "faster than avx512_bf16 on CPUs of Intel"};
  if (cpu.avx512_bf16) return Choice{Isa::avx512_bf16, newest};
  if (cpu.avx512) return Choice{Isa::avx512, newest};
  if (cpu.avx2) return Choice{Isa::avx2, newest};
  return std::nullopt;
}

static_assert(preferred({true, true, true, true, true})->isa == Isa::amx);
static_assert(preferred({false, true, true, true, true})->isa == Isa::avx512);
static_assert(preferred({false, true, true, true, false})->isa == Isa::avx512_bf16);
static_assert(preferred({false, false, true, true, true})->isa == Isa::avx512);
static_assert(preferred({false, false, false, true, false})->isa == Isa::avx2);
static_assert(!preferred({false, false, false, false, false}));

Choice choose() {
  const char* wanted = std::getenv("BICO_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    const auto choice = preferred({supported(Isa::amx), supported(Isa::avx512_bf16), supported(Isa::avx512),
                                   supported(Isa::avx2), bool(__builtin_cpu_is("intel"))});
    if (choice) return *choice;
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
