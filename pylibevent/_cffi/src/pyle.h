/* What our own C source shares. It knows nothing of Python: the only ways up are the
 * pyle_py_* functions (cdef/callbacks.h), which cffi makes.
 *
 * Ownership in one paragraph: pyle_base, pyle_bev, pyle_listener and pyle_buf are counted
 * (refs) and live as long as anything may still look at them, long after what they wrap is
 * closed; pyle_event sits inside a cffi-owned struct and is never pending without a token,
 * that is, without the base's table holding on to its Python object. Nothing libevent calls
 * back with is used before it was checked to be open. */
#ifndef PYLE_H
#define PYLE_H

#include "preamble.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* What our functions return below zero; errors.py turns each into its exception. */
enum pyle_code {
    PYLE_FAIL = -1,    /* libevent said no, errno does not say why */
    PYLE_SYS = -2,     /* the same, and errno does */
    PYLE_CLOSED = -3,  /* used after close */
    PYLE_VIEWED = -4,  /* a memoryview of the buffer is out */
    PYLE_RAISED = -5,  /* a Python callback raised; its exception waits in Python */
    PYLE_THREAD = -6,  /* not from this thread */
    PYLE_FORKED = -7,  /* the base belongs to the parent process: reinit() first */
    PYLE_RANGE = -8,   /* an argument is out of range */
    PYLE_NOMEM = -9,
    PYLE_TOOLONG = -10, /* a line is longer than was allowed */
    PYLE_RUNNING = -11, /* the loop is running already */
    PYLE_INUSE = -12,   /* the buffer is in the middle of a move, or of a handshake */
    PYLE_FILE = -13,    /* part of the buffer is a file that never comes to memory */
    PYLE_NONE = -14,    /* there is no such thing (no line yet, nothing found) */
    PYLE_SIGBASE = -15, /* another base has signals */
    PYLE_SMALL = -16,   /* the memory given is too small */
    PYLE_PRIORITY = -17, /* events exist that the new number of priorities has no room for */
    PYLE_UNABLE = -18,  /* not with this backend */
    PYLE_IDLE = -19,    /* an event that would wait for nothing */
    PYLE_DEEP = -20,    /* callbacks that make calls that call back: too deep */
    PYLE_LATE = -21,    /* not after the first base */
    PYLE_BLOCKS = -22,  /* in debug mode: a blocking descriptor */
    PYLE_FILTERED = -23, /* a filter on top of it has its callbacks */
    PYLE_BORROWED = -24  /* C's, and not for us to do */
};

/* What a Python callback says. 0 is what cffi returns when an exception (a signal's, most
 * often) hit before the user's function was entered: it has to be called again. */
enum pyle_answer { PYLE_RETRY = 0, PYLE_DONE = 1, PYLE_ERROR = 2, PYLE_HANDLED = 3 };

enum pyle_kind { PYLE_EVENT, PYLE_TIMER, PYLE_SIGNAL };

struct pyle_bev;
struct pyle_client;
struct pyle_group;
struct pyle_http;
struct pyle_listener;
struct pyle_poll;
struct pyle_request;
struct pyle_store;
struct pyle_limbo;
struct pyle_tls;

struct pyle_base {
    struct event_base *base;
    pthread_mutex_t lock;      /* guards what stands below, and arming against firing */
    pthread_cond_t idle;       /* inflight went to 0 */
    int refs;
    int slot;                  /* where Python finds the table of what is pending */
    int closed;                /* no use any more; base goes when the loop is out of it */
    int nolock;                /* EVENT_BASE_FLAG_NOLOCK: one thread only */
    int fd_limit;              /* descriptors from here on: select() would end the process */
    unsigned fork_gen;         /* of the process that may use it */
    uintptr_t runner;          /* the thread in pyle_base_loop, or 0 */
    int raised;                /* so many callbacks raised, the loop is on its way out */
    int break_requested;       /* a loopbreak that event_base_loop could forget */
    int inflight;              /* threads in a blocking event_del */
    int n_signals;             /* armed signal events */
    int max_priority;          /* the highest that any event here has */
    long long firing;          /* the token of the event whose callback runs, or 0 */
    const struct timeval **common; /* what event_base_init_common_timeout gave */
    int n_common;
    int borrowed;              /* base is somebody else's */
    int wake[2];               /* Python's wakeup descriptor: [1] is written by its signal handler */
    int wake_chain;            /* the descriptor that was the wakeup descriptor before, or -1 */
    struct event wake_event;   /* internal: [0] is readable */
    struct event kick_event;   /* internal: run on_kick soon, in the loop's thread */
    struct pyle_bev *bev_grave;           /* closed elsewhere; freed by the loop's thread */
    struct pyle_listener *listener_grave;
    struct pyle_bev *bev_resume;          /* held back, and perhaps no more */
    struct pyle_group *groups;            /* those that are open */
    struct pyle_client *dead_clients;     /* closed, in the middle of a callback of evhttp's */
    struct pyle_limbo *limbos;            /* nameservers that may still be called back for */
    struct pyle_dns *dead_dns;            /* closed with the base, with look-ups that it may still call */
    struct pyle_store *http_store;        /* for what evhttp does not look at */
    int in_http_store;
    struct pyle_http *queued_https;       /* that have something to tell */
    struct pyle_http *doomed_https;       /* closed with the base, where evhttp takes a connection */
    struct pyle_listener *paused;         /* switched off until the exception has left the loop */
    struct pyle_base *next_to_free;       /* when the call that this thread is in is over */
    int freeing;
    int free_claimed;          /* 1: somebody frees it; 2: that is done */
    int lost;                  /* in a child: a thread that stayed behind may hold its locks */
    struct pyle_base *next, **to_this; /* all bases, for fork */
    int locks;                 /* of its bufferevents, held by lock() */
    int free_after_unlock;
    struct event later_event;  /* calls the deferred callbacks of buffers; assigned on first use */
    int later_assigned;
    int delivering;
    struct pyle_buf *later, **later_end; /* the buffers that have some, oldest first */
    char *scratch;             /* where sockets are read to first */
    char *outbox;              /* what .posting wants written then */
    void *spare[2];            /* for each of them a chain, to hand it over to a buffer */
    struct pyle_bev *posting;
    struct pyle_bev *unsent, **unsent_end; /* to be written when the callback that runs is over */
    int sending;
    struct event *nudge;       /* asyncio waits: what ends that */
    int user_broke;            /* loopbreak() came */
    int calls_left;            /* of Python, until that ends; 0: no matter */
    long long *noted;          /* the bufferevents that have input: see pyle_poll_wait */
    struct event *noting;      /* what tells Python of them */
    int going_on;              /* it is told now */
};

struct pyle_event {
    struct event ev;
    struct event *at; /* ev, or one of somebody else's */
    struct pyle_base *pb;
    long long token;  /* what holds the Python object in the base's table while pending; 0: not */
    int kind;
    int open;
    int borrowed;
};

struct pyle_buf {
    struct evbuffer *buf;      /* NULL once closed */
    signed char dry;                   /* nothing to read: Python looks here before it calls */
    struct pyle_bev *owner;    /* the bufferevent whose buffer it is, NULL: our own, or orphaned */
    struct pyle_bev *kept;     /* the same, and until the end: it has this memory, and the count */
    int refs;
    signed char is_input;
    uintptr_t user;            /* the thread inside one of our calls, or 0 */
    int depth;                 /* how many of its calls are on the stack */
    signed char closing;               /* free it when depth is 0 again */
    int exports;               /* memoryviews out */
    int moving;                /* inside a call, its chains are in the middle of a move */
    signed char exposed;               /* .ptr was asked for */
    signed char has_file;              /* holds a sendfile segment */
    long long token;           /* for its Python callbacks; 0: none */
    struct evbuffer_cb_entry *cb;
    signed char borrowed;              /* a C library's: never freed here */
    signed char drains;                /* EVBUFFER_FLAG_DRAINS_TO_FD: files that are added go by sendfile */
    signed char frozen;                /* at the front, by the user */
    int n_reserved;            /* reserve_space(): so many vecs, until the next change */
    struct evbuffer_iovec *reserved;
    struct pyle_base *deferred; /* defer_callbacks(): whose loop calls them, counted */
    struct pyle_buf *next;     /* on its list, under its lock */
    signed char queued;
    size_t untold;             /* bytes that went, of which its callbacks hear with the next ones */
    size_t n_added, n_deleted; /* what the deferred callbacks have not been told yet */
    signed char locking;               /* enable_locking(): any thread, one after the other */
    int inside;                /* then: threads (and calls of theirs) that have the lock or wait */
    unsigned lock_gen;         /* of the process that made the lock */
    uintptr_t locker;          /* lock(): by this thread, */
    int lock_depth;            /* so many times */
    struct pyle_request *request; /* whose it is, counted, or NULL */
};

struct pyle_bev {
    struct bufferevent *bev;   /* NULL once closed */
    struct pyle_base *pb;
    long long token;
    int refs;
    int options;
    signed char is_socket;
    signed char own_fd;                /* connect() made the descriptor */
    signed char nodelay;
    signed char stuck;                 /* reading is held: full, and the last callback took nothing */
    short held;                /* directions switched off by us, on in the user's eyes */
    short refused;             /* directions the user switched off */
    short missed;              /* deferred callbacks that came while refused */
    short forced;              /* trigger() was called: deliver even if refused */
    signed char finishing;             /* close_after_write(): 1 writing, 3 reading what is unread, 2 done */
    ssize_t discard;           /* how much of that at most */
    uintptr_t user;            /* as in pyle_buf, unless BEV_OPT_THREADSAFE */
    int depth;                 /* calls under way; with BEV_OPT_THREADSAFE in all threads */
    struct bufferevent *doomed; /* closed; to be freed by the last of them */
    struct bufferevent *locked; /* lock(): what unlock() lets go of */
    uintptr_t locker;
    int lock_depth;
    struct pyle_bev *partner;  /* of a pair, while both are open */
    struct pyle_bev *under;    /* of a filter: what it is on, counted, and until the end */
    struct pyle_bev *over;     /* the filter that is on it */
    short filters;             /* the directions in which a function of Python's does it */
    short stalled;             /* those in which it waits: for a view to go, for room in its input */
    short end;                 /* BEV_EVENT_EOF and more, behind input that waits */
    bufferevent_data_cb base_read, base_write; /* libevent's callbacks in what it is on */
    bufferevent_event_cb base_event;
    void *base_arg;
    signed char borrowed;              /* bev is somebody else's; we have a reference */
    signed char has_callbacks;         /* ours are set in it */
    struct pyle_buf *input, *output; /* while it is open */
    struct pyle_buf *own[2];   /* the same, until the end */
    struct pyle_limit *limit;  /* counted, or NULL */
    struct pyle_group *group;  /* the same */
    struct pyle_bev *next_member, **to_member; /* in the group; under the base's lock */
    struct pyle_bev *next;
    signed char queued;
    signed char plain;                 /* all of it libevent's own way, see fast.c */
    signed char connecting;
    short capped;              /* the user has set how much to read or write at a time */
    signed char masked;                /* EV_WRITE is not in bev->enabled, but in the user's eyes */
    signed char unsent;                /* on pb->unsent */
    signed char bulk;          /* the last read was a large one */
    signed char no_socket;     /* its descriptor is a pipe or the like */
    signed char may_note;      /* while asyncio waits a read callback is a note in pb->noted */
    size_t posted;             /* so many bytes of its output are in pb->outbox */
    struct pyle_bev *next_unsent;
    struct pyle_tls *tls;      /* of a TLS one, while it is open */
    signed char shaking;       /* its handshake is not over */
    int end_error;             /* the errno that belongs to .end */
    size_t seen;               /* what was in its input before the read that runs */
};

/* What the second module does for TLS bufferevents: the first one is not linked with OpenSSL. */
struct pyle_tls_hooks {
    /* on a descriptor or -1, or on another bufferevent; takes a reference on the pyle_tls if it works */
    struct bufferevent *(*open)(struct pyle_tls *, struct event_base *, int fd,
                                struct bufferevent *under, int options);
    void (*leave)(struct pyle_tls *);  /* no byte more, in or out: libevent may be in the middle of a call */
    void (*release)(struct pyle_tls *); /* gives the reference back once libevent is out of it */
    int (*notify)(struct pyle_tls *);  /* close_notify. 0: it would block */
    int (*pending)(struct pyle_tls *); /* decrypted, and not in the input */
    int (*take)(struct pyle_tls *, struct evbuffer *input, int most); /* moves that there; < 0: then it ended */
    int (*event)(struct pyle_tls *, struct bufferevent *, int what, int error); /* what to say instead, 0: nothing */
    int (*connected)(struct pyle_tls *); /* whether the handshake is over, and that was told */
    int (*dead)(struct pyle_tls *); /* whether there was an error */
    int (*asking)(struct pyle_tls *); /* whether sni_callback runs, inside of OpenSSL */
    void (*no_ahead)(struct pyle_tls *); /* libevent is to read no more than a record at a time */
};
const struct pyle_tls_hooks *pyle_get_tls_hooks(void);
/* What it needs of the first one. */
struct pyle_tls_services {
    void (*before)(void);
    void (*after)(struct pyle_base *);
    void (*raise)(struct pyle_base *);
    int (*slot)(struct pyle_base *);
};

struct pyle_limit {
    struct ev_token_bucket_cfg *cfg;
    ssize_t burst[2];          /* for reading, for writing */
    int msec;                  /* of a tick; 0: not known */
    int owned;
    int refs;
};

struct pyle_group {
    struct bufferevent_rate_limit_group *group; /* NULL once closed */
    struct pyle_base *pb;
    struct pyle_bev *members;
    ssize_t burst[2];          /* as in pyle_limit */
    int msec;
    int refs;                  /* the handle's, and one for each member; under the base's lock */
    int borrowed;              /* group is somebody else's */
    struct pyle_group *next, **to_this; /* on pb->groups while open */
};

struct pyle_listener {
    struct evconnlistener *lev; /* NULL once closed */
    struct pyle_base *pb;
    long long token;
    int refs;
    int wanted;                /* the user has it enabled */
    int paused;                /* on pb->paused */
    struct event resume_event; /* after a failed accept: try again */
    int borrowed;              /* lev is somebody else's */
    int has_callbacks;         /* ours are set in it */
    int closes;                /* its descriptor is closed with it */
    int held_fd;               /* accepted, not yet delivered */
    int held_len;
    struct sockaddr_storage held_addr;
    struct pyle_listener *next;
};

/* base.c */
extern unsigned pyle_fork_gen;
extern int pyle_exiting;
extern int pyle_debug_mode;
extern __thread int pyle_sync;       /* depth of our calls that may call back, within the loop */
extern __thread int pyle_sync_raised; /* how many callbacks of the innermost one have raised */
extern __thread struct pyle_base *pyle_here; /* the base whose loop this thread is in */
extern __thread int pyle_depth;      /* of callbacks within that loop */
extern __thread char pyle_me;
#define PYLE_DEEPEST 100 /* such calls in each other: C's stack has an end, and no guard */
#define PYLE_ME ((uintptr_t)&pyle_me)

int pyle_enter_base(struct pyle_base *pb); /* locks; checks use after close, fork, thread */
void pyle_leave_base(struct pyle_base *pb);
int pyle_failed(void);                     /* PYLE_SYS or PYLE_FAIL, by errno */
void pyle_raise(struct pyle_base *pb);     /* a callback raised: stop, or tell the call it is in */
void pyle_before(void);                    /* before each callback */
void pyle_after(struct pyle_base *pb);     /* after it: fork, log, what was written */
void pyle_leave(void);                     /* the same, without a base */
int pyle_elsewhere(const struct pyle_base *pb); /* the loop runs in another thread */
void pyle_kick(struct pyle_base *pb);
void pyle_make_internal(struct event *ev); /* keeps no loop running, ends none */
void pyle_hold_base(struct pyle_base *pb);
void pyle_note_priority(struct pyle_base *pb, int priority);
int pyle_fd_fits(int limit); /* the next descriptor that the system gives out */
int pyle_fd_waits(struct pyle_base *pb, int fd); /* may it be waited for? */
int pyle_fd_blocks(int fd);
int pyle_timeval(double seconds, struct timeval *tv); /* < 0: none, returns 0 */
/* The same as a pointer, NULL for none; it is libevent's own where it is a common timeout. */
const struct timeval *pyle_timeout(struct pyle_base *pb, double seconds, struct timeval *tv);
#define COMMON_USEC 0xfffff /* the microseconds of such a one; above them is libevent's mark */
int pyle_sync_enter(void); /* what leave wants back */
ssize_t pyle_sync_leave(int outer, ssize_t rc);

/* memory.c */
#define PYLE_STORE_MOST 12
struct pyle_store {            /* memory for when there is none, while a call runs */
    struct pyle_store *outer;
    size_t n;                  /* the size of each */
    void *blocks[PYLE_STORE_MOST];
};
void pyle_memory_init(void);
struct pyle_frees {            /* what would have been freed */
    void **blocks;
    int n, most;               /* beyond that it is never freed */
};
int pyle_frees_hold(struct pyle_frees *f, int most); /* until the next call of: */
void pyle_frees_end(void);
void pyle_frees_release(struct pyle_frees *f);

int pyle_store_fill(struct pyle_store *s, int count, size_t n); /* 0: open, to be closed */
void pyle_store_open(struct pyle_store *s);
void pyle_store_close(struct pyle_store *s);
int pyle_store_enter(struct pyle_store *s, int count, size_t n);
void pyle_store_leave(struct pyle_store *s);
int pyle_went_short(void); /* whether libevent did not get what it wanted since the last look */

/* event.c */
void pyle_forget_timeout(struct event *ev, short unless); /* unless pending for one of these */

/* buffer.c */
void pyle_buf_unview(struct pyle_buf *b);
int pyle_buf_unlock(struct pyle_buf *b);
struct pyle_buf *pyle_buf_of(struct pyle_bev *pv, int input);
void pyle_buf_orphan(struct pyle_buf *b, struct evbuffer *buf);
void pyle_buf_free(struct pyle_buf *b);
void pyle_release_pins(void);
struct pyle_use {              /* one of our calls on a bufferevent, between begin and end */
    struct bufferevent *bev;   /* is not freed before end */
    int sync;
};
struct pyle_call {             /* one of our calls on a buffer, between enter and leave */
    struct pyle_buf *b;
    struct pyle_bev *pv;       /* whose buffer it is, or NULL */
    struct pyle_use use;
    int locked;
    int masked;
    int sync;
};
void pyle_later_end(struct pyle_base *pb); /* no deferred callbacks any more */
void pyle_later_start(struct pyle_base *pb); /* the loop starts: those that wait */
#define PYLE_REARRANGES 2 /* changes: not its bytes, just where they lie */
int pyle_buf_viewed(struct pyle_buf *b);
void pyle_buf_uncall(struct pyle_buf *b); /* no callbacks of Python's any more; b may be NULL */
int pyle_buf_enter(struct pyle_call *c, struct pyle_buf *b, int changes);
int pyle_buf_enter_to_read(struct pyle_call *c, struct pyle_buf *b, int changes);
ssize_t pyle_buf_leave(struct pyle_call *c, ssize_t rc);
/* how is given the buffers and n; it answers as libevent does, or with a pyle_code */
ssize_t pyle_buf_move(struct pyle_buf *dst, struct pyle_buf *src,
                      ssize_t (*how)(struct evbuffer *, struct evbuffer *, size_t), size_t n);
/* As evbuffer_remove_buffer, which loses what it has to copy and finds no memory for. */
ssize_t pyle_move_part(struct evbuffer *dst, struct evbuffer *src, size_t n);
extern __thread struct pyle_buf *pyle_source; /* what we know of its src, or NULL */
extern int pyle_pins_waiting;

/* bufferevent.c */
int pyle_bev_unlock(struct pyle_bev *pv);
int pyle_bev_begin(struct pyle_bev *pv, struct pyle_use *u);
int pyle_bev_begin_to_close(struct pyle_bev *pv, struct pyle_use *u);
void pyle_bev_end(struct pyle_bev *pv, struct pyle_use *u);
void pyle_bev_hold(struct pyle_bev *pv, struct bufferevent *bev, short what);
void pyle_bev_resume(struct pyle_bev *pv);
void pyle_bev_resume_soon(struct pyle_bev *pv);
void pyle_bev_free(struct pyle_bev *pv);
void pyle_bev_rearm(struct pyle_bev *pv, struct bufferevent *bev);

/* Its bufferevent is the caller's, and so is what the SSL needs, if it has one; pv is closed. NULL: it
 * cannot be given. */
struct bufferevent *pyle_bev_give(struct pyle_bev *pv, struct pyle_tls **tls);
int pyle_bev_asking(const struct pyle_bev *);
struct pyle_bev *pyle_bev_behind(struct bufferevent *bev);
void pyle_bev_written(struct pyle_bev *pv, struct bufferevent *bev);

#define IS_ARMED(ev) \
    ((ev)->ev_evcallback.evcb_flags & (EVLIST_INSERTED | EVLIST_ACTIVE | EVLIST_ACTIVE_LATER))

/* fast.c */
void pyle_bev_hook(struct pyle_bev *pv, struct bufferevent *bev);
int pyle_bev_add_begin(struct pyle_bev *pv, struct bufferevent *bev);
int pyle_bev_put(struct pyle_bev *pv, struct bufferevent *bev, const void *data, size_t n);
int pyle_bev_send(struct pyle_bev *pv, struct bufferevent *bev, const void *data, size_t n);
void pyle_bev_unpost(struct pyle_bev *pv);
void pyle_bev_add_end(struct pyle_bev *pv, struct bufferevent *bev);
void pyle_send_unsent(struct pyle_base *pb);
void pyle_arm_unsent(struct pyle_base *pb);

/* ratelimit.c */
void pyle_groups_sweep(struct pyle_base *pb, int all);
void pyle_dns_sweep(struct pyle_base *pb);
void pyle_bev_unlimit(struct pyle_bev *pv, struct bufferevent *bev);
void pyle_bev_forget_limits(struct pyle_bev *pv);

/* event.c, buffer.c, uri.c, http.c, log.c: the locks of their own, around fork() */
void pyle_signal_lock(int on);
void pyle_pins_lock(int on);
void pyle_uri_lock(int on);
void pyle_request_lock(int on);
void pyle_log_lock(int on);

/* listener.c */
extern __thread int pyle_accepting;  /* the descriptor an accept callback was given, -1 once taken */
extern __thread int pyle_accepted;   /* the same, taken or not */
void pyle_listener_unpause(struct pyle_base *pb);
void pyle_listener_free(struct pyle_listener *pl);

/* http.c */
void pyle_request_forget_buf(struct pyle_buf *b);
void pyle_https_sweep(struct pyle_base *pb);
void pyle_https_settle(struct pyle_base *pb);
void pyle_https_end(struct pyle_base *pb);

/* http_client.c */
void pyle_clients_sweep(struct pyle_base *pb);

/* log.c */
extern int pyle_log_waiting;
void pyle_log_init(void);
void pyle_log(int severity, const char *text);

/* The two pages that cffi reads too: what Python calls, and what calls Python. */
#include "../cdef/shim.h"
#include "../cdef/callbacks.h"

/* base.c; of zeros, NULL: no memory */
void *pyle_make(enum pyle_thing what, size_t size);
void pyle_unmake(enum pyle_thing what, void *made);
void *pyle_own(struct pyle_owned *owned, enum pyle_thing what, size_t size); /* the same, Python's */

#endif
