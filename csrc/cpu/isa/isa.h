// The instruction sets that there are kernels for, and which of them this process uses.
#pragma once

namespace bico::cpu {

// The best first.
enum class Isa { amx, avx512_bf16, avx512, avx2 };
constexpr Isa every_isa[] = {Isa::amx, Isa::avx512_bf16, Isa::avx512, Isa::avx2};

const char* name(Isa isa);
bool supported(Isa isa);  // by this CPU and its operating system

struct Choice {
  Isa isa;
  const char* reason;
};

// The fastest that is supported, or the one that the environment variable BICO_ISA names; chosen at the first call. No
// clock decides, as results differ between sets by rounding. Throws std::runtime_error where there is none.
Choice chosen_isa();

}  // namespace bico::cpu
