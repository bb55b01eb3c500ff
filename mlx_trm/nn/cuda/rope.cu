// Rotary positions of queries and keys, and the way back. A thread turns 8 pairs (i, i + half) of a
// head, for q and for k. qkv is (B, T, 3, heads, 2 * half), cos and sin are (T, 2 * half) floats; q
// is (B, padded, heads, 2 * half) with zeros from T on, k and v have T positions.

// Where a thread's 8 numbers lie: their row (b, t), the vector in (heads, 2 * half), the angle's
// place in a row of cos and sin.
struct Place {
  long long sequence;
  int position, inside, angle;
};
__device__ __forceinline__ Place place(long long i, int rows, int heads, int half) {
  const int chunks = half / 8;
  const int chunk = (int)(i % chunks), head = (int)(i / chunks % heads);
  const long long row = i / chunks / heads;
  Place p = {row / rows, (int)(row % rows), head * 2 * chunks + chunk, 0};
  p.angle = p.position * 2 * half + chunk * 8;
  return p;
}

__device__ __forceinline__ void copy_turned(Vec8* to, const Vec8* from, int step,
                                            const Angles& angles) {
  Vec8 first = from[0], second = from[step];
  turn(first, second, angles, 1.f);
  to[0] = first;
  to[step] = second;
}

#ifdef ROPE_FORWARD
extern "C" __global__ void rope_forward(const Vec8* qkv, const float* cos, const float* sin, Vec8* q,
                                        Vec8* k, int positions, int padded, int heads, int half,
                                        int count) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count)
    return;
  const Place p = place(i, padded, heads, half);
  const int width = heads * half / 4, step = half / 8;
  Vec8* to = q + (p.sequence * padded + p.position) * width + p.inside;
  if (p.position >= positions) {
    to[0] = to[step] = Vec8{};
    return;
  }
  const Angles angles = angles_at(cos + p.angle, sin + p.angle);
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const Vec8* from = qkv + ((p.sequence * positions + p.position) * 3 + part) * width + p.inside;
    copy_turned(to, from, step, angles);
    to = k + (p.sequence * positions + p.position) * width + p.inside;
  }
}
#endif

#ifdef ROPE_KEYS // of the keys alone; long_attention.cu turns the queries itself
extern "C" __global__ void rope_keys(const Vec8* qkv, const float* cos, const float* sin, Vec8* k,
                                     int positions, int heads, int half, int count) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count)
    return;
  const Place p = place(i, positions, heads, half);
  const int width = heads * half / 4, step = half / 8;
  const long long row = p.sequence * positions + p.position;
  const Vec8* from = qkv + (row * 3 + 1) * width + p.inside;
  copy_turned(k + row * width + p.inside, from, step, angles_at(cos + p.angle, sin + p.angle));
}
#endif

#ifdef ROPE_BACKWARD
extern "C" __global__ void rope_backward(const Vec8* dq, const Vec8* dk, const Vec8* dv,
                                         const float* cos, const float* sin, Vec8* d_qkv,
                                         int positions, int padded, int heads, int half,
                                         int count) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count)
    return;
  const Place p = place(i, positions, heads, half);
  const int width = heads * half / 4, step = half / 8;
  const long long start = (p.sequence * positions + p.position) * width + p.inside;
  const Vec8* from[3] = {dq + start + p.sequence * (padded - positions) * width, dk + start,
                         dv + start};
  Vec8* to = d_qkv + (p.sequence * positions + p.position) * 3 * width + p.inside;
  const Angles angles = angles_at(cos + p.angle, sin + p.angle);
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    Vec8 first = from[part][0], second = from[part][step];
    if (part < 2)
      turn(first, second, angles, -1.f);
    to[part * width] = first;
    to[part * width + step] = second;
  }
}
#endif
