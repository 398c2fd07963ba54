// bico_ext._planted: kernels with planted bugs and single instructions, run by the emulator. For tests of the emulator.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels.h"
#include "wrappers.cuh"

namespace py = pybind11;

namespace {

using namespace bico;
using emulator::Copies;
using emulator::Schedule;
using Words = py::array_t<uint32_t, py::array::c_style>;

template <class Table>
auto& find(const Table& table, const std::string& name) {
  for (const auto& entry : table) {
    if (entry.name == name) return entry;
  }
  throw py::key_error(name);
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const planted::Kernel& kernel : planted::kernels) all.push_back(kernel.name);
  return all;
}

std::vector<float> run(const std::string& name, bool broken, Schedule schedule, Copies copies, uint64_t seed) {
  const planted::Kernel& kernel = find(planted::kernels, name);
  std::vector<float> in(256), out(kernel.results, NAN);
  std::iota(in.begin(), in.end(), 0.0f);
  const py::gil_scoped_release release;
  emulator::run({schedule, copies, seed}, kernel.name, 1, planted::threads, planted::shared_bytes,
                [&] { (broken ? kernel.broken : kernel.correct)(in.data(), out.data()); });
  return out;
}

Words instruction(const std::string& name, const Words& words, Schedule schedule, Copies copies, uint64_t seed,
                  emulator::BankCounts* banks) {
  const planted::Wrapper& wrapper = find(planted::wrappers, name);
  if (words.ndim() != 2 || words.shape(0) % planted::threads != 0 || words.shape(1) != wrapper.inputs) {
    throw py::value_error(name + " takes words [multiple of " + std::to_string(planted::threads) + ", " +
                          std::to_string(wrapper.inputs) + "]");
  }
  const int64_t count = words.shape(0);
  const std::vector<uint32_t> in(words.data(), words.data() + words.size());  // aligned to 16 bytes
  Words result({count, int64_t(wrapper.outputs)});
  uint32_t* out = result.mutable_data();
  const py::gil_scoped_release release;
  emulator::run({schedule, copies, seed, banks}, wrapper.name, count / planted::threads, planted::threads,
                planted::shared_bytes, [&] {
                  const int64_t i = cuda::block_index() * planted::threads + cuda::thread_index();
                  wrapper.run(in.data() + i * wrapper.inputs, out + i * wrapper.outputs);
                });
  return result;
}

}  // namespace

PYBIND11_MODULE(_planted, m) {
  m.doc() = "Kernels with planted bugs, and single instructions, run by the emulator. For tests of the emulator.";
  py::register_local_exception<emulator::Violation>(m, "Violation", PyExc_RuntimeError);
  py::enum_<Schedule>(m, "Schedule", py::module_local())
      .value("round_robin", Schedule::round_robin)
      .value("random", Schedule::random);
  py::enum_<Copies>(m, "Copies", py::module_local())
      .value("at_issue", Copies::at_issue)
      .value("at_wait", Copies::at_wait);
  py::class_<emulator::BankCounts>(m, "BankCounts", py::module_local())
      .def(py::init<>())
      .def("table", &emulator::BankCounts::table, "Requests, wavefronts and fewest wavefronts by kernel and access.");
  m.def("names", &names);
  m.def("run", &run, py::arg("name"), py::arg("broken"), py::arg("schedule"), py::arg("copies"), py::arg("seed"),
        "The results of a kernel, with its planted bug or without.");
  m.def("instruction", &instruction, py::arg("name"), py::arg("words"), py::arg("schedule") = Schedule::round_robin,
        py::arg("copies") = Copies::at_issue, py::arg("seed") = 0, py::arg("banks") = nullptr,
        "What each thread, in blocks of 64, gets from an instruction that it gives a row of words.");
}
