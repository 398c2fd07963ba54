#include "../cuda/bfloat16.cu"
