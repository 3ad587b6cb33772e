/* Rate limits. libevent keeps a bufferevent's limit by its bare address, and ends the process when
 * a group is freed that has members: here limits are counted, and a group knows its members, which
 * leave it when either side closes. */
#include "pyle.h"

#include <limits.h>
#include <unistd.h>

static const ssize_t lowest = -(EV_SSIZE_MAX / 2); /* what a limit may be down to: no overflow */

/* ---- ev_token_bucket_cfg ---- */

struct pyle_limit *pyle_limit_new(struct pyle_owned *owned, size_t read_rate, size_t read_burst,
                                  size_t write_rate, size_t write_burst, int msec)
{
    const struct timeval tick = {msec / 1000, msec % 1000 * 1000};
    struct pyle_limit *limit = pyle_own(owned, PYLE_LIMITS, sizeof(*limit));
    size_t *rates[] = {&read_rate, &read_burst, &write_rate, &write_burst};
    int i;

    if (!limit)
        return NULL;
    /* libevent reads as many bytes as fit in an int. Of a larger limit it would take the low
     * bits, and when these are 0 it would read nothing and say that this was the end. */
    for (i = 0; i < 4; ++i)
        if (*rates[i] > INT_MAX)
            *rates[i] = INT_MAX;
    limit->cfg = ev_token_bucket_cfg_new(read_rate, read_burst, write_rate, write_burst, &tick);
    if (!limit->cfg) {
        owned->it = NULL;
        pyle_unmake(PYLE_LIMITS, limit);
        return NULL;
    }
    limit->burst[0] = (ssize_t)read_burst;
    limit->burst[1] = (ssize_t)write_burst;
    limit->msec = msec;
    limit->owned = 1;
    limit->refs = 1;
    return limit;
}

struct pyle_limit *pyle_limit_borrow(struct pyle_owned *owned, struct ev_token_bucket_cfg *cfg)
{
    struct pyle_limit *limit = pyle_own(owned, PYLE_LIMITS, sizeof(*limit));

    if (!limit)
        return NULL;
    limit->cfg = cfg;
    limit->burst[0] = limit->burst[1] = INT_MAX;
    limit->refs = 1;
    return limit;
}

void pyle_limit_unref(struct pyle_limit *limit)
{
    if (__atomic_sub_fetch(&limit->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    if (limit->owned)
        ev_token_bucket_cfg_free(limit->cfg);
    pyle_unmake(PYLE_LIMITS, limit);
}

struct ev_token_bucket_cfg *pyle_limit_ptr(struct pyle_limit *limit)
{
    return limit->cfg;
}

/* What to take off a limit so that it is at target: not above its burst, where libevent would add
 * to it for ever, nor so low that it overflows. */
static ssize_t down_to(ssize_t limit, ssize_t target, ssize_t burst)
{
    ssize_t n;

    if (target > burst)
        target = burst;
    if (target < lowest)
        target = lowest;
    return __builtin_sub_overflow(limit, target, &n) ? EV_SSIZE_MAX : n;
}

static ssize_t down_by(ssize_t limit, long long n, ssize_t burst)
{
    ssize_t target;

    if (__builtin_sub_overflow(limit, n, &target))
        target = n > 0 ? lowest : burst;
    return down_to(limit, target, burst);
}

/* ---- groups ---- */

struct pyle_group *pyle_group_new(struct pyle_owned *owned, struct pyle_base *pb)
{
    struct pyle_group *pg = pyle_own(owned, PYLE_GROUPS, sizeof(*pg));

    if (!pg)
        return NULL;
    pg->refs = 1;
    pg->pb = pb;
    pyle_hold_base(pb);
    return pg;
}

/* The base's lock, unless the group may not be used: closed, or the loop is elsewhere. It changes
 * its members, which belong to the loop's thread. */
static int enter(struct pyle_group *pg)
{
    int rc = pyle_enter_base(pg->pb);

    if (rc < 0)
        return rc;
    if (!pg->group)
        rc = PYLE_CLOSED;
    else if (pyle_elsewhere(pg->pb))
        rc = PYLE_THREAD;
    if (rc < 0)
        pyle_leave_base(pg->pb);
    return rc;
}

static int leave(struct pyle_group *pg, int rc)
{
    if (rc == -1)
        rc = pyle_failed();
    pyle_leave_base(pg->pb);
    return rc;
}

static void set_burst(struct pyle_group *pg, const struct pyle_limit *limit)
{
    pg->burst[0] = limit->burst[0];
    pg->burst[1] = limit->burst[1];
    pg->msec = limit->msec;
}

static void list(struct pyle_group *pg)
{
    struct pyle_base *pb = pg->pb;

    pg->next = pb->groups;
    pg->to_this = &pb->groups;
    if (pb->groups)
        pb->groups->to_this = &pg->next;
    pb->groups = pg;
}

int pyle_group_open(struct pyle_group *pg, struct pyle_limit *limit)
{
    struct pyle_base *pb = pg->pb;
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    if (pyle_elsewhere(pb)) {
        rc = PYLE_THREAD; /* its timer is added before its lock is there */
        return leave(pg, rc);
    }
    pyle_went_short();
    pg->group = bufferevent_rate_limit_group_new(pb->base, limit->cfg);
    if (pg->group && pyle_went_short()) { /* it has no lock, or is never refilled */
        bufferevent_rate_limit_group_free(pg->group);
        pg->group = NULL;
    }
    if (!pg->group) {
        rc = PYLE_NOMEM;
    } else {
        set_burst(pg, limit);
        pyle_note_priority(pb, event_base_get_npriorities(pb->base) / 2); /* its timer's */
        list(pg);
    }
    return leave(pg, rc);
}

int pyle_group_borrow(struct pyle_group *pg, struct bufferevent_rate_limit_group *group)
{
    struct pyle_base *pb = pg->pb;
    struct pyle_group *other;
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    for (other = pb->groups; other; other = other->next)
        if (other->group == group && !other->borrowed) /* ours, that only members hold */
            return leave(pg, PYLE_CLOSED);
    pg->group = group;
    pg->burst[0] = pg->burst[1] = INT_MAX;
    pg->borrowed = 1;
    list(pg);
    return leave(pg, 0);
}

/* Under the base's lock. */
static void end_group(struct pyle_group *pg, struct bufferevent_rate_limit_group *group)
{
    pg->group = NULL;
    *pg->to_this = pg->next;
    if (pg->next)
        pg->next->to_this = pg->to_this;
    if (group && !pg->borrowed)
        bufferevent_rate_limit_group_free(group);
}

/* What goes with the last reference, the handle's or a member's. A thread that cannot free it
 * leaves it to the loop's, or to the base's end. */
void pyle_group_unref(struct pyle_group *pg)
{
    struct pyle_base *pb = pg->pb;
    int gone = 0;

    pyle_hold_base(pb); /* pg's own reference may be the last */
    pthread_mutex_lock(&pb->lock);
    if (--pg->refs == 0) {
        gone = !pg->group;
        if (!gone && pb->base && !pb->lost && pb->fork_gen == pyle_fork_gen) {
            gone = !pyle_elsewhere(pb);
            if (gone)
                end_group(pg, pg->group);
            else if (!pb->nolock && !pb->closed)
                pyle_kick(pb);
        }
    }
    pthread_mutex_unlock(&pb->lock);
    if (gone) {
        pyle_base_unref(pb);
        pyle_unmake(PYLE_GROUPS, pg);
    }
    pyle_base_unref(pb);
}

/* all: the base ends, and what can still name the groups finds them closed. */
void pyle_groups_sweep(struct pyle_base *pb, int all)
{
    struct pyle_group *pg, *next, *gone = NULL;

    pthread_mutex_lock(&pb->lock);
    for (pg = pb->groups; pg; pg = next) {
        next = pg->next;
        if (pg->refs > 0 && !all)
            continue;
        /* A close that was interrupted leaves members; a lost base, locks that are held. */
        end_group(pg, pg->members || !pb->base ? NULL : pg->group);
        if (pg->refs == 0) {
            pg->next = gone;
            gone = pg;
        }
    }
    pthread_mutex_unlock(&pb->lock);
    while (gone) {
        pg = gone;
        gone = pg->next;
        pyle_unmake(PYLE_GROUPS, pg);
        pyle_base_unref(pb);
    }
}

struct bufferevent_rate_limit_group *pyle_group_ptr(struct pyle_group *pg)
{
    return pg->pb->closed ? NULL : pg->group;
}

static struct pyle_group *unlink_member(struct pyle_bev *pv)
{
    struct pyle_group *pg;

    pthread_mutex_lock(&pv->pb->lock);
    pg = pv->group;
    if (pg) {
        pv->group = NULL;
        *pv->to_member = pv->next_member;
        if (pv->next_member)
            pv->next_member->to_member = pv->to_member;
    }
    pthread_mutex_unlock(&pv->pb->lock);
    return pg;
}

/* With bev's lock. */
static int leave_group(struct pyle_bev *pv, struct bufferevent *bev)
{
    struct pyle_group *pg = unlink_member(pv);

    if (pg) {
        bufferevent_remove_from_rate_limit_group(bev);
        pyle_group_unref(pg);
    }
    return 0;
}

int pyle_group_close(struct pyle_group *pg)
{
    struct pyle_base *pb = pg->pb;
    struct bufferevent_rate_limit_group *group;
    struct pyle_bev *pv;
    struct pyle_use u;
    int rc = pg->group ? enter(pg) : PYLE_CLOSED;

    if (rc < 0)
        return rc == PYLE_CLOSED ? 0 : rc;
    group = pg->group;
    end_group(pg, NULL); /* nobody joins any more */
    ++pb->inflight;      /* and the base stays */
    while ((pv = pg->members)) {
        __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&pb->lock);
        if (pyle_bev_begin_to_close(pv, &u) == 0) {
            bufferevent_lock(u.bev);
            if (pv->group == pg)
                leave_group(pv, u.bev);
            bufferevent_unlock(u.bev);
            pyle_bev_end(pv, &u);
        } else {
            usleep(1000); /* another thread is in one of its calls, or about to close it */
        }
        pyle_bev_unref(pv);
        pthread_mutex_lock(&pb->lock);
    }
    if (!pg->borrowed)
        bufferevent_rate_limit_group_free(group);
    if (--pb->inflight == 0)
        pthread_cond_broadcast(&pb->idle);
    return leave(pg, 0);
}

int pyle_group_set_cfg(struct pyle_group *pg, struct pyle_limit *limit)
{
    int rc = enter(pg);

    if (rc < 0)
        return rc;
    if (pg->borrowed)
        return leave(pg, PYLE_BORROWED); /* its ticks are not known here */
    /* libevent would go on counting ticks of the new length from a count of the old ones: as the
     * time of day has it, it would refill at once, or not for years. */
    if (limit->msec != pg->msec || limit->msec == 0)
        return leave(pg, PYLE_RANGE);
    rc = bufferevent_rate_limit_group_set_cfg(pg->group, limit->cfg);
    if (rc == 0)
        set_burst(pg, limit);
    return leave(pg, rc);
}

int pyle_group_set_min_share(struct pyle_group *pg, size_t share)
{
    int rc = enter(pg);

    if (rc < 0)
        return rc;
    if (share == 0) /* a share of 0 bytes is read as the end of the stream */
        return leave(pg, PYLE_RANGE);
    return leave(pg, bufferevent_rate_limit_group_set_min_share(pg->group, share));
}

int pyle_group_limit(struct pyle_group *pg, int write, long long *out)
{
    int rc = enter(pg);

    if (rc < 0)
        return rc;
    *out = write ? bufferevent_rate_limit_group_get_write_limit(pg->group)
                 : bufferevent_rate_limit_group_get_read_limit(pg->group);
    return leave(pg, 0);
}

int pyle_group_decrement(struct pyle_group *pg, int write, long long n)
{
    ssize_t now;
    int rc = enter(pg);

    if (rc < 0)
        return rc;
    if (write) {
        now = bufferevent_rate_limit_group_get_write_limit(pg->group);
        rc = bufferevent_rate_limit_group_decrement_write(pg->group,
                                                          down_by(now, n, pg->burst[1]));
    } else {
        now = bufferevent_rate_limit_group_get_read_limit(pg->group);
        rc = bufferevent_rate_limit_group_decrement_read(pg->group,
                                                         down_by(now, n, pg->burst[0]));
    }
    return leave(pg, rc);
}

int pyle_group_get_totals(struct pyle_group *pg, unsigned long long *out)
{
    ev_uint64_t read, written;
    int rc = enter(pg);

    if (rc < 0)
        return rc;
    bufferevent_rate_limit_group_get_totals(pg->group, &read, &written);
    out[0] = read;
    out[1] = written;
    return leave(pg, 0);
}

int pyle_group_reset_totals(struct pyle_group *pg)
{
    int rc = enter(pg);

    if (rc < 0)
        return rc;
    bufferevent_rate_limit_group_reset_totals(pg->group);
    return leave(pg, 0);
}

/* ---- bufferevents ---- */

/* One of these calls: bev's lock is held from here to finish(). */
static int start(struct pyle_bev *pv, struct pyle_use *u, int sets)
{
    int rc;

    if (sets && pv->bev && !pv->is_socket)
        return PYLE_UNABLE; /* libevent takes it and never looks at it */
    rc = pyle_bev_begin(pv, u);
    if (rc < 0)
        return rc;
    if (sets && pv->posted) /* it counts */
        pyle_bev_unpost(pv);
    bufferevent_lock(u->bev);
    if (pv->bev == u->bev)
        return 0;
    bufferevent_unlock(u->bev); /* another thread was faster and closed it */
    pyle_bev_end(pv, u);
    return PYLE_CLOSED;
}

static int finish(struct pyle_bev *pv, struct pyle_use *u, int rc)
{
    int error = errno;

    if (rc == -1)
        rc = pyle_failed();
    pyle_bev_rearm(pv, u->bev);
    bufferevent_unlock(u->bev);
    pyle_bev_end(pv, u);
    errno = error;
    return rc;
}

/* The timer that refills it is made anew, with the priority that is the default now. */
static void note_timer(struct pyle_base *pb)
{
    pthread_mutex_lock(&pb->lock);
    pyle_note_priority(pb, event_base_get_npriorities(pb->base) / 2);
    pthread_mutex_unlock(&pb->lock);
}

static void set_limit_ref(struct pyle_bev *pv, struct pyle_limit *limit)
{
    struct pyle_limit *old = pv->limit;

    if (limit)
        __atomic_add_fetch(&limit->refs, 1, __ATOMIC_RELAXED);
    pv->limit = limit;
    if (old)
        pyle_limit_unref(old);
}

static int set_limit(struct pyle_bev *pv, struct bufferevent *bev, struct pyle_limit *limit)
{
    const struct ev_token_bucket_cfg *old = bufferevent_get_token_bucket_cfg(bev);
    int known = pv->limit && pv->limit->cfg == old && pv->limit->msec > 0;
    int ticks_change = limit && old && old != limit->cfg && /* or may */
                       !(known && pv->limit->msec == limit->msec);
    ssize_t read = 0, written = 0, now;
    int rc;

    if (ticks_change) { /* as in pyle_group_set_cfg: start anew with what was left */
        read = bufferevent_get_read_limit(bev);
        written = bufferevent_get_write_limit(bev);
        bufferevent_set_rate_limit(bev, NULL);
    }
    note_timer(pv->pb);
    rc = bufferevent_set_rate_limit(bev, limit ? limit->cfg : NULL);
    if (rc == 0)
        set_limit_ref(pv, limit);
    if (rc == 0 && ticks_change) {
        now = bufferevent_get_read_limit(bev);
        rc = bufferevent_decrement_read_limit(bev, down_to(now, read, limit->burst[0]));
        now = bufferevent_get_write_limit(bev);
        rc |= bufferevent_decrement_write_limit(bev, down_to(now, written, limit->burst[1]));
    }
    return rc;
}

int pyle_bev_set_rate_limit(struct pyle_bev *pv, struct pyle_limit *limit)
{
    struct pyle_use u;
    int rc = start(pv, &u, 1);

    return rc < 0 ? rc : finish(pv, &u, set_limit(pv, u.bev, limit));
}

int pyle_bev_has_rate_limit(struct pyle_bev *pv)
{
    struct pyle_use u;
    int rc = start(pv, &u, 0);

    return rc < 0 ? rc : finish(pv, &u, bufferevent_get_token_bucket_cfg(u.bev) != NULL);
}

static int join_group(struct pyle_bev *pv, struct bufferevent *bev, struct pyle_group *pg)
{
    struct pyle_base *pb = pg->pb;
    int rc = PYLE_CLOSED;

    if (pv->group == pg)
        return 0;
    if (pg->group)
        leave_group(pv, bev);
    note_timer(pb);
    pthread_mutex_lock(&pb->lock);
    if (pg->group && (rc = bufferevent_add_to_rate_limit_group(bev, pg->group)) == 0) {
        ++pg->refs;
        pv->group = pg;
        pv->next_member = pg->members;
        pv->to_member = &pg->members;
        if (pg->members)
            pg->members->to_member = &pv->next_member;
        pg->members = pv;
    }
    pthread_mutex_unlock(&pb->lock);
    return rc;
}

int pyle_bev_add_to_group(struct pyle_bev *pv, struct pyle_group *pg)
{
    struct pyle_use u;
    int rc = start(pv, &u, 1);

    return rc < 0 ? rc : finish(pv, &u, join_group(pv, u.bev, pg));
}

int pyle_bev_remove_from_group(struct pyle_bev *pv)
{
    struct pyle_use u;
    int rc = start(pv, &u, 1);

    return rc < 0 ? rc : finish(pv, &u, leave_group(pv, u.bev));
}

int pyle_bev_limit(struct pyle_bev *pv, int which, long long *out)
{
    struct pyle_use u;
    int rc = start(pv, &u, 0);

    if (rc < 0)
        return rc;
    switch (which) {
    case PYLE_LIMIT_READ: *out = bufferevent_get_read_limit(u.bev); break;
    case PYLE_LIMIT_WRITE: *out = bufferevent_get_write_limit(u.bev); break;
    case PYLE_LIMIT_MAX_TO_READ: *out = bufferevent_get_max_to_read(u.bev); break;
    case PYLE_LIMIT_MAX_TO_WRITE: *out = bufferevent_get_max_to_write(u.bev); break;
    case PYLE_LIMIT_MAX_SINGLE_READ: *out = bufferevent_get_max_single_read(u.bev); break;
    default: *out = bufferevent_get_max_single_write(u.bev); break;
    }
    return finish(pv, &u, 0);
}

static int decrement(struct pyle_bev *pv, struct bufferevent *bev, int write, long long n)
{
    ssize_t now, burst = pv->limit ? pv->limit->burst[write] : INT_MAX;

    if (!bufferevent_get_token_bucket_cfg(bev))
        return PYLE_NONE; /* libevent would end the process */
    if (write) {
        now = bufferevent_get_write_limit(bev);
        return bufferevent_decrement_write_limit(bev, down_by(now, n, burst));
    }
    now = bufferevent_get_read_limit(bev);
    return bufferevent_decrement_read_limit(bev, down_by(now, n, burst));
}

int pyle_bev_decrement(struct pyle_bev *pv, int write, long long n)
{
    struct pyle_use u;
    int rc = start(pv, &u, 1);

    return rc < 0 ? rc : finish(pv, &u, decrement(pv, u.bev, write, n));
}

int pyle_bev_set_max_single(struct pyle_bev *pv, int write, int n)
{
    struct pyle_use u;
    int rc = n < 0 ? PYLE_RANGE : start(pv, &u, 1);

    if (rc < 0)
        return rc;
    pv->capped = (short)(n ? pv->capped | (write ? EV_WRITE : EV_READ)
                           : pv->capped & ~(write ? EV_WRITE : EV_READ));
    return finish(pv, &u, write ? bufferevent_set_max_single_write(u.bev, (size_t)n)
                                : bufferevent_set_max_single_read(u.bev, (size_t)n));
}

/* It closes, or has nothing but unread bytes to throw away. With bev's lock. libevent looks at a
 * limit until the loop has finalized the bufferevent. */
void pyle_bev_unlimit(struct pyle_bev *pv, struct bufferevent *bev)
{
    if (!pv->borrowed || /* else a limit that is not ours stays */
        (pv->limit && bufferevent_get_token_bucket_cfg(bev) == pv->limit->cfg))
        bufferevent_set_rate_limit(bev, NULL);
    set_limit_ref(pv, NULL);
    leave_group(pv, bev);
}

/* Its memory goes; that it was not closed means that its base's end was interrupted. */
void pyle_bev_forget_limits(struct pyle_bev *pv)
{
    struct pyle_group *pg = unlink_member(pv);

    if (pg)
        pyle_group_unref(pg);
    set_limit_ref(pv, NULL);
}
