#include "../cuda/exact.cu"
