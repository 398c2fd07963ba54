// Runs the CPU kernels on many threads under ThreadSanitizer, and compares each result with that of one thread, bit by
// bit. Torch's threads cannot be watched (OpenMP's barriers are unknown to the sanitizer), so these are plain ones; the
// kernels are those of AVX2, whose tasks, packing and order of additions all instruction sets share.
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "cpu/kernels.h"

namespace bico::cpu {

const Kernels& kernels_for(DType dtype) {
  return dtype == DType::float64 ? avx2_float64 : avx2_float32;
}

}  // namespace bico::cpu

namespace {

using namespace bico;

struct Shape {
  int64_t batch, query_heads, kv_heads, length, head_dim;
  std::vector<int32_t> cu_seqlens;
  bool spans;
};

Heads heads(std::vector<float>& data, int64_t count, const Shape& s) {
  data.resize(size_t(s.batch * count * s.length * s.head_dim));
  return {data.data(), count * s.length * s.head_dim, s.length * s.head_dim, s.head_dim};
}

struct Results {
  std::vector<float> out, lse, grad_q, grad_k, grad_v;

  bool same(const Results& other) const {
    const auto equal = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return equal(out, other.out) && equal(lse, other.lse) && equal(grad_q, other.grad_q) &&
           equal(grad_k, other.grad_k) && equal(grad_v, other.grad_v);
  }
};

cpu::Threads plain_threads(int64_t count) {
  return {count, [](int64_t n, const std::function<void()>& body) {
            std::vector<std::thread> threads;
            for (int64_t i = 1; i < n; ++i) threads.emplace_back(body);
            body();
            for (std::thread& thread : threads) thread.join();
          }};
}

// Forward and backward of the same random problem, whatever the number of threads.
Results compute(const Shape& s, int64_t threads) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> q, k, v, grad_out, cos(size_t(s.length * s.head_dim)), sin(cos.size());
  std::vector<int32_t> spans(size_t(s.batch * s.length));
  Backward p;
  p.dtype = DType::float32;
  p.batch = s.batch, p.query_heads = s.query_heads, p.kv_heads = s.kv_heads, p.length = s.length;
  p.head_dim = s.head_dim, p.scale = 0.125;
  p.q = heads(q, s.query_heads, s), p.k = heads(k, s.kv_heads, s), p.v = heads(v, s.kv_heads, s);
  p.grad_out = heads(grad_out, s.query_heads, s);
  for (std::vector<float>* values : {&q, &k, &v, &grad_out}) {
    for (float& value : *values) value = normal(random);
  }
  for (size_t i = 0; i < cos.size(); ++i) {
    const float angle = float(i / size_t(s.head_dim)) / float(1 + i % size_t(s.head_dim / 2));
    cos[i] = std::cos(angle), sin[i] = std::sin(angle);
  }
  p.rotary = {cos.data(), sin.data(), 0, s.head_dim, 0, s.head_dim, s.head_dim, false};
  for (size_t i = 0; i < spans.size(); ++i) spans[i] = int32_t(i % 7 == 3) - int32_t(i % 11 == 5);
  if (s.spans) p.span_ids = spans.data(), p.span_batch_stride = s.length;
  if (!s.cu_seqlens.empty()) p.cu_seqlens = s.cu_seqlens.data(), p.sequences = int64_t(s.cu_seqlens.size()) - 1;

  Results results;
  p.out = heads(results.out, s.query_heads, s);
  p.grad_q = heads(results.grad_q, s.query_heads, s);
  p.grad_k = heads(results.grad_k, s.kv_heads, s), p.grad_v = heads(results.grad_v, s.kv_heads, s);
  results.lse.resize(size_t(s.batch * s.query_heads * s.length));
  p.lse = {results.lse.data(), s.query_heads, s.length};
  Forward forward;
  static_cast<Problem&>(forward) = p;
  forward.out = p.out, forward.lse = p.lse;
  cpu::attention_forward(forward, plain_threads(threads));
  cpu::attention_backward(p, plain_threads(threads));
  return results;
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {1, 1, 1, 700, 64, {}, true},                       // one unit: all threads follow each other at its tiles
      {1, 4, 2, 300, 64, {}, true},                       // grouped heads add to the same keys
      {3, 2, 2, 129, 128, {}, false},                     // more units than threads; a tile of one row
      {1, 2, 1, 500, 64, {0, 1, 1, 40, 333, 500}, true},  // packed, with an empty sequence
      {8, 4, 2, 60, 64, {}, true},                        // sequences of one tile: each thread takes whole units
  };
  int failures = 0;
  for (const Shape& shape : shapes) {
    const Results expected = compute(shape, 1);
    for (const int64_t threads : {2, 3, 8}) {
      if (compute(shape, threads).same(expected)) continue;
      std::fprintf(stderr, "length %ld: %ld threads give other results than one\n", long(shape.length), long(threads));
      ++failures;
    }
    // Several callers at once, as Python threads are: each has its own call, and they share what the threads keep.
    std::vector<std::thread> callers;
    std::vector<int> same(3);
    for (size_t caller = 0; caller < same.size(); ++caller) {
      callers.emplace_back([&, caller] { same[caller] = compute(shape, 2).same(expected); });
    }
    for (std::thread& caller : callers) caller.join();
    for (const int ok : same) failures += !ok;
  }
  std::printf("%zu problems on 1, 2, 3 and 8 threads and by 3 callers at once: %d failures\n", std::size(shapes),
              failures);
  return failures > 0;
}
