// Whether arrays hold NaN or infinity. ARRAYS declares them, NAMES and SIZES list them.

extern "C" __global__ void find_nonfinite(ARRAYS, float* found) {
  // A finite number times 0 is 0; NaN and infinity give NaN, which a sum keeps. (Fast arithmetic,
  // which nvrtc.py does not ask for, would leave the product out.)
  const float* const arrays[] = {NAMES};
  constexpr long long sizes[] = {SIZES};
  const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const long long step = (long long)gridDim.x * blockDim.x;
  float sum = 0.f;
  for (int k = 0; k < sizeof(sizes) / sizeof(sizes[0]); ++k)
    for (long long i = first; i < sizes[k]; i += step)
      sum += 0.f * arrays[k][i];
  // Every thread writes the same, and 0 was there before.
  if (!(sum == 0.f))
    *found = 1.f;
}
