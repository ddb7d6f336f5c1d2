/* core.h: what the files of the core call of each other; `state.h` has what they work on. */
#ifndef FAN_CORE_H
#define FAN_CORE_H

#include "state.h"

/* events.c */
int fan_epoll(int set, int op, int fd, uint32_t events, uint64_t about);
void fan_event_add(fan_core *core, int kind, int error, int64_t token);
bool fan_is_paused(const fan_core *core);
void fan_pause(fan_core *core, int error);

/* dispatch.c */
bool fan_core_dispatch(fan_core *core);
void fan_core_finish_if_done(fan_core *core);

/* accept.c */
int fan_accept_batch(fan_core *core, int want, int64_t now_ns);
void fan_accept_finish_empty(fan_core *core);
void fan_listener_close(fan_core *core, int number);

/* seat.c */
uint64_t fan_seat_live(const fan_core *core, int seat);
int fan_seat_channel(const fan_core *core, int seat);
int fan_channel_next(const fan_core *core, int number);
int fan_channel_birth(fan_core *core, int number, fan_channel *out);
void fan_channels_mend(fan_core *core);
void fan_channel_end_if_empty(fan_core *core, int number);
void fan_channel_replace(fan_core *core, int number);

/* route.c */
const fan_policy *fan_policy_of(int number);
int fan_route(fan_core *core, const fan_record *record, int64_t now_ns);

/* channel.c */
int fan_message_bytes(const char **call);
int fan_channel_open(fan_channel *channel);
void fan_channel_close(fan_channel *channel);
int fan_channel_resize(fan_channel *channel, int messages, int message_bytes);
int fan_channel_untaken(const fan_channel *channel);
int fan_channel_pass(fan_channel *channel, fan_held *const *held, int count);
int fan_channel_recall(int channel_fd, fan_held *out);
bool fan_channel_mend(fan_channel *channel);
int fan_channel_nudge(fan_channel *channel);
int fan_channel_room(int channel_fd, int want);
int fan_channel_wait(int channel_fd);
int fan_channel_receive(int channel_fd, int flags, fan_record *record, int *fd);
int fan_channel_receive_many(int channel_fd, int count, fan_record *records, int *fds);

/* scoreboard.c */
int fan_scoreboard_map(fan_scoreboard *scoreboard, int seats);
int fan_scoreboard_share(const fan_scoreboard *scoreboard);
void fan_scoreboard_unmap(const fan_scoreboard *scoreboard);
fan_score *fan_scoreboard_keep(const fan_scoreboard *scoreboard, int seat);
fan_turns *fan_scoreboard_turns(const fan_scoreboard *scoreboard);
static inline fan_score *fan_scoreboard_at(const fan_scoreboard *scoreboard, int seat)
{
    return (fan_score *)(scoreboard->memory + (size_t)seat * scoreboard->each_bytes);
}
void fan_score_begin(fan_score *page, uint64_t generation);
uint64_t fan_score_taken(const fan_score *page);
void fan_score_want(fan_score *page);
uint64_t fan_score_finished(const fan_score *page);
int fan_score_idle(const fan_score *page, int threads);
void fan_score_look(const fan_score *page, fan_score_view *out);
void fan_score_enrol(fan_score *page, int thread);
void fan_score_idle_now(fan_score *page, int thread);
void fan_score_busy_now(fan_score *page, int thread, int64_t now_ns);
void fan_score_took(fan_score *page, int count);
void fan_score_beat(fan_score *page, int64_t now_ns);
void fan_score_lost(fan_score *page, int count);

/* turns.c */
void fan_turns_begin(fan_turns *turns, int seat);
void fan_turns_read(fan_turns *turns, int seat, bool reads);
bool fan_turns_free(const fan_turns *turns, int channel_fd);
bool fan_turns_enter(fan_turns *turns, int seat, int channel_fd, int64_t begin_ns);
bool fan_turns_wait(const fan_turns *turns, int channel_fd, int64_t begin_ns);
void fan_turns_leave(fan_turns *turns, int seat);

#endif
