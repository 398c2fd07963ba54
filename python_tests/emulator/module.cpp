// bico_ext._emulator: the CUDA kernels on the CPU, for tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include <cuda/attention.h>
#include "machine/banks.h"
#include "machine/options.h"

namespace py = pybind11;

namespace {

using namespace bico;

std::vector<int64_t> integers(const py::handle& tensor, const char* what) {
  return tensor.attr(what)().cast<std::vector<int64_t>>();
}

void* data(const py::handle& tensor) {
  return tensor.is_none() ? nullptr : reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
}

Heads heads(const py::handle& tensor) {
  const auto strides = integers(tensor, "stride");
  return {data(tensor), strides.at(0), strides.at(1), strides.at(2)};
}

RowStatistics statistics(const py::handle& tensor) {
  if (tensor.is_none()) return {};
  const auto sizes = integers(tensor, "size");
  return {data(tensor), sizes.at(1), sizes.at(2)};
}

DType dtype(const py::handle& tensor) {
  const auto name = py::str(tensor.attr("dtype")).cast<std::string>();
  if (name == "torch.float64") return DType::float64;
  if (name == "torch.float32") return DType::float32;
  return name == "torch.bfloat16" ? DType::bfloat16 : DType::float16;
}

// The op's arguments as torch tensors on the CPU, checked by the caller; cos, sin, span_ids and cu_seqlens contiguous.
void fill(Problem& p, const py::dict& a) {
  const auto q_sizes = integers(a["q"], "size"), k_sizes = integers(a["k"], "size"), table = integers(a["cos"], "size");
  p.dtype = dtype(a["q"]);
  p.batch = q_sizes.at(0);
  p.query_heads = q_sizes.at(1);
  p.kv_heads = k_sizes.at(1);
  p.length = q_sizes.at(2);
  p.head_dim = q_sizes.at(3);
  p.q = heads(a["q"]);
  p.k = heads(a["k"]);
  p.v = heads(a["v"]);
  const int64_t width = table.at(2), batch_stride = table.at(0) == 1 ? 0 : table.at(1) * width;
  p.rotary = {data(a["cos"]), data(a["sin"]), batch_stride, width,
              batch_stride,   width,          width,        a["interleaved"].cast<bool>()};
  p.span_ids = static_cast<const int32_t*>(data(a["span_ids"]));
  p.span_batch_stride = p.length;
  if (!a["cu_seqlens"].is_none()) {
    p.cu_seqlens = static_cast<const int32_t*>(data(a["cu_seqlens"]));
    p.sequences = integers(a["cu_seqlens"], "size").at(0) - 1;
  }
  if (!a["window"].is_none()) p.window = a["window"].cast<int64_t>();
  p.scale = a["scale"].cast<double>();
  p.mirror = a["mirror"].cast<bool>();
}

emulator::Options options(const std::string& schedule, const std::string& copies, uint64_t seed,
                          emulator::BankCounts* banks) {
  if (schedule != "round-robin" && schedule != "random")
    throw py::value_error("schedule must be round-robin or random, got " + schedule);
  if (copies != "at-issue" && copies != "at-wait")
    throw py::value_error("copies must be at-issue or at-wait, got " + copies);
  return {schedule == "random" ? emulator::Schedule::random : emulator::Schedule::round_robin,
          copies == "at-wait" ? emulator::Copies::at_wait : emulator::Copies::at_issue, seed, banks};
}

// Of exactly that many bytes, all of them 0xff: NaN in every type.
struct Memory {
  static constexpr std::align_val_t alignment{256};
  void* data;

  explicit Memory(int64_t bytes) : data(operator new(size_t(bytes), alignment)) {
    std::memset(data, 0xff, size_t(bytes));
  }
  Memory(const Memory&) = delete;
  ~Memory() { operator delete(data, alignment); }
};

void forward(const py::dict& arguments, const std::string& schedule, const std::string& copies, uint64_t seed,
             emulator::BankCounts* banks) {
  Forward problem;
  fill(problem, arguments);
  problem.out = heads(arguments["out"]);
  problem.lse = statistics(arguments["lse"]);
  emulator::Options how = options(schedule, copies, seed, banks);
  const py::gil_scoped_release release;
  const Memory workspace(cuda::forward_workspace(problem));
  cuda::attention_forward(problem, workspace.data, &how);
}

// Returns the bytes of the workspace.
int64_t backward(const py::dict& arguments, bool deterministic, const std::string& schedule, const std::string& copies,
                 uint64_t seed, emulator::BankCounts* banks) {
  Backward problem;
  fill(problem, arguments);
  problem.out = heads(arguments["out"]);
  problem.grad_out = heads(arguments["grad_out"]);
  problem.grad_q = heads(arguments["grad_q"]);
  problem.grad_k = heads(arguments["grad_k"]);
  problem.grad_v = heads(arguments["grad_v"]);
  problem.lse = statistics(arguments["lse"]);
  problem.grad_lse = statistics(arguments["grad_lse"]);
  emulator::Options how = options(schedule, copies, seed, banks);
  const py::gil_scoped_release release;
  const int64_t bytes = cuda::backward_workspace(problem);
  const Memory workspace(bytes);
  cuda::attention_backward(problem, deterministic, workspace.data, &how);
  return bytes;
}

}  // namespace

PYBIND11_MODULE(_emulator, m) {
  m.doc() = "The CUDA kernels of bico_ext, run on the CPU by an emulator. For tests.";
  py::register_exception<emulator::Violation>(m, "Violation", PyExc_RuntimeError);
  py::class_<emulator::BankCounts>(m, "BankCounts", py::module_local())
      .def(py::init<>())
      .def("table", &emulator::BankCounts::table, "Requests, wavefronts and fewest wavefronts by kernel and access.");
  m.def("forward", &forward, py::arg("arguments"), py::kw_only(), py::arg("schedule"), py::arg("copies"),
        py::arg("seed"), py::arg("banks") = nullptr);
  m.def("backward", &backward, py::arg("arguments"), py::kw_only(), py::arg("deterministic"), py::arg("schedule"),
        py::arg("copies"), py::arg("seed"), py::arg("banks") = nullptr);
  m.def(
      "set_device", [](int multiprocessors, int shared_bytes) { emulator::device = {multiprocessors, shared_bytes}; },
      py::arg("multiprocessors") = emulator::Device().multiprocessors,
      py::arg("shared_bytes") = emulator::Device().shared_bytes);
  m.def("largest_launch", [] { return emulator::device.largest_launch; }, "In bytes of shared memory of a block.");
}
