/* Events. The rule that keeps them safe: one that libevent may fire has a token, and a token
 * is an entry in the base's table that keeps the Python object, hence this memory. Arming takes
 * the base's lock; so does firing, when it decides whether the token is spent. */
#include "pyle.h"

#include <fcntl.h>
#include <signal.h>

#define IS_PENDING(pe)                                      \
    ((pe)->at->ev_evcallback.evcb_flags &                   \
     (EVLIST_TIMEOUT | EVLIST_INSERTED | EVLIST_ACTIVE | EVLIST_ACTIVE_LATER))

static pthread_mutex_t signal_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pyle_base *signal_base; /* the one that has signal events armed */

/* libevent has one signal base in the process, and moves it with no more than a warning. */
static int may_arm(struct pyle_event *pe)
{
    int rc = 0;

    if (pe->kind != PYLE_SIGNAL)
        return 0;
    pthread_mutex_lock(&signal_lock);
    if (signal_base && signal_base != pe->pb)
        rc = PYLE_SIGBASE;
    else if (!pe->borrowed)
        signal_base = pe->pb;
    pthread_mutex_unlock(&signal_lock);
    return rc;
}

static void count_signal(struct pyle_event *pe, int n)
{
    if (pe->kind != PYLE_SIGNAL)
        return;
    pthread_mutex_lock(&signal_lock);
    pe->pb->n_signals += n;
    if (pe->pb->n_signals == 0 && signal_base == pe->pb)
        signal_base = NULL;
    pthread_mutex_unlock(&signal_lock);
}

static void spend_token(struct pyle_event *pe)
{
    pe->token = 0;
    count_signal(pe, -1);
}

static int take_token(struct pyle_event *pe, long long token)
{
    if (pe->token || pe->borrowed)
        return 0;
    pe->token = token;
    count_signal(pe, 1);
    return 1;
}

int pyle_signals(void)
{
    int there;

    pthread_mutex_lock(&signal_lock);
    there = signal_base != NULL;
    pthread_mutex_unlock(&signal_lock);
    return there;
}

static int enter(struct pyle_event *pe)
{
    int rc = pe->open ? pyle_enter_base(pe->pb) : PYLE_CLOSED;

    if (rc == 0 && !pe->open) { /* closed by another thread just now */
        pyle_leave_base(pe->pb);
        rc = PYLE_CLOSED;
    }
    return rc;
}

typedef int fire_fn(int slot, long long token, int fd, int what, int released);

static void fire(struct pyle_event *pe, int fd, int what, fire_fn *fn)
{
    struct pyle_base *pb = pe->pb;
    long long token;
    int released = 0, answer;

    if (pyle_exiting) {
        event_base_loopbreak(pb->base);
        return;
    }
    pthread_mutex_lock(&pb->lock);
    token = pb->closed ? 0 : pe->token;
    if (token && !IS_PENDING(pe)) {
        spend_token(pe);
        released = 1;
    }
    pthread_mutex_unlock(&pb->lock);
    if (!token)
        return;
    pb->firing = token;
    pyle_before();
    answer = fn(pb->slot, token, fd, what, released);
    pb->firing = 0;
    /* From here on pe may be gone, unless Python did not get as far as taking the token. */
    if (answer == PYLE_RETRY) {
        pthread_mutex_lock(&pb->lock);
        if (!pb->closed && pb->base && pe->open) {
            if (released)
                take_token(pe, token);
            event_active(pe->at, (short)what, (short)((what >> 16) + 1));
        }
        pthread_mutex_unlock(&pb->lock);
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
}

static void on_event(evutil_socket_t fd, short what, void *arg)
{
    fire(arg, fd, what, pyle_py_event);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    fire(arg, fd, what, pyle_py_timer);
}

/* A signal that came several times calls back as often, but an exception ends that: the number
 * still to come goes along, and pyle_event_again() sees to them. */
static void on_signal(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_event *pe = arg;
    int left = pe->at->ev_.ev_signal.ev_ncalls;

    fire(pe, fd, what | left << 16, pyle_py_signal);
}

int pyle_event_again(struct pyle_event *pe, int calls)
{
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    if (pe->token && calls > 0)
        event_active(pe->at, EV_SIGNAL, (short)calls);
    pyle_leave_base(pe->pb);
    return 0;
}

int pyle_fd_blocks(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && !(flags & O_NONBLOCK);
}

int pyle_event_init(struct pyle_base *pb, struct pyle_event *pe, int fd, int what, int kind)
{
    static const event_callback_fn on[] = {on_event, on_timer, on_signal};
    const int io = EV_READ | EV_WRITE | EV_CLOSED;
    int rc;

    if (what & ~(EV_TIMEOUT | io | EV_SIGNAL | EV_PERSIST | EV_ET))
        return PYLE_RANGE;
    if (what & EV_SIGNAL) {
        if ((what & (io | EV_ET)) || fd < 1 || fd >= NSIG)
            return PYLE_RANGE;
    } else if (fd < -1) {
        return PYLE_RANGE;
    }
    rc = pyle_enter_base(pb);
    if (rc < 0)
        return rc;
    if ((what & io) && fd >= pb->fd_limit)
        rc = PYLE_RANGE;
    else if (pyle_debug_mode && !(what & EV_SIGNAL) && fd >= 0 && pyle_fd_blocks(fd))
        rc = PYLE_BLOCKS; /* libevent would end the process */
    else if ((what & EV_CLOSED) && !(event_base_get_features(pb->base) & EV_FEATURE_EARLY_CLOSE))
        rc = PYLE_UNABLE;
    else if (event_assign(&pe->ev, pb->base, fd, (short)what, on[what & EV_SIGNAL ? PYLE_SIGNAL : kind], pe) < 0) {
        rc = pyle_failed();
    } else {
        pe->at = &pe->ev;
        pe->pb = pb;
        pe->kind = what & EV_SIGNAL ? PYLE_SIGNAL : kind;
        pe->open = 1;
        pyle_note_priority(pb, event_get_priority(&pe->ev));
    }
    pyle_leave_base(pb);
    return rc;
}

/* Someone else's event (from_ptr): nothing of ours has to live for it. */
int pyle_event_borrow(struct pyle_base *pb, struct pyle_event *pe, struct event *ev)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    pe->at = ev;
    pe->pb = pb;
    pe->kind = event_get_events(ev) & EV_SIGNAL ? PYLE_SIGNAL : PYLE_EVENT;
    pe->borrowed = pe->open = 1;
    pyle_leave_base(pb);
    return 0;
}

/* libevent waits for a signal's callback that runs in the loop's thread, and that may want the
 * base's lock: then it is let go of for as long. Between these two the event stays where it is. */
static int let_go(struct pyle_event *pe, int anyway)
{
    if (!pyle_elsewhere(pe->pb) || !(anyway || pe->kind == PYLE_SIGNAL))
        return 0;
    ++pe->pb->inflight;
    pthread_mutex_unlock(&pe->pb->lock);
    return 1;
}

static void take_back(struct pyle_event *pe, int was_let_go)
{
    if (!was_let_go)
        return;
    pthread_mutex_lock(&pe->pb->lock);
    if (--pe->pb->inflight == 0)
        pthread_cond_broadcast(&pe->pb->idle);
}

/* An event with EV_PERSIST that is deleted keeps the timeout that it had, and gets it back after its
 * next callback, even if it was added again without one. Not a signal's: that has a union there. */
void pyle_forget_timeout(struct event *ev, short unless)
{
    if (!event_pending(ev, unless, NULL))
        evutil_timerclear(&ev->ev_.ev_io.ev_timeout);
}

/* When libevent cannot add the first signal of all it leaves its handler there, and takes that for
 * the one to put back later. */
static int add(struct pyle_event *pe, const struct timeval *timeout)
{
    int rc, signum = pe->kind == PYLE_SIGNAL && !IS_PENDING(pe) ? event_get_signal(pe->at) : 0;
    struct sigaction before, after;

    if (signum && sigaction(signum, NULL, &before) < 0)
        return pyle_failed();
    if (event_add(pe->at, timeout) == 0)
        return 0;
    rc = pyle_failed();
    if (signum && sigaction(signum, NULL, &after) == 0 && after.sa_handler != before.sa_handler)
        sigaction(signum, &before, NULL);
    return rc;
}

/* With how == 0 adds it, else makes it active. 1: the token is in use now. One that is not
 * pending has this timeout or none; a C library's too: who adds it by our class means the same. */
static int arm(struct pyle_event *pe, long long token, const struct timeval *timeout, int how)
{
    int rc = may_arm(pe), taken, away;

    if (rc < 0)
        return rc;
    taken = take_token(pe, token);
    away = let_go(pe, 0);
    if (!timeout && pe->kind != PYLE_SIGNAL)
        pyle_forget_timeout(pe->at, EV_TIMEOUT | EV_READ | EV_WRITE | EV_CLOSED);
    if (how)
        event_active(pe->at, (short)how, 1);
    else
        rc = add(pe, timeout);
    if (away && !pe->open) { /* closed meanwhile */
        event_del_noblock(pe->at);
        rc = PYLE_CLOSED;
    }
    take_back(pe, away);
    if (rc < 0 && taken && pe->token == token)
        spend_token(pe);
    return rc < 0 ? rc : taken;
}

int pyle_event_add(struct pyle_event *pe, long long token, double seconds)
{
    struct timeval tv;
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    if (seconds < 0 && !IS_PENDING(pe) &&
        !(event_get_events(pe->at) & (EV_READ | EV_WRITE | EV_CLOSED | EV_SIGNAL)))
        rc = PYLE_IDLE;
    else
        rc = arm(pe, token, pyle_timeout(pe->pb, seconds, &tv), 0);
    pyle_leave_base(pe->pb);
    return rc;
}

int pyle_event_active(struct pyle_event *pe, long long token, int what)
{
    int rc;

    if (what == 0 || (what & ~(EV_TIMEOUT | EV_READ | EV_WRITE | EV_SIGNAL | EV_CLOSED)))
        return PYLE_RANGE;
    rc = enter(pe);
    if (rc < 0)
        return rc;
    rc = arm(pe, token, NULL, what);
    pyle_leave_base(pe->pb);
    return rc;
}

/* ---- the end of it, told by the loop when none of its callbacks can be running any more ---- */

static void on_finalized(struct event *ev, void *arg)
{
    struct pyle_event *pe = arg;
    struct pyle_base *pb = pe->pb;
    long long token;
    int answer;

    pthread_mutex_lock(&pb->lock);
    token = pe->token;
    pe->token = 0;
    pthread_mutex_unlock(&pb->lock);
    if (pyle_exiting)
        return;
    pyle_before();
    answer = pyle_py_finalized(pb->slot, token);
    if (answer == PYLE_RETRY && !pb->closed) {
        pe->token = token;
        event_finalize(0, ev, on_finalized);
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
}

long long pyle_event_finalize(struct pyle_event *pe, long long token)
{
    long long old;
    int away, rc = pe->borrowed ? PYLE_BORROWED : enter(pe);

    if (rc < 0)
        return rc;
    old = pe->token;
    if (old)
        spend_token(pe);
    pe->token = token;
    pe->open = 0;
    away = let_go(pe, 1);
    event_finalize(0, pe->at, on_finalized);
    take_back(pe, away);
    pyle_leave_base(pe->pb);
    return old;
}

long long pyle_event_token(struct pyle_event *pe)
{
    long long token;

    pthread_mutex_lock(&pe->pb->lock);
    token = pe->token;
    pthread_mutex_unlock(&pe->pb->lock);
    return token;
}

long long pyle_event_del(struct pyle_event *pe, int close)
{
    struct pyle_base *pb = pe->pb;
    long long token = 0;

    if (!pe->open)
        return close ? 0 : PYLE_CLOSED;
    pthread_mutex_lock(&pb->lock);
    if (!pb->base || pb->lost || (pb->closed && !close)) {
        if (close)
            pe->open = 0;
        pthread_mutex_unlock(&pb->lock);
        return close ? 0 : PYLE_CLOSED; /* the base, on its way out, still has to delete it */
    }
    if (pb->fork_gen != pyle_fork_gen || (pb->nolock && pyle_elsewhere(pb))) {
        int forked = pb->fork_gen != pyle_fork_gen;
        pthread_mutex_unlock(&pb->lock);
        return forked ? PYLE_FORKED : PYLE_THREAD;
    }
    if (close)
        pe->open = 0;
    if (!close || !pe->borrowed) {
        /* As in C, wait for a callback that runs right now; not with the lock held. */
        int away = let_go(pe, 1);
        event_del(pe->at);
        take_back(pe, away);
        if (away)
            pyle_kick(pb); /* it may have been the last one: the loop wants to know */
    }
    if (pe->token && !IS_PENDING(pe)) {
        token = pe->token;
        spend_token(pe);
    }
    if (close && !pe->borrowed)
        event_debug_unassign(pe->at);
    pthread_mutex_unlock(&pb->lock);
    return token;
}

long long pyle_event_remove_timer(struct pyle_event *pe)
{
    long long token = 0;
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    if (event_remove_timer(pe->at) < 0) {
        token = pyle_failed();
    } else if (pe->token && !IS_PENDING(pe)) {
        token = pe->token;
        spend_token(pe);
        if (pyle_elsewhere(pe->pb))
            pyle_kick(pe->pb);
    }
    pyle_leave_base(pe->pb);
    return token;
}

int pyle_event_pending(struct pyle_event *pe, int what)
{
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    rc = event_pending(pe->at, (short)what, NULL);
    pyle_leave_base(pe->pb);
    return rc;
}

double pyle_event_expires(struct pyle_event *pe)
{
    struct timeval tv, now;
    double seconds = -1;
    int rc = enter(pe);

    if (rc < 0)
        return rc - 1;
    if (event_pending(pe->at, EV_TIMEOUT, &tv) & EV_TIMEOUT) {
        evutil_gettimeofday(&now, NULL);
        seconds = (double)(tv.tv_sec - now.tv_sec) + (double)(tv.tv_usec - now.tv_usec) / 1e6;
        if (seconds < 0)
            seconds = 0;
    }
    pyle_leave_base(pe->pb);
    return seconds;
}

int pyle_event_get_priority(struct pyle_event *pe)
{
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    rc = event_get_priority(pe->at);
    pyle_leave_base(pe->pb);
    return rc;
}

int pyle_event_set_priority(struct pyle_event *pe, int priority)
{
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    if (priority < 0 || priority >= event_base_get_npriorities(pe->pb->base))
        rc = PYLE_RANGE;
    else if (event_priority_set(pe->at, priority) < 0)
        rc = PYLE_FAIL;
    else
        pyle_note_priority(pe->pb, priority);
    pyle_leave_base(pe->pb);
    return rc;
}

struct event *pyle_event_ptr(struct pyle_event *pe)
{
    return pe->open && !pe->pb->closed ? pe->at : NULL;
}

static struct pyle_event *owner(const struct event *ev)
{
    event_callback_fn fn = event_get_callback(ev);

    return fn == on_event || fn == on_timer || fn == on_signal ? event_get_callback_arg(ev) : NULL;
}

long long pyle_event_owner(struct event *ev)
{
    struct pyle_event *pe = owner(ev);

    return pe ? pyle_event_token(pe) : -1;
}

/* ---- all of a base's ---- */

struct collection {
    struct pyle_event_info *out;
    int max, n;
    struct timeval now;
};

/* Under the base's lock, which event_pending() would take again. */
static int collect(const struct event_base *base, const struct event *ev, void *arg)
{
    struct collection *c = arg;
    struct pyle_event_info *info = &c->out[c->n];
    struct pyle_event *pe = owner(ev);
    int flags = ev->ev_evcallback.evcb_flags;

    (void)base;
    if (c->n++ >= c->max)
        return 0;
    memset(info, 0, sizeof(*info));
    if (pe)
        info->token = pe->token;
    info->fd = event_get_fd(ev);
    info->events = event_get_events(ev);
    info->priority = event_get_priority(ev);
    info->internal = (flags & EVLIST_INTERNAL) != 0;
    if (flags & EVLIST_INSERTED)
        info->pending = info->events & (EV_READ | EV_WRITE | EV_CLOSED | EV_SIGNAL);
    if (flags & (EVLIST_ACTIVE | EVLIST_ACTIVE_LATER))
        info->pending |= ev->ev_res;
    info->seconds = -1;
    if (flags & EVLIST_TIMEOUT) {
        long usec = ev->ev_timeout.tv_usec & COMMON_USEC;
        info->pending |= EV_TIMEOUT;
        info->seconds = (double)(ev->ev_timeout.tv_sec - c->now.tv_sec) +
                        (double)(usec - c->now.tv_usec) / 1e6;
        if (info->seconds < 0)
            info->seconds = 0;
    }
    return 0;
}

int pyle_base_events(struct pyle_base *pb, struct pyle_event_info *out, int max)
{
    struct collection c = {out, max, 0, {0, 0}};
    struct evutil_monotonic_timer *clock = evutil_monotonic_timer_new();
    int rc = clock ? pyle_enter_base(pb) : PYLE_NOMEM;

    if (rc == 0) {
        evutil_configure_monotonic_time(clock, 0);
        evutil_gettime_monotonic(clock, &c.now);
        event_base_foreach_event(pb->base, collect, &c);
        pyle_leave_base(pb);
        rc = c.n;
    }
    if (clock)
        evutil_monotonic_timer_free(clock);
    return rc;
}

void pyle_signal_lock(int on)
{
    if (on)
        pthread_mutex_lock(&signal_lock);
    else
        pthread_mutex_unlock(&signal_lock);
}
