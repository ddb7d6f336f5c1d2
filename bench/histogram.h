/* A histogram of times in ns whose percentiles are right to within 0.4 %, from 1 ns to half an hour. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    HISTOGRAM_SUB = 128, /* buckets per power of two: at most 1/128 wide, the middle is reported */
    HISTOGRAM_TOP = 41, /* 2^41 ns is 36 minutes */
};

struct histogram {
    uint64_t bucket[(HISTOGRAM_TOP - 6) * HISTOGRAM_SUB];
    uint64_t count;
    int64_t max; /* exact */
    double sum;
};

/* Below 128 a bucket is one value; above, each power of two has 128 of equal width. */
static inline size_t bucket_of(int64_t value)
{
    uint64_t v = value < 0 ? 0 : (uint64_t)value;
    if (v >= UINT64_C(1) << HISTOGRAM_TOP)
        v = (UINT64_C(1) << HISTOGRAM_TOP) - 1;
    if (v < HISTOGRAM_SUB)
        return v;
    unsigned top_bit = 63U - (unsigned)__builtin_clzll(v);
    return (size_t)(top_bit - 6) * HISTOGRAM_SUB + (size_t)(v >> (top_bit - 7)) - HISTOGRAM_SUB;
}

static inline int64_t middle_of(size_t bucket)
{
    if (bucket < HISTOGRAM_SUB)
        return (int64_t)bucket;
    unsigned shift = (unsigned)(bucket / HISTOGRAM_SUB) - 1;
    uint64_t low = (uint64_t)(HISTOGRAM_SUB + bucket % HISTOGRAM_SUB) << shift;
    return (int64_t)(low + (UINT64_C(1) << shift) / 2);
}

static inline void histogram_add(struct histogram *h, int64_t value)
{
    h->bucket[bucket_of(value)]++;
    h->count++;
    h->sum += (double)value;
    if (value > h->max)
        h->max = value;
}

/* The smallest value that at least this share of all values does not exceed. */
static inline int64_t histogram_at(const struct histogram *h, double share)
{
    uint64_t rank = (uint64_t)ceil(share * (double)h->count), seen = 0;
    for (size_t i = 0; i < sizeof h->bucket / sizeof h->bucket[0]; i++) {
        seen += h->bucket[i];
        if (seen >= rank && seen > 0)
            return middle_of(i) < h->max ? middle_of(i) : h->max;
    }
    return 0;
}

static inline void histogram_print(const char *name, const struct histogram *h)
{
    printf("\"%s\": {\"count\": %" PRIu64 ", \"mean\": %.0f, \"p50\": %" PRId64 ", \"p90\": %" PRId64
           ", \"p99\": %" PRId64 ", \"p999\": %" PRId64 ", \"max\": %" PRId64 "}",
           name, h->count, h->count ? h->sum / (double)h->count : 0.0, histogram_at(h, 0.5), histogram_at(h, 0.9),
           histogram_at(h, 0.99), histogram_at(h, 0.999), h->max);
}

#endif
