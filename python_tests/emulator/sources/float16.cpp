#include <cuda/tensor_core/float16.cu>
