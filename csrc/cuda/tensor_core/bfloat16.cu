#include "operation.cuh"

namespace bico::cuda {

template int64_t forward_in<Brain>(const Forward&, void*, Stream);
template int64_t backward_in<Brain>(const Backward&, bool, void*, Stream);

}  // namespace bico::cuda
