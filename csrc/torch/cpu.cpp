// The op on the CPU: torch's threads for the kernels.
#include <torch/csrc/stable/library.h>

#include "../cpu/kernels.h"
#include "prepare.h"

namespace bico {
namespace {

cpu::Threads torch_threads() {
  return {int64_t(torch::stable::get_num_threads()), [](int64_t n, const std::function<void()>& body) {
            torch::stable::parallel_for(0, n, 1, [&](int64_t, int64_t) { body(); });
          }};
}

void run_forward(const PreparedForward& prepared) {
  cpu::attention_forward(prepared.problem, torch_threads());
}

void run_backward(const PreparedBackward& prepared, bool /* deterministic: always */) {
  cpu::attention_backward(prepared.problem, torch_threads());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bico, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward<run_forward>));
  m.impl("attention_backward", TORCH_BOX(&attention_backward<run_backward>));
}

}  // namespace bico
