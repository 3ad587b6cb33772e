/* Events. The rule that keeps them safe: one that libevent may fire has a token, and a token
 * is an entry in the base's table that keeps the Python object, hence this memory. Arming takes
 * the base's lock; so does firing, when it decides whether the token is spent. */
#include "pyle.h"

#include <signal.h>

#define IS_PENDING(pe)                                      \
    ((pe)->ev.ev_evcallback.evcb_flags &                    \
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
    else
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
    if (pe->token)
        return 0;
    pe->token = token;
    count_signal(pe, 1);
    return 1;
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
    answer = fn(pb->slot, token, fd, what, released);
    /* From here on pe may be gone, unless Python did not get as far as taking the token. */
    if (answer == PYLE_RETRY) {
        pthread_mutex_lock(&pb->lock);
        if (!pb->closed && pb->base && pe->open) {
            if (released)
                take_token(pe, token);
            event_active(&pe->ev, (short)what, (short)((what >> 16) + 1));
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
    int left = pe->ev.ev_.ev_signal.ev_ncalls;

    fire(pe, fd, what | left << 16, pyle_py_signal);
}

int pyle_event_again(struct pyle_event *pe, int calls)
{
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    if (pe->token && calls > 0)
        event_active(&pe->ev, EV_SIGNAL, (short)calls);
    pyle_leave_base(pe->pb);
    return 0;
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
    else if ((what & EV_CLOSED) && !(event_base_get_features(pb->base) & EV_FEATURE_EARLY_CLOSE))
        rc = PYLE_UNABLE;
    else if (event_assign(&pe->ev, pb->base, fd, (short)what, on[what & EV_SIGNAL ? PYLE_SIGNAL : kind], pe) < 0) {
        rc = pyle_failed();
    } else {
        pe->pb = pb;
        pe->kind = what & EV_SIGNAL ? PYLE_SIGNAL : kind;
        pe->open = 1;
        pyle_note_priority(pb, event_get_priority(&pe->ev));
    }
    pyle_leave_base(pb);
    return rc;
}

int pyle_event_add(struct pyle_event *pe, long long token, double seconds)
{
    struct timeval tv;
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    rc = may_arm(pe);
    if (rc == 0 && seconds < 0 && !IS_PENDING(pe) &&
        !(event_get_events(&pe->ev) & (EV_READ | EV_WRITE | EV_CLOSED | EV_SIGNAL)))
        rc = PYLE_IDLE;
    if (rc == 0) {
        if (event_add(&pe->ev, pyle_timeval(seconds, &tv) ? &tv : NULL) < 0) {
            rc = pyle_failed();
            count_signal(pe, 0);
        } else {
            rc = take_token(pe, token);
        }
    }
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
    rc = may_arm(pe);
    if (rc == 0) {
        event_active(&pe->ev, (short)what, 1);
        rc = take_token(pe, token);
    }
    pyle_leave_base(pe->pb);
    return rc;
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
        pe->open = 0;
        pthread_mutex_unlock(&pb->lock);
        return close ? 0 : PYLE_CLOSED;
    }
    if (pb->fork_gen != pyle_fork_gen || (pb->nolock && pyle_elsewhere(pb))) {
        int forked = pb->fork_gen != pyle_fork_gen;
        pthread_mutex_unlock(&pb->lock);
        return forked ? PYLE_FORKED : PYLE_THREAD;
    }
    if (close)
        pe->open = 0;
    if (pyle_elsewhere(pb)) {
        /* As in C, wait for a callback that runs right now; not with the lock held. */
        ++pb->inflight;
        pthread_mutex_unlock(&pb->lock);
        event_del(&pe->ev);
        pthread_mutex_lock(&pb->lock);
        pyle_kick(pb); /* it may have been the last one: the loop wants to know */
        if (--pb->inflight == 0)
            pthread_cond_broadcast(&pb->idle);
    } else {
        event_del(&pe->ev);
    }
    if (pe->token && !IS_PENDING(pe)) {
        token = pe->token;
        spend_token(pe);
    }
    if (close)
        event_debug_unassign(&pe->ev);
    pthread_mutex_unlock(&pb->lock);
    return token;
}

long long pyle_event_remove_timer(struct pyle_event *pe)
{
    long long token = 0;
    int rc = enter(pe);

    if (rc < 0)
        return rc;
    if (event_remove_timer(&pe->ev) < 0) {
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
    rc = event_pending(&pe->ev, (short)what, NULL);
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
    if (event_pending(&pe->ev, EV_TIMEOUT, &tv) & EV_TIMEOUT) {
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
    rc = event_get_priority(&pe->ev);
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
    else if (event_priority_set(&pe->ev, priority) < 0)
        rc = PYLE_FAIL;
    else
        pyle_note_priority(pe->pb, priority);
    pyle_leave_base(pe->pb);
    return rc;
}

struct event *pyle_event_ptr(struct pyle_event *pe)
{
    return pe->open && !pe->pb->closed ? &pe->ev : NULL;
}

void pyle_signal_lock(int on)
{
    if (on)
        pthread_mutex_lock(&signal_lock);
    else
        pthread_mutex_unlock(&signal_lock);
}
