/* event2/event_struct.h */

#define EVLIST_TIMEOUT ...
#define EVLIST_INSERTED ...
#define EVLIST_SIGNAL ...
#define EVLIST_ACTIVE ...
#define EVLIST_INTERNAL ...
#define EVLIST_ACTIVE_LATER ...
#define EVLIST_FINALIZING ...
#define EVLIST_INIT ...
#define EVLIST_ALL ...

struct event_callback {
    short evcb_flags;
    ev_uint8_t evcb_pri;
    ev_uint8_t evcb_closure;
    union {
        void (*evcb_callback)(evutil_socket_t, short, void *);
        void (*evcb_selfcb)(struct event_callback *, void *);
        void (*evcb_evfinalize)(struct event *, void *);
        void (*evcb_cbfinalize)(struct event_callback *, void *);
    } evcb_cb_union;
    void *evcb_arg;
    ...;
};
struct event {  /* without the unions in which libevent keeps its lists and heap */
    struct event_callback ev_evcallback;
    evutil_socket_t ev_fd;
    struct event_base *ev_base;
    short ev_events;
    short ev_res;
    struct timeval ev_timeout;
    ...;
};
struct event_list { struct event *tqh_first; struct event **tqh_last; ...; };
struct event_dlist { struct event *lh_first; ...; };
