#include "operation.cuh"

namespace bico::cuda {

template int64_t forward_in<BFloat16>(const Forward&, void*, Stream);
template int64_t backward_in<BFloat16>(const Backward&, bool, void*, Stream);

}  // namespace bico::cuda
