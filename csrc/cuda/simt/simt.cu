#include "operation.cuh"

namespace bico::cuda {

template int64_t forward_in<float>(const Forward&, void*, Stream);
template int64_t forward_in<double>(const Forward&, void*, Stream);
template int64_t backward_in<float>(const Backward&, bool, void*, Stream);
template int64_t backward_in<double>(const Backward&, bool, void*, Stream);

}  // namespace bico::cuda
