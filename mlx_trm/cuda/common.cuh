// Conversions and vectors for kernels in bfloat16. No header is included, so that a kernel compiles
// in a fraction of a second. Arithmetic is in float; `rounded` marks where PyTorch would round.

typedef unsigned short bf16;

struct __align__(16) Vec8 { // 8 numbers in 16 bytes, the most one thread reads at once
  unsigned int pair[4];
};

__device__ __forceinline__ float low(unsigned int pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(unsigned int pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ unsigned int pack(float first, float second) {
  unsigned int pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
__device__ __forceinline__ float rounded(float x) { return low(pack(x, 0.f)); }
__device__ __forceinline__ float widened(bf16 x) { return __uint_as_float((unsigned int)x << 16); }
__device__ __forceinline__ bf16 narrowed(float x) { return (bf16)pack(x, 0.f); }

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
