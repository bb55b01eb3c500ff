// Conversions and vectors for kernels in bfloat16. No header is included, so that a kernel compiles
// in a fraction of a second. Arithmetic is in float; `rounded` marks where PyTorch would round.

typedef unsigned short bf16;
#define INFINITY __int_as_float(0x7f800000)

// A kernel compiled with KEEP 1 has one output more, which not every caller needs: an array that
// nobody uses would cost MLX its time, too.
#if defined(KEEP) && KEEP
#define KEPT(parameter) parameter,
#else
#define KEPT(parameter)
#endif

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

// The fast exponential and reciprocal: one result in some thousand rounds the other way. Exact ones made
// an evaluation step of 768 Sudoku 16 % slower and changed no figure of parity. Numbers below 1e-38
// count as 0 (ftz), which changed none either: else three instructions look for such numbers.
__device__ __forceinline__ float power_of_2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
__device__ __forceinline__ float sigmoid(float x) {
  float share;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(1.f + power_of_2(x * -1.44269504f)));
  return share;
}
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// h, of gate and up.
__device__ __forceinline__ float silu_times(float gate, float up) {
  return rounded(silu(gate)) * up;
}
// The gradients of gate and up, and h = silu(gate) * up, from gate, up and the gradient of h.
__device__ __forceinline__ float3 swiglu_gradients(float gate, float up, float dh) {
  const float share = sigmoid(gate);
  const float gated = rounded(gate * share);
  const float d_gated = rounded(dh * up);
  return make_float3(d_gated * (share * (1.f + gate * (1.f - share))), dh * gated, gated * up);
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Over the four lanes that share a row of a tensor core's result.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Turn 8 pairs (first, second) by their position's angles, or back with sign -1.
struct Angles {
  float4 cos[2], sin[2];
};
__device__ __forceinline__ Angles angles_at(const float* cos, const float* sin) {
  const float4 *c = (const float4*)cos, *s = (const float4*)sin;
  Angles angles = {{c[0], c[1]}, {s[0], s[1]}};
  return angles;
}
__device__ __forceinline__ void turn(Vec8& first, Vec8& second, const Angles& angles, float sign) {
  const float* cos = (const float*)angles.cos;
  const float* sin = (const float*)angles.sin;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float a = low(first.pair[k]), b = high(first.pair[k]);
    const float c = low(second.pair[k]), d = high(second.pair[k]);
    const float s = sign * sin[2 * k], t = sign * sin[2 * k + 1];
    first.pair[k] = pack(a * cos[2 * k] - c * s, b * cos[2 * k + 1] - d * t);
    second.pair[k] = pack(c * cos[2 * k] + a * s, d * cos[2 * k + 1] + b * t);
  }
}

// Tensor cores: mma.sync multiplies (16 x 16) by (16 x 8) for a warp. With g = lane / 4 and
// q = lane % 4, a lane holds of A the pairs (g, 2q), (g + 8, 2q), (g, 2q + 8), (g + 8, 2q + 8), of B
// the pairs (2q, g), (2q + 8, g), and of the result (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1).
// ldmatrix brings four 8 x 8 matrices from shared memory, the row addresses given by 8 lanes each.

__device__ __forceinline__ unsigned int shared_address(const void* p) {
  return (unsigned int)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void copy16(bf16* to, const bf16* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from));
}
// The copies begun since the last end are a group; wait until no more than LEFT groups are under way.
__device__ __forceinline__ void end_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LEFT> __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
__device__ __forceinline__ void load4(unsigned int* r, const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}
__device__ __forceinline__ void load2(unsigned int* r, const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(p)));
}
__device__ __forceinline__ void load4_transposed(unsigned int* r, const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}
__device__ __forceinline__ void load2_transposed(unsigned int* r, const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(p)));
}
__device__ __forceinline__ void multiply16(float* c, const unsigned int* a, const unsigned int* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply8(float* c, const unsigned int* a, unsigned int b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Each 8 x 8 matrix of a warp's fragments turned: lane (g, q) gets the pair (g, 2q) of the other.
__device__ __forceinline__ unsigned int turned(unsigned int pair) {
  unsigned int other;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(pair));
  return other;
}
