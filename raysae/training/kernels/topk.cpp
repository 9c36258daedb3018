// The kernels of the CPU step of TopK and BatchTopK; raysae/training/compiled.py makes a step of them.
//
// Shapes: B batch, D d_in, F d_sae, N selected entries of the batch. W is the type of the matrix
// products' operands: float, or bf16 (uint16_t). Sums are float. W_enc is stored transposed, [F, D]
// like W_dec, so that a latent is a row of both. One thread sums each row in a fixed order: results do
// not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using bf16 = uint16_t;
const float SMALLEST = 1.17549435e-38f;  // the smallest normal positive float

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, bf16* out) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *out = bf16((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
inline float float_of(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Moments of latents that never fire become denormal numbers, which are a hundred times slower.
struct FlushDenormals {
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};

#if defined(__AVX512F__)
inline __m512 widen16(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 widen16(const bf16* x) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
#endif

// Append pre + bias where it is at least `least` > 0, and the columns; the outputs need room for 16 more.
// NaN is above all numbers, as in torch's topk: it is selected, so that the loss is NaN.
template <class W>
int append_at_least(const W* pre, const float* bias, int F, float least, float* value, int32_t* column) {
    int n = 0, f = 0;
#if defined(__AVX512F__)
    const __m512 bound = _mm512_set1_ps(least);
    __m512i columns = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i sixteen = _mm512_set1_epi32(16);
    for (; f + 16 <= F; f += 16) {
        __m512 x = _mm512_add_ps(widen16(pre + f), _mm512_loadu_ps(bias + f));
        __mmask16 reached = _mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ);
        _mm512_storeu_ps(value + n, _mm512_maskz_compress_ps(reached, x));
        _mm512_storeu_si512(column + n, _mm512_maskz_compress_epi32(reached, columns));
        columns = _mm512_add_epi32(columns, sixteen);
        n += __builtin_popcount(reached);
    }
#endif
    for (; f < F; f++) {
        float x = widen(pre[f]) + bias[f];
        value[n] = x;
        column[n] = f;
        n += !(x < least);
    }
    return n;
}

template <class W>
int count_at_least(const W* pre, const float* bias, int F, float least) {
    int count = 0;
    for (int f = 0; f < F; f++) count += !(widen(pre[f]) + bias[f] < least);
    return count;
}

// The k-th largest of n > k positive floats, whose order is that of their bits; NaN of either sign is the
// largest.
float kth_largest(const float* value, int n, int k) {
    const int32_t* signed_bits = reinterpret_cast<const int32_t*>(value);
    auto bits = [&](int i) { return signed_bits[i] & INT32_MAX; };
    int32_t low = INT32_MAX, high = 0;  // at least k reach low, fewer than k reach high
    for (int i = 0; i < n; i++) low = std::min(low, bits(i)), high = std::max(high, bits(i));
    high = std::min(high, INT32_MAX - 1) + 1;
    while (high - low > 1) {
        int32_t probe = low + (high - low) / 2;
        int count = 0;
        for (int i = 0; i < n; i++) count += bits(i) >= probe;
        if (count == k) return float_of(probe);
        if (count > k) low = probe;
        else high = probe;
    }
    return float_of(low);
}

// Select k entries that are >= `least`, in place; of those equal to it, the first ones.
int keep_k(float* value, int32_t* column, int n, int k, float least) {
    int equal = k, kept = 0;
    for (int i = 0; i < n; i++) equal -= !(value[i] <= least);
    for (int i = 0; i < n; i++) {
        float x = value[i];
        bool keep = !(x <= least) || (x == least && equal-- > 0);
        value[kept] = x;
        column[kept] = column[i];
        kept += keep;
    }
    return std::min(kept, k);  // more are kept where more than k are NaN
}

// Each row's k largest positive entries.
template <class W>
void select_rows(const W* pre, const float* bias, int64_t B, int F, int k, float* value, int32_t* column,
                 int64_t* first, int64_t* last, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> values(F + 16);
        std::vector<int32_t> columns(F + 16);
        float usual = 0;  // the smallest selected value of the rows before
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) {
            const W* row = pre + b * F;
            float least = std::max(0.75f * usual, SMALLEST);
            int n = append_at_least(row, bias, F, least, values.data(), columns.data());
            if (n < k && least > SMALLEST)
                n = append_at_least(row, bias, F, SMALLEST, values.data(), columns.data());
            if (n > k) {
                float kth = kth_largest(values.data(), n, k);
                n = keep_k(values.data(), columns.data(), n, k, kth);
                if (kth == kth) usual = usual == 0 ? kth : 0.9f * usual + 0.1f * kth;
            }
            first[b] = b * k;
            last[b] = b * k + n;
            std::memcpy(value + b * k, values.data(), n * sizeof(float));
            std::memcpy(column + b * k, columns.data(), n * sizeof(int32_t));
        }
    }
}

// NaN has no place in an order by `greater`.
inline void nan_to_infinity(float* value, int64_t n) {
    for (int64_t i = 0; i < n; i++) value[i] = value[i] == value[i] ? value[i] : INFINITY;
}

// A threshold that somewhat more than `total` entries of the batch are likely to reach.
template <class W>
float likely_threshold(const W* pre, const float* bias, int64_t B, int F, int64_t total) {
    int64_t stride = std::max<int64_t>(B / 64, 1), rows = (B + stride - 1) / stride, n = 0;
    std::vector<float> values(rows * F + 16);
    std::vector<int32_t> columns(rows * F + 16);
    for (int64_t b = 0; b < B; b += stride)
        n += append_at_least(pre + b * F, bias, F, SMALLEST, values.data() + n, columns.data() + n);
    nan_to_infinity(values.data(), n);
    int64_t rank = int64_t(1.2 * double(total) * double(rows) / double(B)) + 16;
    if (n <= rank) return SMALLEST;
    std::nth_element(values.begin(), values.begin() + rank, values.begin() + n, std::greater<float>());
    return values[rank];
}

// The `total` largest positive entries of the batch, row by row. `room` is the size of value and column,
// which must be larger than the result. Returns the number of entries, or -1 when `room` is too small.
template <class W>
int64_t select_batch(const W* pre, const float* bias, int64_t B, int F, int64_t total, int64_t room,
                     float* value, int32_t* column, int64_t* first, int threads) {
    float least = likely_threshold(pre, bias, B, F, total);
    while (true) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t b = 0; b < B; b++) first[b + 1] = count_at_least(pre + b * F, bias, F, least);
        first[0] = 0;
        for (int64_t b = 0; b < B; b++) first[b + 1] += first[b];
        if (first[B] >= total || least == SMALLEST) break;
        least = least < 1e-6f ? SMALLEST : 0.8f * least;
    }
    int64_t reached = first[B];
    if (reached > room) return -1;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> values(F + 16);
        std::vector<int32_t> columns(F + 16);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) {
            int n = append_at_least(pre + b * F, bias, F, least, values.data(), columns.data());
            std::memcpy(value + first[b], values.data(), n * sizeof(float));
            std::memcpy(column + first[b], columns.data(), n * sizeof(int32_t));
        }
    }
    if (reached <= total) return reached;
    std::vector<float> ranked(value, value + reached);
    nan_to_infinity(ranked.data(), reached);
    std::nth_element(ranked.begin(), ranked.begin() + (total - 1), ranked.end(), std::greater<float>());
    float smallest = ranked[total - 1];
    int64_t equal = total, kept = 0;
    for (int64_t i = 0; i < reached; i++) equal -= !(value[i] <= smallest);
    for (int64_t b = 0, i = 0; b < B; b++) {
        for (int64_t end = first[b + 1]; i < end; i++) {
            float x = value[i];
            const bool keep = !(x <= smallest) || (x == smallest && equal-- > 0);
            value[kept] = x;
            column[kept] = column[i];
            kept += keep;
        }
        first[b + 1] = kept;
    }
    return kept;
}

// Rows are as they are stored; the SAE reads x_scale * (x - mean).
template <class W>
void center(const float* x, const float* mean, const float* b_dec, int64_t B, int D, float x_scale, W* out,
            int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < B; b++)
        for (int d = 0; d < D; d++) narrow(x_scale * (x[b * D + d] - mean[d]) - b_dec[d], out + b * D + d);
}

// error = reconstruction - x_scale * (x - mean); dz = gradient for the selected features; loss per row.
template <class W>
void decode_rows(const float* x, const float* mean, const W* W_dec, const float* b_dec, const float* value,
                 const int32_t* column, const int64_t* first, const int64_t* last, int64_t B, int D,
                 float x_scale, W* error, float* dz, double* loss, double* loss_sum, int threads) {
    const float scale = 2.0f / float(B);
#pragma omp parallel num_threads(threads)
    {
        FlushDenormals flush;
        std::vector<float> sum_buffer(D);
        float* __restrict sum = sum_buffer.data();
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) {
            const float* row = x + b * D;
            for (int d = 0; d < D; d++) sum[d] = b_dec[d] - x_scale * (row[d] - mean[d]);
            int64_t i = first[b], end = last[b];
            for (; i + 4 <= end; i += 4) {
                const W* w0 = W_dec + int64_t(column[i]) * D;
                const W* w1 = W_dec + int64_t(column[i + 1]) * D;
                const W* w2 = W_dec + int64_t(column[i + 2]) * D;
                const W* w3 = W_dec + int64_t(column[i + 3]) * D;
                float v0 = value[i], v1 = value[i + 1], v2 = value[i + 2], v3 = value[i + 3];
                for (int d = 0; d < D; d++)
                    sum[d] += (v0 * widen(w0[d]) + v1 * widen(w1[d])) +
                              (v2 * widen(w2[d]) + v3 * widen(w3[d]));
            }
            for (; i < end; i++) {
                const W* w0 = W_dec + int64_t(column[i]) * D;
                float v0 = value[i];
                for (int d = 0; d < D; d++) sum[d] += v0 * widen(w0[d]);
            }
            float square = 0;
            for (int d = 0; d < D; d++) square += sum[d] * sum[d];
            loss[b] = square;
            for (int d = 0; d < D; d++) narrow(sum[d], error + b * D + d);
            i = first[b];
            for (; i + 4 <= end; i += 4) {
                const W* w0 = W_dec + int64_t(column[i]) * D;
                const W* w1 = W_dec + int64_t(column[i + 1]) * D;
                const W* w2 = W_dec + int64_t(column[i + 2]) * D;
                const W* w3 = W_dec + int64_t(column[i + 3]) * D;
                float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
                for (int d = 0; d < D; d++) {
                    float e = sum[d];
                    s0 += e * widen(w0[d]);
                    s1 += e * widen(w1[d]);
                    s2 += e * widen(w2[d]);
                    s3 += e * widen(w3[d]);
                }
                dz[i] = s0 * scale, dz[i + 1] = s1 * scale, dz[i + 2] = s2 * scale, dz[i + 3] = s3 * scale;
            }
            for (; i < end; i++) {
                const W* w0 = W_dec + int64_t(column[i]) * D;
                float s0 = 0;
                for (int d = 0; d < D; d++) s0 += sum[d] * widen(w0[d]);
                dz[i] = s0 * scale;
            }
        }
    }
    *loss_sum = std::accumulate(loss, loss + B, 0.0);
}

// A latent's gradients, without the part of the decoder's that is parallel to its row of unit norm.
inline double squared_norm(const float* g_dec, const float* g_enc, float g_bias, float parallel, int D) {
    float sum = 0;
    for (int d = 0; d < D; d++) sum += g_dec[d] * g_dec[d] + g_enc[d] * g_enc[d];
    return std::max(double(sum) + double(g_bias) * g_bias - double(parallel) * parallel, 0.0);
}

// The gradients of the latents that fired or have an `extra` row (AuxK's). `parallel` is the part of the
// decoder's along its row, which the update leaves out; `square` is the squared norm of the rest, and -1
// where there is no gradient.
template <class W>
void gradients(const int64_t* start, const int32_t* row, const float* value, const float* dz,
               const W* error, const W* centered, const int32_t* slot,
               const float* extra_dec, const float* extra_enc, const float* extra_bias,
               const float* extra_parallel, int64_t B, int F, int D, float* g_dec, float* g_enc,
               float* g_bias, float* parallel, double* square, int threads) {
    const float scale = 2.0f / float(B);
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads)
    for (int f = 0; f < F; f++) {
        FlushDenormals flush;
        int extra = slot ? slot[f] : -1;
        g_bias[f] = 0;
        square[f] = -1;
        if (start[f] == start[f + 1] && extra < 0) continue;
        float* __restrict gd = g_dec + int64_t(f) * D;
        float* __restrict ge = g_enc + int64_t(f) * D;
        float bias = 0, along = 0;
        for (int d = 0; d < D; d++) gd[d] = 0, ge[d] = 0;
        int64_t i = start[f], end = start[f + 1];
        for (; i + 4 <= end; i += 4) {
            const W *e0 = error + int64_t(row[i]) * D, *e1 = error + int64_t(row[i + 1]) * D;
            const W *e2 = error + int64_t(row[i + 2]) * D, *e3 = error + int64_t(row[i + 3]) * D;
            const W *c0 = centered + int64_t(row[i]) * D, *c1 = centered + int64_t(row[i + 1]) * D;
            const W *c2 = centered + int64_t(row[i + 2]) * D, *c3 = centered + int64_t(row[i + 3]) * D;
            float v0 = value[i], v1 = value[i + 1], v2 = value[i + 2], v3 = value[i + 3];
            float z0 = dz[i], z1 = dz[i + 1], z2 = dz[i + 2], z3 = dz[i + 3];
            for (int d = 0; d < D; d++)
                gd[d] += (v0 * widen(e0[d]) + v1 * widen(e1[d])) + (v2 * widen(e2[d]) + v3 * widen(e3[d]));
            for (int d = 0; d < D; d++)
                ge[d] += (z0 * widen(c0[d]) + z1 * widen(c1[d])) + (z2 * widen(c2[d]) + z3 * widen(c3[d]));
            bias += (z0 + z1) + (z2 + z3);
            along += (v0 * z0 + v1 * z1) + (v2 * z2 + v3 * z3);
        }
        for (; i < end; i++) {
            const W* e0 = error + int64_t(row[i]) * D;
            const W* c0 = centered + int64_t(row[i]) * D;
            float v0 = value[i], z0 = dz[i];
            for (int d = 0; d < D; d++) gd[d] += v0 * widen(e0[d]);
            for (int d = 0; d < D; d++) ge[d] += z0 * widen(c0[d]);
            bias += z0;
            along += v0 * z0;
        }
        for (int d = 0; d < D; d++) gd[d] *= scale;
        if (extra >= 0) {
            for (int d = 0; d < D; d++) gd[d] += extra_dec[int64_t(extra) * D + d];
            for (int d = 0; d < D; d++) ge[d] += extra_enc[int64_t(extra) * D + d];
            bias += extra_bias[extra];
            along += extra_parallel[extra];
        }
        g_bias[f] = bias;
        parallel[f] = along;
        square[f] = squared_norm(gd, ge, bias, along, D);
    }
}

template <class W>
void column_sums(const W* rows, int64_t B, int D, float* sum, int threads) {
    const int slice = 64;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int from = 0; from < D; from += slice) {
        int n = std::min(slice, D - from);
        float part[slice] = {0};
        for (int64_t b = 0; b < B; b++)
            for (int d = 0; d < n; d++) part[d] += widen(rows[b * D + from + d]);
        std::memcpy(sum + from, part, n * sizeof(float));
    }
}

// The gradient for b_dec, which is added to the reconstruction and subtracted from the encoder's input;
// and the squared norm of the whole gradient.
template <class W>
void bias_gradient(const float* error_sum, const float* g_bias, const double* square, const W* W_enc,
                   int64_t B, int F, int D, float* g_b_dec, double* whole, int threads) {
    const float scale = 2.0f / float(B);
    const int slice = 64;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int from = 0; from < D; from += slice) {
        int n = std::min(slice, D - from);
        float back[slice] = {0};
        for (int f = 0; f < F; f++)
            if (square[f] >= 0)
                for (int d = 0; d < n; d++) back[d] += g_bias[f] * widen(W_enc[int64_t(f) * D + from + d]);
        for (int d = 0; d < n; d++) g_b_dec[from + d] = error_sum[from + d] * scale - back[d];
    }
    double sum = 0;
    for (int f = 0; f < F; f++) sum += square[f] < 0 ? 0 : square[f];  // NaN remains NaN
    for (int d = 0; d < D; d++) sum += double(g_b_dec[d]) * g_b_dec[d];
    *whole = sum;
}

// AuxK: pre + bias at the columns of its latents, C of them, where it is positive.
template <class W>
void active_columns(const W* pre, const float* bias, const int64_t* columns, int64_t B, int F, int C, W* out,
                    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < B; b++)
        for (int c = 0; c < C; c++) {
            float x = widen(pre[b * F + columns[c]]) + bias[c];
            narrow(x > 0 ? x : 0, out + b * C + c);
        }
}

// AuxK: residual = -error - product, its squared norm per row, and back = scale * residual.
template <class W>
void aux_errors(const W* error, const W* product, int64_t B, int D, float scale, W* back, double* loss,
                int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < B; b++) {
        float square = 0;
        for (int64_t i = b * D; i < (b + 1) * D; i++) {
            float residual = -widen(error[i]) - widen(product[i]);
            square += residual * residual;
            narrow(scale * residual, back + i);
        }
        loss[b] = square;
    }
}

// The kernels below are for rows with many active latents, where whole matrix products are faster.

template <class W>
void scatter_rows(const float* value, const int32_t* column, const int64_t* first, const int64_t* last,
                  int64_t B, int F, W* features, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < B; b++) {
        W* row = features + b * F;
        std::memset(row, 0, F * sizeof(W));
        for (int64_t i = first[b]; i < last[b]; i++) narrow(value[i], row + column[i]);
    }
}

// error = product + b_dec - x_scale * (x - mean), with product = features * W_dec; loss per row.
template <class W>
void errors(const float* x, const float* mean, const W* product, const float* b_dec, int64_t B, int D,
            float x_scale, W* error, double* loss, double* loss_sum, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < B; b++) {
        const float* row = x + b * D;
        float square = 0;
        for (int d = 0; d < D; d++) {
            float e = widen(product[b * D + d]) + b_dec[d] - x_scale * (row[d] - mean[d]);
            square += e * e;
            narrow(e, error + b * D + d);
        }
        loss[b] = square;
    }
    *loss_sum = std::accumulate(loss, loss + B, 0.0);
}

// Changes dz = error * W_dec^T into the gradient for the pre-activations, in place: zero where a latent
// is not active, scaled elsewhere.
template <class W>
void mask_gradient(const W* features, W* dz, int64_t B, int F, float* g_bias, float* parallel,
                   double* square, bool* fired) {
    const float scale = 2.0f / float(B);
    for (int f = 0; f < F; f++) g_bias[f] = parallel[f] = 0, square[f] = -1;
    std::vector<float> largest(F, 0.0f);
    for (int64_t b = 0; b < B; b++)
        for (int f = 0; f < F; f++) {
            float z = widen(features[b * F + f]);
            float g = z > 0 ? scale * widen(dz[b * F + f]) : 0;
            narrow(g, dz + b * F + f);
            g_bias[f] += g;
            parallel[f] += z * g;
            largest[f] = std::max(largest[f], z);
        }
    for (int f = 0; f < F; f++) {
        fired[f] = largest[f] > 0;
        if (fired[f]) square[f] = 0;
    }
}

// Like `gradients`, from the products features^T * error and dz^T * centered.
template <class W>
void dense_gradients(const W* by_error, const W* by_centered, const int32_t* slot, const float* extra_dec,
                     const float* extra_enc, const float* extra_bias, const float* extra_parallel,
                     int64_t B, int F, int D, float* g_dec, float* g_enc, float* g_bias, float* parallel,
                     double* square, int threads) {
    const float scale = 2.0f / float(B);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int f = 0; f < F; f++) {
        int extra = slot ? slot[f] : -1;
        if (square[f] < 0 && extra < 0) continue;
        int64_t at = int64_t(f) * D;
        float *gd = g_dec + at, *ge = g_enc + at;
        for (int d = 0; d < D; d++) gd[d] = scale * widen(by_error[at + d]);
        for (int d = 0; d < D; d++) ge[d] = widen(by_centered[at + d]);
        if (extra >= 0) {
            for (int d = 0; d < D; d++) gd[d] += extra_dec[int64_t(extra) * D + d];
            for (int d = 0; d < D; d++) ge[d] += extra_enc[int64_t(extra) * D + d];
            g_bias[f] += extra_bias[extra];
            parallel[f] += extra_parallel[extra];
        }
        square[f] = squared_norm(gd, ge, g_bias[f], parallel[f], D);
    }
}

struct Adam {
    float rate, clip, first, second, epsilon, root;  // rate: lr / (1 - first^t); root: 1 / sqrt(1 - second^t)
    inline float step(float p, float g, float* m, float* v) const {
        float moved = *m + (1 - first) * (g - *m);
        float square = *v * second + (1 - second) * g * g;
        *m = moved;
        *v = square;
        return p - rate * moved / (std::sqrt(square) * root + epsilon);
    }
};

inline void copy_row(const float* row, int D, bf16* out) {
    for (int d = 0; d < D; d++) narrow(row[d], out + d);
}
inline void copy_row(const float*, int, float*) {}  // float matrices need no copy as operands

template <class W>
void adam_rows(const Adam& a, int F, int D, const double* square, const float* parallel,
               const float* g_dec, const float* g_enc, float* W_dec, float* m_dec, float* v_dec, float* W_enc, float* m_enc, float* v_enc,
               W* W_dec_out, W* W_enc_out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int f = 0; f < F; f++) {
        FlushDenormals flush;
        int64_t at = int64_t(f) * D;
        float *__restrict pd = W_dec + at, *__restrict md = m_dec + at, *__restrict vd = v_dec + at;
        float *__restrict pe = W_enc + at, *__restrict me = m_enc + at, *__restrict ve = v_enc + at;
        if (square[f] >= 0) {
            const float *__restrict gd = g_dec + at, *__restrict ge = g_enc + at;
            const float along = parallel[f];
            for (int d = 0; d < D; d++)
                pd[d] = a.step(pd[d], a.clip * (gd[d] - along * pd[d]), md + d, vd + d);
            for (int d = 0; d < D; d++) pe[d] = a.step(pe[d], a.clip * ge[d], me + d, ve + d);
        } else {
            for (int d = 0; d < D; d++) pd[d] = a.step(pd[d], 0, md + d, vd + d);
            for (int d = 0; d < D; d++) pe[d] = a.step(pe[d], 0, me + d, ve + d);
        }
        float norm = 0;
        for (int d = 0; d < D; d++) norm += pd[d] * pd[d];
        float inverse = 1 / std::max(std::sqrt(norm), SMALLEST);
        for (int d = 0; d < D; d++) pd[d] *= inverse;
        copy_row(pd, D, W_dec_out + at);
        copy_row(pe, D, W_enc_out + at);
    }
}

}  // namespace

#define TYPED(W, name)                                                                                 \
    void select_rows_##name(const W* pre, const float* bias, int64_t B, int64_t F, int64_t k,          \
                            float* value, int32_t* column, int64_t* first, int64_t* last,              \
                            int64_t threads) {                                                         \
        select_rows(pre, bias, B, F, k, value, column, first, last, threads);                          \
    }                                                                                                  \
    int64_t select_batch_##name(const W* pre, const float* bias, int64_t B, int64_t F, int64_t total,  \
                                int64_t room, float* value, int32_t* column, int64_t* first,           \
                                int64_t threads) {                                                     \
        return select_batch(pre, bias, B, F, total, room, value, column, first, threads);              \
    }                                                                                                  \
    void center_##name(const float* x, const float* mean, const float* b_dec, int64_t B, int64_t D,    \
                       float x_scale, W* out, int64_t threads) {                                       \
        center(x, mean, b_dec, B, D, x_scale, out, threads);                                           \
    }                                                                                                  \
    void decode_rows_##name(const float* x, const float* mean, const W* W_dec, const float* b_dec,     \
                            const float* value, const int32_t* column, const int64_t* first,           \
                            const int64_t* last, int64_t B, int64_t D, float x_scale, W* error,        \
                            float* dz, double* loss, double* loss_sum, int64_t threads) {              \
        decode_rows(x, mean, W_dec, b_dec, value, column, first, last, B, D, x_scale, error, dz, loss, \
                    loss_sum, threads);                                                                \
    }                                                                                                  \
    void gradients_##name(const int64_t* start, const int32_t* row, const float* value,                \
                          const float* dz, const W* error, const W* centered, const int32_t* slot,     \
                          const float* extra_dec, const float* extra_enc, const float* extra_bias,     \
                          const float* extra_parallel, int64_t B, int64_t F, int64_t D, float* g_dec,  \
                          float* g_enc, float* g_bias, float* parallel, double* square,                \
                          int64_t threads) {                                                           \
        gradients(start, row, value, dz, error, centered, slot, extra_dec, extra_enc, extra_bias,      \
                  extra_parallel, B, F, D, g_dec, g_enc, g_bias, parallel, square, threads);           \
    }                                                                                                  \
    void column_sums_##name(const W* rows, int64_t B, int64_t D, float* sum, int64_t threads) {         \
        column_sums(rows, B, D, sum, threads);                                                         \
    }                                                                                                  \
    void bias_gradient_##name(const float* error_sum, const float* g_bias, const double* square,       \
                              const W* W_enc, int64_t B, int64_t F, int64_t D, float* g_b_dec,         \
                              double* whole, int64_t threads) {                                        \
        bias_gradient(error_sum, g_bias, square, W_enc, B, F, D, g_b_dec, whole, threads);             \
    }                                                                                                  \
    void active_columns_##name(const W* pre, const float* bias, const int64_t* columns, int64_t B,     \
                               int64_t F, int64_t C, W* out, int64_t threads) {                        \
        active_columns(pre, bias, columns, B, F, C, out, threads);                                     \
    }                                                                                                  \
    void aux_errors_##name(const W* error, const W* product, int64_t B, int64_t D, float scale,        \
                           W* back, double* loss, int64_t threads) {                                   \
        aux_errors(error, product, B, D, scale, back, loss, threads);                                  \
    }                                                                                                  \
    void scatter_rows_##name(const float* value, const int32_t* column, const int64_t* first,          \
                             const int64_t* last, int64_t B, int64_t F, W* features,                   \
                             int64_t threads) {                                                        \
        scatter_rows(value, column, first, last, B, F, features, threads);                             \
    }                                                                                                  \
    void errors_##name(const float* x, const float* mean, const W* product, const float* b_dec,        \
                       int64_t B, int64_t D, float x_scale, W* error, double* loss, double* loss_sum,  \
                       int64_t threads) {                                                              \
        errors(x, mean, product, b_dec, B, D, x_scale, error, loss, loss_sum, threads);                \
    }                                                                                                  \
    void mask_gradient_##name(const W* features, W* dz, int64_t B, int64_t F, float* g_bias,           \
                              float* parallel, double* square, bool* fired, int64_t) {                 \
        mask_gradient(features, dz, B, F, g_bias, parallel, square, fired);                            \
    }                                                                                                  \
    void dense_gradients_##name(const W* by_error, const W* by_centered, const int32_t* slot,          \
                                const float* extra_dec, const float* extra_enc,                        \
                                const float* extra_bias, const float* extra_parallel, int64_t B,       \
                                int64_t F, int64_t D, float* g_dec, float* g_enc, float* g_bias,       \
                                float* parallel, double* square, int64_t threads) {                    \
        dense_gradients(by_error, by_centered, slot, extra_dec, extra_enc, extra_bias,                 \
                        extra_parallel, B, F, D, g_dec, g_enc, g_bias, parallel, square, threads);     \
    }                                                                                                  \
    void adam_rows_##name(const Adam* adam, int64_t F, int64_t D, const double* square,                \
                          const float* parallel, const float* g_dec, const float* g_enc, float* W_dec, \
                          float* m_dec, float* v_dec, float* W_enc, float* m_enc, float* v_enc,        \
                          W* W_dec_out, W* W_enc_out, int64_t threads) {                               \
        adam_rows(*adam, F, D, square, parallel, g_dec, g_enc, W_dec, m_dec, v_dec, W_enc, m_enc,      \
                  v_enc, W_dec_out, W_enc_out, threads);                                               \
    }

extern "C" {
TYPED(float, f32)
TYPED(bf16, bf16)

// Adam's step for the two biases.
void adam_vectors(const Adam* adam, int64_t F, float* p_F, const float* g_F, float* m_F, float* v_F,
                  int64_t D, float* p_D, const float* g_D, float* m_D, float* v_D, int64_t) {
    FlushDenormals flush;
    for (int64_t f = 0; f < F; f++) p_F[f] = adam->step(p_F[f], adam->clip * g_F[f], m_F + f, v_F + f);
    for (int64_t d = 0; d < D; d++) p_D[d] = adam->step(p_D[d], adam->clip * g_D[d], m_D + d, v_D + d);
}

// Marks the latents that did not fire for `window` tokens; returns their number.
int64_t mark_dead(const int64_t* since_fired, int64_t F, int64_t window, bool* dead, int64_t) {
    int64_t count = 0;
    for (int64_t f = 0; f < F; f++) dead[f] = since_fired[f] >= window, count += dead[f];
    return count;
}

void count_tokens_since_fired(const bool* fired, int64_t F, int64_t B, int64_t* since_fired,
                              int64_t) {
    for (int64_t f = 0; f < F; f++) since_fired[f] = fired[f] ? 0 : since_fired[f] + B;
}

// Rows of N blocks in memory, in the order of `index`: block n has those from starts[n] up to
// starts[n + 1]. Returns how many of them are in no block; if there are any, nothing is copied.
int64_t gather(const int64_t* blocks, const int64_t* starts, int64_t N, const int64_t* index, int64_t B,
               int64_t row_bytes, char* out, int64_t threads) {
    int64_t missing = 0;
    for (int64_t b = 0; b < B; b++) missing += index[b] < 0 || index[b] >= starts[N];
    if (missing) return missing;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < B; b++) {
        int64_t n = std::upper_bound(starts + 1, starts + N, index[b]) - starts - 1;
        const char* block = reinterpret_cast<const char*>(blocks[n]);
        std::memcpy(out + b * row_bytes, block + (index[b] - starts[n]) * row_bytes, row_bytes);
    }
    return 0;
}

// The entries of the rows, in the order of their latents.
void by_latent(const float* value, const int32_t* column, const float* dz, const int64_t* first,
               const int64_t* last, int64_t B, int64_t F, int64_t* start, int32_t* row,
               float* value_out, float* dz_out, bool* fired, int64_t) {
    std::fill(start, start + F + 1, 0);
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = first[b]; i < last[b]; i++) start[column[i] + 1]++;
    for (int64_t f = 0; f < F; f++) fired[f] = start[f + 1] > 0;
    for (int64_t f = 0; f < F; f++) start[f + 1] += start[f];
    std::vector<int64_t> next(start, start + F);
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = first[b]; i < last[b]; i++) {
            int64_t at = next[column[i]]++;
            row[at] = int32_t(b);
            value_out[at] = value[i];
            dz_out[at] = dz[i];
        }
}
}
