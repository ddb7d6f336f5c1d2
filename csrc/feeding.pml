/* feeding.pml: the feeding of workers, for spin: every interleaving of a master, two workers, CLIENTS clients, a crash and
 * a graceful stop. tests/core/test_model.py runs it, and checks that its numbers are still the code's.
 * With -D and one of WITHOUT_LOOK, WITHOUT_RECALL, WITHOUT_SUCCESSOR, WITHOUT_PEEK it must find a client that is left.
 *
 * POOL: blocking workers that read one channel; else event loops, a channel each. A step is one system call of the code,
 * or one look at shared memory: what happens between two of those nobody else can see. Three steps are several calls: a
 * look at a channel and its arming [space_of, ask_kernel], what is left of a dead worker and the nudge
 * [fan_seat_leave], and the last look at all channels, their end, and what Python makes of that
 * [fan_core_finish_if_done]. Names in brackets say where the code does it.
 *
 * A reader of the pool may leave a message for a while to readers that wait longer (turns.c): in the model as often as it
 * likes. It never sleeps while there is one.
 *
 * Left out: more than one listener, least-connections and source-hash (they choose who, not whether), max_connections,
 * channels that a worker breaks, calls that fail (tests/core/test_sweep.py), reloads, and workers that leave rotation
 * alive: resigned, found hung, not wanted any more (tests/core/test_random.py has them). What a clock brings may come at any
 * instant; where it would change nothing it does not come. A listener is closed in the same step that finds it empty: a
 * client that comes between these two calls is reset by the kernel.
 */
#ifndef CLIENTS
#define CLIENTS 3   /* at most 4 */
#endif
#define WORKERS 2
#ifndef SIZE
#define SIZE 2    /* messages that a channel takes: few, so that it fills */
#define QUARTER 0 /* hungry with so many untaken: (SIZE * bytes / 4 - 1) / bytes [fan_channel_resize] */
#endif
#define BATCH 2   /* FAN_BATCH: fewer than there are clients */
#define NUDGE 254 /* a message without a connection [FAN_NUDGE] */
#define NOBODY 255
#ifdef POOL
#define CHANNELS 1
#define CHANNEL_OF(w) 0
#define READERS(c) (entered[0] + entered[1])
#else
#define CHANNELS WORKERS
#define CHANNEL_OF(w) w
#define READERS(c) entered[c]
#endif

mtype = { away, queued, held, passed, taken, answered, refused, lost }; /* a client is in one place */
mtype = { gone, booting, ready, draining };                             /* a worker, to the master */

/* ---- what the kernel knows ---------------------------------------------------------------------------------------- */

mtype at[4] = away;
byte whose[4] = NOBODY;                   /* the worker that has taken it */
chan backlog = [CLIENTS] of { byte };
bool listening = true;
chan channel[CHANNELS] = [SIZE] of { byte };
bool ended;                                     /* the writing ends are shut down */
chan sleepers = [WORKERS] of { byte };          /* in recv on the pool's channel: woken in turn, one for each message */
bool running[WORKERS], woken[WORKERS], killed[WORKERS], terminated[WORKERS], exited[WORKERS];
byte frozen = NOBODY, process[WORKERS];           /* SIGSTOP; the process of a worker */

/* ---- what master and workers share -------------------------------------------------------------------------------- */

bool busy[WORKERS];                             /* the scoreboard */
byte took[WORKERS];
bool said_ready[WORKERS];
bool stop_asked, may_fork, over;

inline wake(next) {
    if
    :: (len(sleepers) > 0) -> sleepers?next; woken[next] = true
    :: (len(sleepers) == 0)
    fi
}

/* ---- workers ------------------------------------------------------------------------------------------------------ */

/* The process ends, killed or not. What a handler had then is lost: that is what a crash may cost. */
inline leave(me) {
    d_step {
        if
        :: sleepers??[eval(me)] -> sleepers??eval(me)
        :: else
        fi;
#ifdef WITHOUT_PEEK                       /* a plain recvmsg takes what has come before it is told that it is killed */
        if
        :: woken[me] && len(channel[0]) > 0 -> channel[0]?got
        :: else
        fi;
#endif
        got = 0;
        do
        :: got < CLIENTS ->
            if
            :: at[got] == taken && whose[got] == me -> at[got] = lost
            :: else
            fi;
            got++
        :: else -> break
        od;
        got = NOBODY;
        running[me] = false;
        exited[me] = true
    }
}

inline receive(me, c) {
    channel[c]?got;
    if
    :: got != NUDGE -> at[got] = taken; whose[got] = me
    :: else
    fi
}

#ifdef POOL
proctype Worker(byte w) provided (frozen == NOBODY || process[frozen] != _pid)
{
    byte got = NOBODY;
    {
        said_ready[w] = true;
wait:   busy[w] = false;                                                                       /* [fan_take_wait] */
        do                                                                                  /* [fan_channel_wait] */
        :: d_step { ((len(channel[0]) > 0) || ended || terminated[w]) -> skip }; break
        :: d_step { (len(channel[0]) == 0) && !ended && !terminated[w] -> sleepers!w };
           (woken[w] || terminated[w]); woken[w] = false      /* a signal comes again until it leaves */
        :: d_step { (len(channel[0]) > 0) && !terminated[w] -> skip }       /* for others: it looks again [chance_of] */
        od;
        if
        :: terminated[w] -> goto done
        :: else
        fi;
        busy[w] = true;                                                                              /* [fan_take] */
take:   if
        :: d_step { (len(channel[0]) > 0) -> receive(w, 0) };
            if
            :: got == NUDGE -> goto take
            :: else
            fi;
            took[w]++;                                                                         /* [fan_score_took] */
            d_step { at[got] = answered; whose[got] = NOBODY; got = NOBODY };
            goto wait
        :: d_step { (len(channel[0]) == 0) && ended -> skip }; goto done
        :: d_step { (len(channel[0]) == 0) && !ended -> skip }; goto wait               /* another one was faster */
        fi;
done:   busy[w] = false
    } unless { killed[w] };
    leave(w)
}
#else
#define ANSWER(c) :: d_step { at[c] == taken && whose[c] == w -> at[c] = answered; whose[c] = NOBODY }
#define HAS_NONE (whose[0] != w || at[0] != taken) && (whose[1] != w || at[1] != taken) && \
                 (whose[2] != w || at[2] != taken) && (whose[3] != w || at[3] != taken)
proctype Worker(byte w) provided (frozen == NOBODY || process[frozen] != _pid)
{
    byte got = NOBODY;
    {
        said_ready[w] = true;
        do
        :: d_step { (len(channel[w]) > 0) && !terminated[w] -> receive(w, w); got = NOBODY };      /* [fan_take_ready] */
           took[w]++
        ANSWER(0) ANSWER(1) ANSWER(2) ANSWER(3)
        :: d_step { (terminated[w] || (ended && (len(channel[w]) == 0))) && HAS_NONE -> skip }; break
        od
    } unless { killed[w] };
    leave(w)
}
#endif

/* ---- the master --------------------------------------------------------------------------------------------------- */

#define HANDS ((hand[0] != NOBODY -> 1 : 0) + (hand[1] != NOBODY -> 1 : 0))
#define CAN_HAVE(c) (READERS(c) > 0 && space[c] > 0)
#ifdef POOL
#define SPACE (READERS(0) > 0 -> space[0] : 0)
#define NONE_RECALLED true
#else
#define SPACE ((READERS(0) > 0 -> space[0] : 0) + (READERS(1) > 0 -> space[1] : 0))
#define NONE_RECALLED !(recalling[0] && len(channel[0]) > 0) && !(recalling[1] && len(channel[1]) > 0)
#endif
#define ENOUGH (HANDS == BATCH || HANDS == SPACE)
#define IDLE(w) (entered[w] && !busy[w] -> 1 : 0)
#define TAKEN(w) (entered[w] -> took[w] : 0)
#define LOOK_CHANGES ((len(channel[0]) == 0) || TAKEN(0) + TAKEN(1) != seen || \
                      (nudges < IDLE(0) + IDLE(1) && (len(channel[0]) < SIZE)))
#define READS(w) (life[w] == booting || (said_ready[w] && (life[w] == ready || life[w] == draining)))

#define WAITING_FOR(w) (len(channel[CHANNEL_OF(w)]) > 0)
/* Whether a seat whose worker has died gets another one. [Group.wants_another] */
#ifdef WITHOUT_SUCCESSOR
#define WANTED(w) (!finishing)
#elif defined(POOL)
#define WANTED(w) (!finished || ((len(channel[0]) > 0) && !READS(1 - w)))
#else
#define WANTED(w) (!finished || (len(channel[w]) > 0))
#endif

inline fork(w) {                                                                  /* [fan_seat_begin, spawn] */
    atomic {
        respawn[w] = false;
        busy[w] = false; took[w] = 0; said_ready[w] = false;
        killed[w] = false; terminated[w] = false; exited[w] = false; woken[w] = false;
        life[w] = booting;
        running[w] = true;
        process[w] = run Worker(w)
    }
}

inline writable(n) {                                                                    /* [channel_writable] */
    armed[n] = false;
    untaken[n] = len(channel[n]);
    space[n] = SIZE - untaken[n];
    maybe = listening
}

inline enter(n) {                                                                         /* [fan_seat_enter] */
    life[n] = ready;
    entered[n] = true;
    recalling[CHANNEL_OF(n)] = false;
    space[CHANNEL_OF(n)] = 0
}

inline reap(n) {                                                         /* [fan_seat_leave, Group._replace] */
    life[n] = gone;
    if
    :: entered[n] ->
        entered[n] = false;
#ifdef POOL
        if
        :: READERS(0) > 0 && len(channel[0]) > 0 -> nudge()
        :: else
        fi
#elif !defined(WITHOUT_RECALL)
        recalling[n] = true
#else
        skip
#endif
    :: else
    fi;
    if
    :: WANTED(n) -> respawn[n] = true                                   /* at once, or when a delay is over */
    :: else
    fi
}

inline nudge() {                                                                       /* [fan_channel_nudge] */
    if
    :: len(channel[0]) < SIZE -> channel[0]!NUDGE; wake(who)
    :: else
    fi;
    who = 0
}

/* What the kernel says of a channel that is thought to be full. */
inline ask(n) {                                                                     /* [space_of, ask_kernel] */
    if
    :: READERS(n) > 0 && space[n] == 0 && !armed[n] && len(channel[n]) <= QUARTER ->
        untaken[n] = len(channel[n]); space[n] = SIZE - untaken[n]
    :: READERS(n) > 0 && space[n] == 0 && !armed[n] && len(channel[n]) > QUARTER -> armed[n] = true
    :: else
    fi
}

inline to_hand(client) {
    at[client] = held;
    if
    :: hand[0] == NOBODY -> hand[0] = client
    :: else -> hand[1] = client
    fi
}

inline choose(n) {                                                              /* [fan_route, round_robin] */
    if
    :: hand[n] != NOBODY && CAN_HAVE(cursor) ->
        dest[n] = cursor; space[cursor]--; cursor = (cursor + 1) % CHANNELS
    :: hand[n] != NOBODY && !CAN_HAVE(cursor) && CAN_HAVE((cursor + 1) % CHANNELS) ->
        dest[n] = (cursor + 1) % CHANNELS; space[dest[n]]--
    :: else
    fi
}

inline pass(n) {                                                                        /* [fan_channel_pass] */
    if
    :: dest[n] != NOBODY && len(channel[dest[n]]) < SIZE ->
        channel[dest[n]]!hand[n]; at[hand[n]] = passed; wake(who); who = 0;
        hand[n] = NOBODY; moved = true; untaken[dest[n]]++;
        if
        :: untaken[dest[n]] > QUARTER && (n == 1 || dest[1] != dest[n]) -> space[dest[n]] = 0
        :: else
        fi;
#ifdef POOL
        nudgeable = true; nudges = 0
#endif
    :: dest[n] != NOBODY && len(channel[dest[n]]) == SIZE -> space[dest[n]] = 0; stalled = true
    :: else
    fi;
    dest[n] = NOBODY
}

/* Since FINISHED is told nothing is passed any more. [Shutdown.on_finished] */
inline finish_life(n) {
    if
    :: respawn[n] && !WANTED(n) -> respawn[n] = false
    :: else
    fi;
    if
    :: life[n] == booting && !WAITING_FOR(n) -> terminated[n] = true; life[n] = draining
    :: life[n] == ready -> life[n] = draining
    :: else
    fi
}

active proctype Master()
{
    mtype life[WORKERS] = gone;
    bool entered[WORKERS], respawn[WORKERS];
    byte space[CHANNELS], untaken[CHANNELS];
    bool armed[CHANNELS], recalling[CHANNELS], maybe, stalled, finishing, finished;
    byte hand[BATCH] = NOBODY, dest[BATCH] = NOBODY, cursor;
    bool nudgeable, moved;
    byte nudges, seen, who, got = NOBODY;
    atomic { fork(0); fork(1) };

    /* [fan_core_dispatch]: in each atomic step one system call, and the decisions after it. */
dispatch:
    atomic {
        if
        :: finished || stalled -> goto waits
        :: else
        fi;
        ask(0);
#ifndef POOL
    };
    atomic {
        ask(1);
#endif
        if
        :: SPACE == 0 && finishing && listening -> goto close
        :: SPACE == 0 && !(finishing && listening) -> goto waits
        :: SPACE > 0 && HANDS > 0 -> goto route
        :: else
        fi
    };
#ifndef POOL
back:
    atomic {                                                                                 /* [recall_batch] */
        if
        :: !recalling[0] && !recalling[1]
        :: (recalling[0] || recalling[1]) && ENOUGH -> goto route
        :: else ->
            got = (recalling[0] -> 0 : 1);
            if
            :: len(channel[got]) > 0 -> who = got; channel[who]?got; to_hand(got)
            :: len(channel[got]) == 0 -> recalling[got] = false
            fi;
            got = NOBODY; who = 0;
            goto back
        fi;
        if
        :: HANDS > 0 -> goto route
        :: else
        fi
    };
#endif
accept:
    atomic {                                                                                   /* [accept_one] */
        if
        :: maybe && !ENOUGH && len(backlog) > 0 -> backlog?got; to_hand(got); got = NOBODY; goto accept
        :: maybe && !ENOUGH && len(backlog) == 0 -> maybe = false; listening = !finishing
        :: else
        fi;
        if
        :: HANDS == 0 -> goto waits
        :: else
        fi
    };
route:
    atomic { choose(0); choose(1); pass(0) };
    atomic {
        pass(1);
        if
        :: hand[0] == NOBODY -> hand[0] = hand[1]; hand[1] = NOBODY
        :: else
        fi;
        if
        :: moved -> moved = false; goto dispatch
        :: else
        fi;
        goto waits
    };
close:
    atomic {                                                                       /* [fan_accept_finish_empty] */
        if
        :: len(backlog) == 0 -> listening = false; maybe = false
        :: else
        fi
    };

waits:
    atomic {
        if
        :: finishing && !finished && HANDS == 0 && !listening && NONE_RECALLED ->    /* [fan_core_finish_if_done] */
            ended = true; finished = true; wake(who); wake(who); who = 0;
            finish_life(0);
            finish_life(1);
            nudgeable = false; nudges = 0; seen = 0
        :: else
        fi;
        if
        :: life[0] == gone && life[1] == gone && finishing && !respawn[0] && !respawn[1] -> over = true; goto end
        :: else
        fi;
        if                                                                                     /* [wait_for] */
        :: HANDS == 0 && !stalled && !maybe && listening && len(backlog) > 0 && SPACE > 0 -> maybe = true
        :: armed[0] && len(channel[0]) <= QUARTER && !finished -> writable(0)
#ifndef POOL
        :: armed[1] && len(channel[1]) <= QUARTER && !finished -> writable(1)
#endif
        :: stalled && !finished -> stalled = false
        :: life[0] == booting && said_ready[0] -> enter(0)
        :: life[1] == booting && said_ready[1] -> enter(1)
        :: exited[0] && life[0] != gone -> reap(0)
        :: exited[1] && life[1] != gone -> reap(1)
        :: respawn[0] && may_fork -> fork(0)
        :: respawn[1] && may_fork -> fork(1)
        :: stop_asked && !finishing -> finishing = true; maybe = true                      /* [fan_core_finish] */
#if defined(POOL) && !defined(WITHOUT_LOOK)
        :: READERS(0) > 0 && nudgeable && LOOK_CHANGES ->                                         /* [look_at] */
            if
            :: len(channel[0]) == 0 -> nudgeable = false
            :: len(channel[0]) > 0 && TAKEN(0) + TAKEN(1) != seen -> seen = TAKEN(0) + TAKEN(1); nudges = 0
            :: else -> nudge(); nudges++
            fi
#endif
        fi;
        goto dispatch
    };
end:
    skip
}

/* ---- the world ---------------------------------------------------------------------------------------------------- */

active proctype Clients()
{
    byte client;
    do
    :: client < CLIENTS ->
        d_step {
            if
            :: listening -> backlog!client; at[client] = queued
            :: else -> at[client] = refused
            fi
        };
        client++
    :: else -> break
    od
}

/* At most one worker is killed, or stopped (SIGSTOP) and found out much later. Who is asleep then sleeps no more. */
inline freeze(n) {
    d_step {
        running[n] ->
        frozen = n;
        if
        :: sleepers??[eval(n)] -> sleepers??eval(n)
        :: else
        fi
    }
}

active proctype Fault()
{
    if
    :: d_step { running[0] -> killed[0] = true }
    :: d_step { running[1] -> killed[1] = true }
    :: freeze(0)
    :: freeze(1)
    :: true
    fi
}

active proctype Stop()
{
    if
    :: may_fork = true
    :: true                                                       /* the successor of who dies has to wait */
    fi;
    if
    :: stop_asked = true
    :: true
    fi
}

/* When nothing can happen any more nobody waits, although there may be no successor yet: but what waits in the channel of
 * an event loop that is stopped waits until the master kills it, and what is left there after a stop waits for a
 * successor. And when all is over, all are served. */
#define SERVED(c) (c >= CLIENTS || at[c] == answered || at[c] == refused || at[c] == lost)
#define WAITS(c) (c < CLIENTS && (at[c] == queued || at[c] == held || at[c] == passed))
active proctype Oracle()
{
    timeout;
    if
#ifdef POOL
    :: may_fork || !stop_asked
#else
    :: frozen == NOBODY && (may_fork || !stop_asked)
#endif
        -> assert(!WAITS(0) && !WAITS(1) && !WAITS(2) && !WAITS(3))
    :: else
    fi;
    d_step {
        may_fork = true;
        stop_asked = true;
        if
        :: frozen != NOBODY -> killed[frozen] = true; frozen = NOBODY
        :: else
        fi
    };
    timeout;
    assert(over);
    assert(SERVED(0) && SERVED(1) && SERVED(2) && SERVED(3))
}
