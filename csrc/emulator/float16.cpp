#include "../cuda/float16.cu"
