#include <cuda/simt/simt.cu>
