#include <cuda/tensor_core/bfloat16.cu>
