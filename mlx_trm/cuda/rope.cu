// Rotary positions of queries and keys, and the way back. A thread turns 8 pairs (i, i + half) of a
// head, for q and for k. qkv is (B, T, 3, heads, 2 * half); cos and sin are (T, 2 * half) floats.

__device__ __forceinline__ void turn(Vec8& first, Vec8& second, const float* cos, const float* sin,
                                     float sign) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float a = low(first.pair[k]), b = high(first.pair[k]);
    const float c = low(second.pair[k]), d = high(second.pair[k]);
    const float s = sign * sin[2 * k], t = sign * sin[2 * k + 1];
    first.pair[k] = pack(a * cos[2 * k] - c * s, b * cos[2 * k + 1] - d * t);
    second.pair[k] = pack(c * cos[2 * k] + a * s, d * cos[2 * k + 1] + b * t);
  }
}

// Where a thread's 8 numbers lie in (B, T, heads, 2 * half), in vectors, and its position.
struct Place {
  long long row; // (b, t)
  int inside;    // vector within (heads, 2 * half)
  int angle;     // first of the 8 in a row of cos and sin
};
__device__ __forceinline__ Place place(long long i, int heads, int half) {
  const int chunks = half / 8;
  const int chunk = (int)(i % chunks), head = (int)(i / chunks % heads);
  Place p;
  p.row = i / chunks / heads;
  p.inside = head * 2 * chunks + chunk;
  p.angle = chunk * 8;
  return p;
}

extern "C" __global__ void rope_forward(const Vec8* qkv, const float* cos, const float* sin, Vec8* q,
                                        Vec8* k, int positions, int heads, int half, int count) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count)
    return;
  const Place p = place(i, heads, half);
  const int width = heads * half / 4, step = half / 8, angle = p.row % positions * 2 * half + p.angle;
  const Vec8* from = qkv + p.row * 3 * width + p.inside;
  Vec8* to[2] = {q + p.row * width + p.inside, k + p.row * width + p.inside};
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    Vec8 first = from[part * width], second = from[part * width + step];
    turn(first, second, cos + angle, sin + angle, 1.f);
    to[part][0] = first;
    to[part][step] = second;
  }
}

extern "C" __global__ void rope_backward(const Vec8* dq, const Vec8* dk, const Vec8* dv,
                                         const float* cos, const float* sin, Vec8* d_qkv,
                                         int positions, int heads, int half, int count) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count)
    return;
  const Place p = place(i, heads, half);
  const int width = heads * half / 4, step = half / 8, angle = p.row % positions * 2 * half + p.angle;
  const Vec8* from[2] = {dq + p.row * width + p.inside, dk + p.row * width + p.inside};
  Vec8* to = d_qkv + p.row * 3 * width + p.inside;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    Vec8 first = from[part][0], second = from[part][step];
    turn(first, second, cos + angle, sin + angle, -1.f);
    to[part * width] = first;
    to[part * width + step] = second;
  }
  to[2 * width] = dv[p.row * width + p.inside];
  to[2 * width + step] = dv[p.row * width + p.inside + step];
}
