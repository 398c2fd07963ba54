// bico_ext._C: what this build is, and what this CPU can do.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "../cpu/isa/isa.h"

namespace {

std::map<std::string, bool> instruction_sets() {
  std::map<std::string, bool> supported;
  for (const bico::cpu::Isa isa : bico::cpu::every_isa) supported[name(isa)] = bico::cpu::supported(isa);
  return supported;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of bico_ext.";
  m.attr("version") = BICO_VERSION;
  m.attr("compiler") = BICO_COMPILER;
  m.attr("built_with_torch") = BICO_TORCH_VERSION;
  m.attr("cuda_kernels") = BICO_CUDA;  // nvcc's version and what it compiled for; empty without
#ifdef __SANITIZE_ADDRESS__
  m.attr("sanitized") = true;
#else
  m.attr("sanitized") = false;
#endif
#ifdef BICO_EMULATE_AMX
  m.attr("emulates_amx") = true;
#else
  m.attr("emulates_amx") = false;
#endif
  m.def("instruction_sets", &instruction_sets, "Those that there are CPU kernels for, and whether this CPU has them.");
  m.def(
      "chosen_instruction_set", [] { return std::string(name(bico::cpu::chosen_isa().isa)); },
      "The one whose kernels run: the fastest, or that of the environment variable BICO_ISA.");
  m.def("why_chosen", [] { return std::string(bico::cpu::chosen_isa().reason); }, "Why that one runs.");
}
