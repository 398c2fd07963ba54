// Calls the operation of the problem's element type. Free of CUDA: the emulator has its own instances of the
// operations.
#include "attention.h"

#include <algorithm>

#include "dispatch.h"

namespace bico::cuda {
namespace {

template <class Run>
int64_t in_dtype(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::float64: return run(double());
    case DType::float32: return run(float());
    case DType::bfloat16: return run(BFloat16());
    default: return run(Float16());
  }
}

template <class Problem>
Problem with_short_window(Problem problem) {
  problem.window = std::min(problem.window, problem.length);
  return problem;
}

int64_t forward(const Forward& p, void* workspace, Stream stream) {
  const Forward problem = with_short_window(p);
  return in_dtype(problem.dtype, [&](auto type) { return forward_in<decltype(type)>(problem, workspace, stream); });
}

int64_t backward(const Backward& p, bool deterministic, void* workspace, Stream stream) {
  const Backward problem = with_short_window(p);
  return in_dtype(problem.dtype,
                  [&](auto type) { return backward_in<decltype(type)>(problem, deterministic, workspace, stream); });
}

}  // namespace

int64_t forward_workspace(const Forward& problem) {
  return forward(problem, nullptr, nullptr);
}

int64_t backward_workspace(const Backward& problem) {
  return backward(problem, false, nullptr, nullptr);
}

void attention_forward(const Forward& problem, void* workspace, Stream stream) {
  forward(problem, workspace, stream);
}

void attention_backward(const Backward& problem, bool deterministic, void* workspace, Stream stream) {
  backward(problem, deterministic, workspace, stream);
}

}  // namespace bico::cuda
