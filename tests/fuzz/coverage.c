/* coverage.c: tells libFuzzer which parts of the core were reached. It wants counters as clang makes them; gcc calls a
 * function at each edge instead, which is here, linked into the core. See test_fuzz.py.
 */
#include <stdint.h>

enum { COUNTERS = 1 << 16 }; /* more than the core has bytes of code: each edge has its own */

static uint8_t counters[COUNTERS];
static uintptr_t places[COUNTERS][2]; /* an address and flags for each, which libFuzzer only prints */

/* Hidden: libFuzzer has one, too, which ends the process. */
__attribute__((visibility("hidden"))) void __sanitizer_cov_trace_pc(void)
{
    uint8_t *counter = &counters[(uintptr_t)__builtin_return_address(0) % COUNTERS];
    *counter += *counter < UINT8_MAX;
}

/* With libFuzzer's __sanitizer_cov_8bit_counters_init and __sanitizer_cov_pcs_init, once it is there. */
void coverage_begin(void (*with_counters)(uint8_t *, uint8_t *), void (*with_places)(uintptr_t *, uintptr_t *))
{
    with_counters(counters, counters + COUNTERS);
    with_places(places[0], places[COUNTERS]);
}
