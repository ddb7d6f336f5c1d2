/* route.c: the policies, which choose the channel for the next connection. Arithmetic only: no system call, no descriptor.
 *
 * Only channels in rotation (a ready worker reads them) that are hungry (space > 0) are chosen. Blocking workers share
 * the pool channel, which is then the only one in rotation: there the kernel chooses, in turn among the idle ones.
 */
#include "core.h"

#include <string.h>
#include <netinet/in.h>

/* least-connections: how far ahead of the emptiest worker a hungry one may run while the emptiest digests what it was
 * sent. The size of an event loop's channel: 8 of 1,000 connections is 0.8 %. */
#define SLACK 8
/* ... and how long it is waited for. A loop takes 8 connections in about 1 ms; one that needs 20 is overloaded. */
#define LAG_NS (20 * FAN_MS)
/* A cold worker starts on a par with the emptiest of the others and gets its full advantage over this time, so that it is
 * not flooded while its caches are empty. */
#define SLOW_START_NS (10000 * FAN_MS)
/* source-hash: no worker holds more than 1.25 times the mean, the usual factor of consistent hashing with bounded loads
 * (Mirrokni, Thorup, Zadimoghaddam 2016); HAProxy's documentation of hash-balance-factor advises 125 to 200 %. */
#define BOUND_NUMERATOR 5
#define BOUND_DENOMINATOR 4

/* least-connections, when a worker enters: what it pretends to hold at first, besides what it does hold. As much as the
 * emptiest of the others; the mean would starve it beside one hog. */
static void warm_up(fan_core *core, int seat)
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < core->rotation_count; i++) {
        int other = core->rotation[i];
        if (other < core->seat_count && other != seat && fan_seat_live(core, other) < least)
            least = fan_seat_live(core, other);
    }
    core->seats[seat].handicap = least == UINT64_MAX ? 0 : least;
}

static uint64_t load_of(const fan_core *core, int channel, int64_t now_ns)
{
    if (channel == core->seat_count) /* the pool, beside seat channels while the kind of the workers changes */
        return 0;
    const fan_seat *it = &core->seats[channel];
    int64_t warm_ns = now_ns - it->entered_ns;
    uint64_t fading = warm_ns >= SLOW_START_NS
                          ? 0
                          : (uint64_t)((double)it->handicap * (double)(SLOW_START_NS - warm_ns) / SLOW_START_NS);
    return fan_seat_live(core, channel) + fading;
}

static int round_robin(fan_core *core, const fan_record *record, int64_t now_ns)
{
    (void)record;
    (void)now_ns;
    for (int i = 0; i < core->rotation_count; i++) {
        int turn = (core->cursor + i) % core->rotation_count;
        if (core->channels[core->rotation[turn]].space > 0) {
            core->cursor = (turn + 1) % core->rotation_count;
            return core->rotation[turn];
        }
    }
    return -1;
}

/* The emptiest hungry worker, unless it is too far ahead of an emptier one that will be hungry in a moment. Equals take
 * turns. Sets lag_until_ns when it is better to wait. */
static int least_connections(fan_core *core, const fan_record *record, int64_t now_ns)
{
    (void)record;
    uint64_t least = UINT64_MAX, least_hungry = UINT64_MAX;
    int best = -1, best_turn = 0;
    int64_t lag_until_ns = 0;
    for (int i = 0; i < core->rotation_count; i++) {
        int turn = (core->cursor + i) % core->rotation_count;
        const fan_channel *channel = &core->channels[core->rotation[turn]];
        uint64_t load = load_of(core, core->rotation[turn], now_ns);
        if (channel->space > 0) {
            if (load < least_hungry) {
                least_hungry = load;
                best = core->rotation[turn];
                best_turn = turn;
            }
        } else if (now_ns < channel->full_since_ns + LAG_NS && load < least) {
            least = load;
            lag_until_ns = channel->full_since_ns + LAG_NS;
        }
    }
    if (best >= 0 && least_hungry > least && least_hungry - least > SLACK) {
        core->lag_until_ns = lag_until_ns;
        return -1;
    }
    if (best >= 0)
        core->cursor = (best_turn + 1) % core->rotation_count;
    return best;
}

/* Two rounds of a multiply-xorshift mix (the finalizer of MurmurHash3): each bit of the key moves half of the others. */
static uint64_t mix(uint64_t key)
{
    key ^= key >> 33;
    key *= UINT64_C(0xff51afd7ed558ccd);
    key ^= key >> 33;
    key *= UINT64_C(0xc4ceb9fe1a85ec53);
    return key ^ key >> 33;
}

/* The client's address without its port; an IPv4 client is the same through a dual-stack listener. A UNIX client has no
 * address to be known by: each of its connections counts as a new client. */
static uint64_t source_key(const fan_record *record)
{
    if (record->peer.family == AF_INET) {
        struct sockaddr_in peer;
        memcpy(&peer, &record->peer, sizeof peer);
        return mix(peer.sin_addr.s_addr);
    }
    if (record->peer.family == AF_INET6) {
        struct sockaddr_in6 peer;
        uint64_t halves[2];
        memcpy(&peer, &record->peer, sizeof peer);
        if (IN6_IS_ADDR_V4MAPPED(&peer.sin6_addr)) {
            uint32_t v4;
            memcpy(&v4, &peer.sin6_addr.s6_addr[12], sizeof v4);
            return mix(v4);
        }
        memcpy(halves, &peer.sin6_addr, sizeof halves);
        return mix(mix(halves[0]) ^ halves[1]);
    }
    return mix(record->sequence);
}

/* Two seats with one identity have a worker and its successor on trial: the successor is to be tried. */
static bool is_newer(const fan_core *core, int number, int other)
{
    return number < core->seat_count && core->seats[number].entered_ns > core->seats[other].entered_ns;
}

/* Rendezvous hashing: every client ranks all seats; it gets the first one that is hungry and under the bound. When a
 * seat comes or goes only its own clients move. */
static int source_hash(fan_core *core, const fan_record *record, int64_t now_ns)
{
    (void)now_ns;
    uint64_t key = source_key(record), total = 1;
    for (int i = 0; i < core->rotation_count; i++)
        if (core->rotation[i] < core->seat_count)
            total += fan_seat_live(core, core->rotation[i]);
    uint64_t count = (uint64_t)core->rotation_count;
    uint64_t bound = (total * BOUND_NUMERATOR + count * BOUND_DENOMINATOR - 1) / (count * BOUND_DENOMINATOR);

    int best = -1, spare = -1;
    uint64_t best_rank = 0, spare_rank = 0;
    for (int i = 0; i < core->rotation_count; i++) {
        int number = core->rotation[i];
        const fan_channel *channel = &core->channels[number];
        if (channel->space <= 0)
            continue;
        int identity = number < core->seat_count ? core->seats[number].identity : core->seat_count;
        uint64_t rank = mix(key ^ mix((uint64_t)identity + 1));
        uint64_t live = number < core->seat_count ? fan_seat_live(core, number) : 0;
        /* One more than a quarter of the channel is always allowed: a client of few is not moved for a rounding, or
         * because its last connection is not quite done. */
        bool allowed = live < bound || live <= (uint64_t)channel->size / 4;
        if (allowed && (best < 0 || rank > best_rank || (rank == best_rank && is_newer(core, number, best)))) {
            best = number;
            best_rank = rank;
        }
        if (spare < 0 || rank > spare_rank || (rank == spare_rank && is_newer(core, number, spare))) {
            spare = number;
            spare_rank = rank;
        }
    }
    return best >= 0 ? best : spare;
}

static const fan_policy POLICIES[] = {
    [FAN_ROUND_ROBIN] = {.pooled = true, .choose = round_robin},
    [FAN_LEAST_CONNECTIONS] = {.pooled = true, .choose = least_connections, .enter = warm_up},
    [FAN_SOURCE_HASH] = {.choose = source_hash},
};

const fan_policy *fan_policy_of(int number)
{
    bool known = number >= 0 && number < (int)(sizeof POLICIES / sizeof *POLICIES) && POLICIES[number].choose;
    return known ? &POLICIES[number] : NULL;
}

int fan_policy_pooled(int number)
{
    return fan_policy_of(number)->pooled;
}

/* The number of the channel that shall have this connection, or -1: none may have it now. */
int fan_route(fan_core *core, const fan_record *record, int64_t now_ns)
{
    core->lag_until_ns = 0;
    return core->rotation_count == 0 ? -1 : core->policy->choose(core, record, now_ns);
}
