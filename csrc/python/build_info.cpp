// bico_ext._C: what this build is, and what this CPU can do.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

namespace {

std::map<std::string, bool> cpu_features() {
  __builtin_cpu_init();
  return {
      {"avx2", __builtin_cpu_supports("avx2")},
      {"fma", __builtin_cpu_supports("fma")},
      {"f16c", __builtin_cpu_supports("f16c")},
      {"avx512f", __builtin_cpu_supports("avx512f")},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16")},
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of bico_ext.";
  m.attr("version") = BICO_VERSION;
  m.attr("compiler") = BICO_COMPILER;
  m.attr("built_with_torch") = BICO_TORCH_VERSION;
  m.attr("kernels") = "avx2";
  m.def("cpu_features", &cpu_features, "Instruction sets of this CPU, by name.");
}
