/* Event bases: who may use one when, running its loop, leaving it. */
#include "pyle.h"

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <unistd.h>

unsigned pyle_fork_gen;
int pyle_exiting;
int pyle_debug_mode;
static int had_base; /* libevent's debug mode has to be on before */
__thread int pyle_sync;
__thread int pyle_sync_raised;
__thread struct pyle_base *pyle_here;
__thread int pyle_depth;
__thread char pyle_me;

int pyle_init(void)
{
    /* A library built against another libevent would have another struct event. */
    if (event_get_struct_event_size() != sizeof(struct event))
        return PYLE_FAIL;
    pyle_log_init();
    pyle_memory_init();
    return evthread_use_pthreads() == 0 ? 0 : PYLE_FAIL;
}

/* Our structs are counted: tests ask whether what they made is gone. */

static int alive[PYLE_PINS + 1];

void *pyle_make(enum pyle_thing what, size_t size)
{
    void *made = calloc(1, size);

    if (made)
        __atomic_add_fetch(&alive[what], 1, __ATOMIC_RELAXED);
    return made;
}

void pyle_unmake(enum pyle_thing what, void *made)
{
    if (made)
        __atomic_sub_fetch(&alive[what], 1, __ATOMIC_RELAXED);
    free(made);
}

void *pyle_own(struct pyle_owned *owned, enum pyle_thing what, size_t size)
{
    owned->what = what;
    return owned->it = pyle_make(what, size);
}

void pyle_disown(struct pyle_owned *owned)
{
    void *it = owned->it;

    owned->it = NULL;
    if (!it)
        return;
    switch (owned->what) {
    case PYLE_BASES: pyle_base_unref(it); break;
    case PYLE_BUFS: pyle_buf_unref(it); break;
    case PYLE_BEVS: pyle_bev_unref(it); break;
    case PYLE_LISTENERS: pyle_listener_unref(it); break;
    case PYLE_LIMITS: pyle_limit_unref(it); break;
    case PYLE_GROUPS: pyle_group_unref(it); break;
    case PYLE_SEGMENTS: pyle_segment_unref(it); break;
    case PYLE_DNS_BASES: pyle_dns_unref(it); break;
    case PYLE_LOOKUPS: pyle_lookup_unref(it); break;
    case PYLE_PORTS: pyle_port_unref(it); break;
    case PYLE_QUERIES: pyle_query_unref(it); break;
    case PYLE_POLLS: pyle_poll_unref(it); break;
    case PYLE_URIS: pyle_uri_unref(it); break;
    case PYLE_REQUESTS: pyle_request_unref(it); break;
    case PYLE_HTTPS: pyle_http_unref(it); break;
    case PYLE_BOUNDS: pyle_bound_unref(it); break;
    case PYLE_CLIENTS: pyle_client_unref(it); break;
    default: break;
    }
}

int pyle_alive(enum pyle_thing what)
{
    return __atomic_load_n(&alive[what], __ATOMIC_RELAXED);
}

int pyle_socketpair(int family, int type, int protocol, int fds[2])
{
    int i, error;

    if (evutil_socketpair(family, type, protocol, fds) == 0) {
        if (evutil_make_socket_closeonexec(fds[0]) == 0 && evutil_make_socket_closeonexec(fds[1]) == 0)
            return 0;
        error = errno;
        for (i = 0; i < 2; ++i)
            close(fds[i]);
        errno = error;
    }
    fds[0] = fds[1] = -1; /* Linux leaves numbers there */
    return PYLE_SYS;
}

/* fork() with no lock of ours held by another thread, so that the child can go on. */

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pyle_base *all;

void pyle_before_fork(void)
{
    struct pyle_base *pb;

    pthread_mutex_lock(&all_lock);
    for (pb = all; pb; pb = pb->next)
        if (pb->runner == PYLE_ME)
            pyle_arm_unsent(pb);
    for (pb = all; pb; pb = pb->next)
        pthread_mutex_lock(&pb->lock);
    pyle_signal_lock(1);
    pyle_pins_lock(1);
    pyle_uri_lock(1);
    pyle_request_lock(1);
    pyle_log_lock(1);
}

void pyle_after_fork(int in_child)
{
    struct pyle_base *pb;

    pyle_log_lock(0);
    pyle_request_lock(0);
    pyle_uri_lock(0);
    pyle_pins_lock(0);
    pyle_signal_lock(0);
    for (pb = all; pb; pb = pb->next) {
        if (in_child && (pyle_elsewhere(pb) || pb->inflight > 0))
            pb->lost = 1;
        pthread_mutex_unlock(&pb->lock);
    }
    pthread_mutex_unlock(&all_lock);
    pyle_fork_gen += (unsigned)in_child;
}

static void list_base(struct pyle_base *pb)
{
    pthread_mutex_lock(&all_lock);
    pb->next = all;
    pb->to_this = &all;
    if (all)
        all->to_this = &pb->next;
    all = pb;
    pthread_mutex_unlock(&all_lock);
}

static void unlist_base(struct pyle_base *pb)
{
    pthread_mutex_lock(&all_lock);
    *pb->to_this = pb->next;
    if (pb->next)
        pb->next->to_this = pb->to_this;
    pthread_mutex_unlock(&all_lock);
}

void pyle_set_exiting(void)
{
    __atomic_store_n(&pyle_exiting, 1, __ATOMIC_RELEASE);
}

int pyle_failed(void)
{
    return errno != 0 ? PYLE_SYS : PYLE_FAIL;
}

int pyle_timeval(double seconds, struct timeval *tv)
{
    if (!(seconds >= 0))
        return 0;
    tv->tv_sec = (time_t)seconds;
    tv->tv_usec = (suseconds_t)ceil((seconds - (double)tv->tv_sec) * 1e6);
    if (tv->tv_usec >= 1000000) {
        tv->tv_sec += 1;
        tv->tv_usec -= 1000000;
    }
    return 1;
}

const struct timeval *pyle_timeout(struct pyle_base *pb, double seconds, struct timeval *tv)
{
    int i;

    if (!pyle_timeval(seconds, tv))
        return NULL;
    for (i = 0; i < pb->n_common; ++i) {
        const struct timeval *common = pb->common[i];
        if (common->tv_sec == tv->tv_sec && (common->tv_usec & COMMON_USEC) == tv->tv_usec)
            return common;
    }
    return tv;
}

int pyle_enable_debug_mode(void)
{
    if (pyle_debug_mode)
        return 0;
    if (had_base)
        return PYLE_LATE;
    event_enable_debug_mode();
    pyle_debug_mode = 1;
    return 0;
}

/* ---- calls that may call back before they return ---- */

static __thread struct pyle_base *to_free; /* closed by a callback of a call that still runs */
static __thread int last_raised;

int pyle_raised(void)
{
    return last_raised;
}

int pyle_outermost(void)
{
    return pyle_here == NULL && pyle_sync == 0;
}

int pyle_loop_slot(void)
{
    return pyle_here && pyle_sync == 0 ? pyle_here->slot : -1;
}

int pyle_sync_enter(void)
{
    int outer = pyle_sync_raised;

    ++pyle_sync;
    pyle_sync_raised = 0;
    return outer;
}

ssize_t pyle_sync_leave(int outer, ssize_t rc)
{
    int raised;

    if (pyle_pins_waiting && !pyle_exiting && pyle_py_release() != PYLE_DONE)
        ++pyle_sync_raised;
    raised = pyle_sync_raised;
    pyle_sync_raised = outer;
    --pyle_sync;
    while (pyle_sync == 0 && to_free) {
        struct pyle_base *pb = to_free;
        to_free = pb->next_to_free;
        pyle_base_free(pb);
        pyle_base_unref(pb);
    }
    if (raised) {
        last_raised = raised;
        return PYLE_RAISED;
    }
    return rc;
}

void pyle_raise(struct pyle_base *pb)
{
    if (pyle_sync > 0) {
        ++pyle_sync_raised;
    } else if (pb) {
        if (pb->runner)
            ++pb->raised;
        else
            pyle_py_keep(pb->slot); /* it is C that runs the loop */
        if (pb->base)
            event_base_loopbreak(pb->base);
    }
}

void pyle_after(struct pyle_base *pb)
{
    if (pb->base && pb->fork_gen != pyle_fork_gen)
        event_base_loopbreak(pb->base); /* pyle_base_loop says why */
    if (pyle_log_waiting && pyle_py_log_messages() != PYLE_DONE)
        pyle_raise(pb);
    if (pb->calls_left && --pb->calls_left == 0 && pb->base)
        event_base_loopbreak(pb->base);
    pyle_leave();
}

void pyle_before(void)
{
    ++pyle_depth;
}

void pyle_leave(void)
{
    if (--pyle_depth == 0 && pyle_here && pyle_here->unsent)
        pyle_send_unsent(pyle_here);
}

/* ---- may it be used? ---- */

int pyle_elsewhere(const struct pyle_base *pb)
{
    uintptr_t runner = __atomic_load_n(&pb->runner, __ATOMIC_ACQUIRE);
    return runner != 0 && runner != PYLE_ME;
}

int pyle_enter_base(struct pyle_base *pb)
{
    int rc = 0;

    pthread_mutex_lock(&pb->lock);
    if (pb->closed || !pb->base)
        rc = PYLE_CLOSED;
    else if (pb->lost || pb->fork_gen != pyle_fork_gen)
        rc = PYLE_FORKED;
    else if (pb->nolock && pyle_elsewhere(pb))
        rc = PYLE_THREAD;
    if (rc < 0)
        pthread_mutex_unlock(&pb->lock);
    else
        errno = 0;
    return rc;
}

void pyle_leave_base(struct pyle_base *pb)
{
    pthread_mutex_unlock(&pb->lock);
}

void pyle_hold_base(struct pyle_base *pb)
{
    __atomic_add_fetch(&pb->refs, 1, __ATOMIC_RELAXED);
}

void pyle_note_priority(struct pyle_base *pb, int priority)
{
    if (priority > pb->max_priority)
        pb->max_priority = priority;
}

/* ---- our internal events ---- */

void pyle_kick(struct pyle_base *pb)
{
    event_active(&pb->kick_event, EV_TIMEOUT, 1);
}

/* What others left for the loop's thread to do. */
static void do_chores(struct pyle_base *pb)
{
    struct pyle_bev *pv;
    struct pyle_listener *pl;

    pthread_mutex_lock(&pb->lock);
    pv = pb->bev_grave;
    pl = pb->listener_grave;
    pb->bev_grave = NULL;
    pb->listener_grave = NULL;
    pthread_mutex_unlock(&pb->lock);
    while (pv) {
        struct pyle_bev *next = pv->next;
        pyle_bev_free(pv);
        pv = next;
    }
    while (pl) {
        struct pyle_listener *next = pl->next;
        pyle_listener_free(pl);
        pl = next;
    }
    pyle_groups_sweep(pb, 0);
}

/* Those that were held back go on; on a closed base they are just let go of. */
static void do_resume(struct pyle_base *pb)
{
    struct pyle_bev *pv;

    pthread_mutex_lock(&pb->lock);
    pv = pb->bev_resume;
    pb->bev_resume = NULL;
    pthread_mutex_unlock(&pb->lock);
    while (pv) {
        struct pyle_bev *next = pv->next;
        pv->next = NULL;
        pv->queued = 0;
        pyle_bev_resume(pv);
        pyle_bev_unref(pv);
        pv = next;
    }
}

/* An internal event alone does not end a loop with EVLOOP_ONCE, but what it has run may have given
 * asyncio something to do. */
static void nudge(struct pyle_base *pb)
{
    if (pb->nudge)
        event_active(pb->nudge, EV_TIMEOUT, 1);
}

static void on_kick(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_base *pb = arg;

    (void)fd;
    (void)what;
    if (pyle_exiting || __atomic_load_n(&pb->break_requested, __ATOMIC_ACQUIRE))
        event_base_loopbreak(pb->base);
    do_chores(pb);
    do_resume(pb);
    if (!pyle_exiting && pyle_pins_waiting && pyle_py_release() != PYLE_DONE)
        pyle_raise(pb);
    nudge(pb);
}

void pyle_base_pass_on(struct pyle_base *pb, int wakefd)
{
    char signals[256];
    ssize_t n;

    while (pb->wake[0] >= 0 && (n = read(pb->wake[0], signals, sizeof(signals))) > 0)
        if (wakefd >= 0 && write(wakefd, signals, (size_t)n) < 0)
            break; /* full: it will wake up all the same */
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_base *pb = arg;

    (void)fd;
    (void)what;
    pyle_base_pass_on(pb, pb->wake_chain);
    pyle_before();
    if (!pyle_exiting && pyle_py_signals() != PYLE_DONE)
        pyle_raise(pb);
    nudge(pb);
    pyle_after(pb);
}

void pyle_make_internal(struct event *ev)
{
    ev->ev_evcallback.evcb_flags |= EVLIST_INTERNAL; /* a loop with nothing else ends */
    event_priority_set(ev, 0);
}

static void close_wake(struct pyle_base *pb)
{
    if (pb->wake[0] < 0)
        return;
    event_del(&pb->wake_event);
    event_debug_unassign(&pb->wake_event);
    close(pb->wake[0]);
    close(pb->wake[1]);
    pb->wake[0] = pb->wake[1] = -1;
}

static int open_wake(struct pyle_base *pb)
{
    int i, rc = 0;

    errno = 0;
    if (!pyle_fd_fits(pb->fd_limit) || pipe(pb->wake) < 0) {
        pb->wake[0] = pb->wake[1] = -1;
        return PYLE_SYS;
    }
    for (i = 0; i < 2; ++i)
        if (evutil_make_socket_nonblocking(pb->wake[i]) < 0 ||
            evutil_make_socket_closeonexec(pb->wake[i]) < 0)
            rc = pyle_failed();
    event_assign(&pb->wake_event, pb->base, pb->wake[0], EV_READ | EV_PERSIST, on_wake, pb);
    pyle_make_internal(&pb->wake_event);
    if (rc == 0 && event_add(&pb->wake_event, NULL) < 0)
        rc = pyle_failed();
    if (rc < 0) {
        int error = errno;
        close_wake(pb);
        errno = error;
    }
    return rc;
}

/* ---- life ---- */

struct pyle_base *pyle_base_new(struct pyle_owned *owned, int slot)
{
    struct pyle_base *pb = pyle_own(owned, PYLE_BASES, sizeof(*pb));

    if (!pb)
        return NULL;
    pthread_mutex_init(&pb->lock, NULL);
    pthread_cond_init(&pb->idle, NULL);
    pb->refs = 1;
    pb->slot = slot;
    pb->wake[0] = pb->wake[1] = pb->wake_chain = -1;
    pb->fork_gen = pyle_fork_gen;
    list_base(pb);
    return pb;
}

void pyle_base_unref(struct pyle_base *pb)
{
    if (__atomic_sub_fetch(&pb->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    pyle_base_free(pb);
    unlist_base(pb);
    free(pb->scratch);
    free(pb->outbox);
    free(pb->spare[0]);
    free(pb->spare[1]);
    free(pb->common);
    pyle_https_end(pb);
    pthread_cond_destroy(&pb->idle);
    pthread_mutex_destroy(&pb->lock);
    pyle_unmake(PYLE_BASES, pb);
}

int pyle_fd_fits(int limit)
{
    int fd;

    if (limit == INT_MAX)
        return 1;
    fd = fcntl(0, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd >= 0)
        close(fd);
    if (fd < limit)
        return 1;
    errno = EMFILE;
    return 0;
}

int pyle_fd_waits(struct pyle_base *pb, int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return PYLE_SYS;
    if ((S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) &&
        !(event_base_get_features(pb->base) & EV_FEATURE_FDS)) {
        errno = EPERM; /* what epoll says; bufferevents do not pass it on */
        return PYLE_SYS;
    }
    return 0;
}

static int start(struct pyle_base *pb)
{
    pb->fd_limit = strcmp(event_base_get_method(pb->base), "select") == 0 ? FD_SETSIZE : INT_MAX;
    event_assign(&pb->kick_event, pb->base, -1, 0, on_kick, pb);
    pyle_make_internal(&pb->kick_event);
    return 0;
}

/* libevent ends the process when a new base cannot have the descriptors that signals need. */
static int has_descriptors(void)
{
    int fds[3][2], n, error = 0;

    for (n = 0; n < 3; ++n)
        if (pipe(fds[n]) < 0) {
            error = errno;
            break;
        }
    while (n-- > 0) {
        close(fds[n][0]);
        close(fds[n][1]);
    }
    errno = error;
    return !error;
}

/* And when it cannot have memory for what it has just freed. */
static int reinit(struct pyle_base *pb)
{
    struct pyle_store store;
    int rc = pyle_store_fill(&store, 12, 1024);

    if (rc < 0)
        return rc;
    errno = 0;
    if (event_reinit(pb->base) < 0)
        rc = pyle_failed();
    pyle_store_close(&store);
    return rc;
}

int pyle_base_open(struct pyle_base *pb, struct event_config *config, int nolock, int select)
{
    errno = 0;
    if ((select && !pyle_fd_fits(FD_SETSIZE - 8)) || !has_descriptors())
        return PYLE_SYS;
    pyle_went_short();
    pb->base = config ? event_base_new_with_config(config) : event_base_new();
    if (pb->base && pyle_went_short()) { /* it has no lock, or not its backend */
        event_base_free(pb->base);
        pb->base = NULL;
        return PYLE_NOMEM;
    }
    if (!pb->base)
        return pyle_failed();
    had_base = 1;
    pb->nolock = nolock;
    return start(pb);
}

int pyle_base_borrow(struct pyle_base *pb, struct event_base *base)
{
    had_base = pb->borrowed = 1;
    pb->base = base;
    return start(pb);
}

struct event_base *pyle_base_ptr(struct pyle_base *pb)
{
    return pb->closed ? NULL : pb->base;
}

int pyle_base_shut(struct pyle_base *pb)
{
    int rc = 0;

    pthread_mutex_lock(&pb->lock);
    if (pb->nolock && pyle_elsewhere(pb) && pb->fork_gen == pyle_fork_gen) {
        rc = PYLE_THREAD;
    } else if (!pb->closed) {
        pb->closed = 1;
        if (pb->base && pb->fork_gen != pyle_fork_gen) {
            /* The backend is the parent's: get our own before events are taken off it. */
            if (pyle_elsewhere(pb))
                pb->runner = 0; /* that thread stayed in the parent */
            if (!pb->lost && reinit(pb) == PYLE_NOMEM)
                pb->lost = 1;
            pb->fork_gen = pyle_fork_gen;
        }
        if (pb->base && pb->runner) {
            event_base_loopbreak(pb->base);
            if (pb->runner != PYLE_ME) {
                pb->break_requested = 1;
                pyle_kick(pb);
            }
        }
    }
    pthread_mutex_unlock(&pb->lock);
    return rc;
}

int pyle_base_claim_free(struct pyle_base *pb, struct pyle_held *held)
{
    int rc = 0;

    pthread_mutex_lock(&pb->lock);
    if (pb->free_claimed == 2) {
        rc = 2;
    } else if (pb->closed && !pb->runner && !pb->free_claimed) {
        rc = pb->free_claimed = 1;
        pyle_hold_base(pb);
        held->claim = pb;
    }
    pthread_mutex_unlock(&pb->lock);
    return rc;
}

void pyle_let_go(struct pyle_held *held)
{
    struct pyle_buf *b = held->view;
    struct pyle_base *pb = held->claim;

    held->view = NULL;
    held->claim = NULL;
    if (b)
        pyle_buf_unview(b);
    if (held->buf_lock || held->bev_lock)
        pyle_unlock(held);
    if (pb) {
        pthread_mutex_lock(&pb->lock);
        if (pb->free_claimed == 1)
            pb->free_claimed = 0; /* it did not come to that */
        pthread_mutex_unlock(&pb->lock);
        pyle_base_unref(pb);
    }
}

static int would_be_called(const struct event_base *base, const struct event *ev, void *arg)
{
    (void)base;
    (void)arg;
    return !(ev->ev_evcallback.evcb_flags & (EVLIST_INTERNAL | EVLIST_FINALIZING));
}

/* event_base_free forgets deferred callbacks, and with them the freed bufferevents that wait for
 * these. They are called: of ours none has anything left to call. Events of a C library's would be
 * called as well, so with one of these there all stays as in C. */
static void let_deferred_go(struct event_base *base)
{
    if (event_base_get_num_events(base, EVENT_BASE_COUNT_ACTIVE) > 0 &&
        !event_base_foreach_event(base, would_be_called, NULL))
        event_base_loop(base, EVLOOP_NONBLOCK);
}

static int free_base(struct pyle_base *pb)
{
    struct event_base *base;
    int sync;

    pyle_base_shut(pb);
    pthread_mutex_lock(&pb->lock);
    pb->free_after_unlock = pb->locks > 0; /* what is locked has to be there to be unlocked */
    pthread_mutex_unlock(&pb->lock);
    if (pb->free_after_unlock)
        return 0;
    if (pyle_sync > 0) { /* a call up the stack may be in the middle of one of its buffers */
        if (pb->base && !pb->freeing) {
            pb->freeing = 1;
            pyle_hold_base(pb);
            pb->next_to_free = to_free;
            to_free = pb;
        }
        return 0;
    }
    pthread_mutex_lock(&pb->lock);
    while (pb->inflight > 0 && !pb->lost)
        pthread_cond_wait(&pb->idle, &pb->lock);
    base = pb->base;
    if (base && pb->lost) {
        pb->base = NULL; /* what it has stays where it is: its lock may be held for ever */
        base = NULL;
        if (pb->wake[0] >= 0) {
            close(pb->wake[0]);
            close(pb->wake[1]);
        }
    }
    pthread_mutex_unlock(&pb->lock);
    pyle_groups_sweep(pb, 1);
    if (!base) {
        pyle_clients_sweep(pb);
        pyle_dns_sweep(pb);
        return 0;
    }
    do_chores(pb);
    do_resume(pb);
    pyle_https_sweep(pb);
    pyle_later_end(pb);
    close_wake(pb);
    event_del(&pb->kick_event);
    event_debug_unassign(&pb->kick_event);
    sync = pyle_sync_enter();
    if (!pb->borrowed) {
        pyle_clients_sweep(pb);
        let_deferred_go(base);
        event_base_free(base); /* runs finalizers, and what is left of freed bufferevents */
        pyle_dns_sweep(pb);
    }
    pthread_mutex_lock(&pb->lock);
    pb->base = NULL;
    pthread_mutex_unlock(&pb->lock);
    do_chores(pb);
    return (int)pyle_sync_leave(sync, 0); /* what was lent to its buffers is given back */
}

int pyle_base_free(struct pyle_base *pb)
{
    int rc = free_base(pb);

    pthread_mutex_lock(&pb->lock);
    pb->free_claimed = 2;
    pthread_mutex_unlock(&pb->lock);
    return rc;
}

int pyle_base_reinit(struct pyle_base *pb)
{
    int rc = 0;

    pthread_mutex_lock(&pb->lock);
    if (pb->closed || !pb->base) {
        rc = PYLE_CLOSED;
    } else if (pb->lost) {
        rc = PYLE_THREAD; /* the thread in its loop did not come along, its lock may be held */
    } else {
        int had_wake = pb->wake[0] >= 0;
        rc = reinit(pb);
        if (had_wake && rc != PYLE_NOMEM) {
            close_wake(pb); /* the parent's signals are not ours */
            if (open_wake(pb) < 0 && rc == 0)
                rc = PYLE_SYS;
        }
        if (rc == 0)
            pb->fork_gen = pyle_fork_gen;
    }
    pthread_mutex_unlock(&pb->lock);
    return rc;
}

/* ---- the loop ---- */

int pyle_base_wakefd(struct pyle_base *pb)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    if (pb->wake[0] < 0)
        rc = open_wake(pb);
    if (rc == 0)
        rc = pb->wake[1];
    pyle_leave_base(pb);
    return rc;
}

int pyle_base_loop(struct pyle_base *pb, int flags, int chained_wakefd)
{
    struct pyle_base *outer = pyle_here;
    int sync = pyle_sync, depth = pyle_depth, rc = pyle_enter_base(pb), raised;

    if (rc < 0)
        return rc;
    if (pb->runner || pyle_sync > 0) {
        /* Also not from a callback that a call of ours on a buffer is making: the loop would
         * free under libevent what that call still uses. */
        pyle_leave_base(pb);
        return PYLE_RUNNING;
    }
    if (pb->break_requested) { /* asked for before we came: libevent would forget it */
        pb->break_requested = 0;
        event_del(&pb->kick_event);
        pyle_leave_base(pb);
        return 0;
    }
    pb->runner = PYLE_ME;
    pb->raised = 0;
    pb->wake_chain = chained_wakefd;
    if (pb->bev_resume)
        pyle_kick(pb);
    pyle_later_start(pb);
    pyle_hold_base(pb);
    pyle_leave_base(pb);

    pyle_here = pb;
    pyle_sync = pyle_depth = 0;
    errno = 0;
    rc = event_base_loop(pb->base, flags);
    if (rc < 0)
        rc = pyle_failed();
    pyle_https_settle(pb);
    if (pyle_pins_waiting && !pyle_exiting && pyle_py_release() != PYLE_DONE)
        ++pb->raised;
    pyle_here = outer;
    pyle_sync = sync;
    pyle_depth = depth;

    do_chores(pb);
    if (!pb->closed && pb->fork_gen == pyle_fork_gen)
        pyle_listener_unpause(pb);
    pthread_mutex_lock(&pb->lock);
    __atomic_store_n(&pb->runner, 0, __ATOMIC_RELEASE);
    pb->wake_chain = -1;
    raised = pb->raised;
    pb->raised = 0;
    if (pb->break_requested) {
        pb->break_requested = 0;
        event_del(&pb->kick_event);
    }
    pthread_mutex_unlock(&pb->lock);
    last_raised = raised;
    if (raised) {
        rc = PYLE_RAISED;
    } else if (!pb->closed && pb->fork_gen != pyle_fork_gen) {
        rc = PYLE_FORKED;
    }
    pyle_base_unref(pb);
    return rc;
}

int pyle_base_loopexit(struct pyle_base *pb, double seconds)
{
    struct timeval tv;
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    if (event_base_loopexit(pb->base, pyle_timeval(seconds, &tv) ? &tv : NULL) < 0)
        rc = pyle_failed();
    pyle_leave_base(pb);
    return rc;
}

int pyle_base_loopbreak(struct pyle_base *pb)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    pb->user_broke = 1;
    if (event_base_loopbreak(pb->base) < 0)
        rc = pyle_failed();
    if (pb->runner != PYLE_ME) {
        /* The loop may be about to start, and its first act is to forget the break:
         * the kick event does not let it. */
        __atomic_store_n(&pb->break_requested, 1, __ATOMIC_RELEASE);
        if (pb->runner)
            pyle_kick(pb);
    }
    pyle_leave_base(pb);
    return rc;
}

int pyle_base_loopcontinue(struct pyle_base *pb)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    if (event_base_loopcontinue(pb->base) < 0)
        rc = pyle_failed();
    pyle_leave_base(pb);
    return rc;
}

int pyle_base_state(struct pyle_base *pb, int what)
{
    int rc;

    if (what == PYLE_STATE_RUNNING)
        return __atomic_load_n(&pb->runner, __ATOMIC_ACQUIRE) != 0;
    if (what == PYLE_STATE_RUNNING_HERE)
        return __atomic_load_n(&pb->runner, __ATOMIC_ACQUIRE) == PYLE_ME;
    if (what == PYLE_STATE_FORKED)
        return pb->fork_gen != pyle_fork_gen;
    rc = pyle_enter_base(pb);
    if (rc < 0)
        return rc;
    switch (what) {
    case PYLE_STATE_GOT_EXIT: rc = event_base_got_exit(pb->base); break;
    case PYLE_STATE_GOT_BREAK: rc = event_base_got_break(pb->base); break;
    case PYLE_STATE_NPRIORITIES: rc = event_base_get_npriorities(pb->base); break;
    case PYLE_STATE_FEATURES: rc = event_base_get_features(pb->base); break;
    default: break;
    }
    pyle_leave_base(pb);
    return rc;
}

int pyle_base_priority_init(struct pyle_base *pb, int n)
{
    struct pyle_store store;
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    if (n < 1 || n >= EVENT_MAX_PRIORITIES)
        rc = PYLE_RANGE;
    else if (pb->runner)
        rc = PYLE_RUNNING; /* it goes through the queues that would be freed */
    else if (pb->max_priority >= n)
        rc = PYLE_PRIORITY; /* an event with no queue to go to would end the process */
    else if (pyle_store_fill(&store, 1, (size_t)n * 2 * sizeof(void *)) < 0)
        rc = PYLE_NOMEM; /* or it would be left without any queue */
    else {
        if (event_base_priority_init(pb->base, n) < 0)
            rc = PYLE_FAIL;
        pyle_store_close(&store);
    }
    pyle_leave_base(pb);
    return rc;
}

int pyle_base_num_events(struct pyle_base *pb, unsigned flags)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    rc = event_base_get_num_events(pb->base, flags);
    pyle_leave_base(pb);
    return rc;
}

int pyle_base_max_events(struct pyle_base *pb, unsigned flags, int clear)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    rc = event_base_get_max_events(pb->base, flags, clear);
    pyle_leave_base(pb);
    return rc;
}

double pyle_base_gettimeofday_cached(struct pyle_base *pb)
{
    struct timeval tv;
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    if (event_base_gettimeofday_cached(pb->base, &tv) < 0)
        rc = pyle_failed();
    pyle_leave_base(pb);
    return rc < 0 ? rc : (double)tv.tv_sec + (double)tv.tv_usec / 1e6;
}

int pyle_base_update_cache_time(struct pyle_base *pb)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    if (event_base_update_cache_time(pb->base) < 0)
        rc = pyle_failed();
    pyle_leave_base(pb);
    return rc;
}

int pyle_base_active_by_fd(struct pyle_base *pb, int fd, int what)
{
    int rc;

    if (fd < 0 || !what || (what & ~(EV_TIMEOUT | EV_READ | EV_WRITE | EV_CLOSED)))
        return PYLE_RANGE;
    rc = pyle_enter_base(pb);
    if (rc < 0)
        return rc;
    if (what & ~EV_TIMEOUT) /* libevent takes one or the other */
        event_base_active_by_fd(pb->base, fd, (short)(what & ~EV_TIMEOUT));
    if (what & EV_TIMEOUT)
        event_base_active_by_fd(pb->base, fd, EV_TIMEOUT);
    pyle_leave_base(pb);
    return 0;
}

/* libevent waits for a callback of the signal's that runs now: not with our lock held. */
int pyle_base_active_by_signal(struct pyle_base *pb, int signum)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    ++pb->inflight;
    pyle_leave_base(pb);
    event_base_active_by_signal(pb->base, signum);
    pthread_mutex_lock(&pb->lock);
    if (--pb->inflight == 0)
        pthread_cond_broadcast(&pb->idle);
    pyle_leave_base(pb);
    return 0;
}

/* The token of the event whose callback this thread is in. Not event_base_get_running_event: that
 * one reads through NULL outside of a callback. */
long long pyle_base_running_event(struct pyle_base *pb)
{
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    pyle_leave_base(pb);
    return pyle_elsewhere(pb) ? 0 : pb->firing;
}

int pyle_base_common_timeout(struct pyle_base *pb, double seconds)
{
    const struct timeval *common, **more;
    struct timeval tv;
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    pyle_timeval(seconds, &tv);
    if (pyle_timeout(pb, seconds, &tv) == &tv) {
        more = realloc(pb->common, (size_t)(pb->n_common + 1) * sizeof(*more));
        if (!more) {
            rc = PYLE_NOMEM;
        } else {
            pb->common = more;
            common = event_base_init_common_timeout(pb->base, &tv);
            if (common)
                more[pb->n_common++] = common;
            else
                rc = pyle_failed();
        }
    }
    pyle_leave_base(pb);
    return rc;
}

/* What event_base_dump_events writes; free() it. NULL: rc says why. */
char *pyle_base_dump(struct pyle_base *pb, size_t *length, int *rc)
{
    char *text = NULL;
    FILE *file;

    *rc = pyle_enter_base(pb);
    if (*rc < 0)
        return NULL;
    file = open_memstream(&text, length);
    if (file) {
        event_base_dump_events(pb->base, file);
        if (fclose(file) != 0) {
            free(text);
            file = NULL;
        }
    }
    pyle_leave_base(pb);
    if (!file)
        *rc = PYLE_NOMEM;
    return file ? text : NULL;
}

int pyle_config_max_dispatch_interval(struct event_config *config, double seconds, int callbacks,
                                      int priority)
{
    struct timeval tv;

    return event_config_set_max_dispatch_interval(config, pyle_timeval(seconds, &tv) ? &tv : NULL,
                                                  callbacks, priority);
}
