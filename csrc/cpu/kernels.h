// The CPU kernels' entry points. The caller brings the threads.
#pragma once

#include <cstdint>
#include <functional>

#include "../attention.h"

namespace bico::cpu {

// Calls body(begin, end) on disjoint ranges that cover [0, count), in parallel, `grain` tasks or more to a range.
using Body = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = std::function<void(int64_t count, int64_t grain, const Body& body)>;

// Both are bit-identical for any number of threads: a task's additions never depend on who runs it.
void attention_forward(const Forward& problem, const ParallelFor& parallel_for);
void attention_backward(const Backward& problem, const ParallelFor& parallel_for);

}  // namespace bico::cpu
