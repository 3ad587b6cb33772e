/* event2/event_compat.h: the calls of libevent 1.x */

struct event_base *event_init(void);
int event_dispatch(void);
int event_loop(int);
int event_loopexit(const struct timeval *);
int event_loopbreak(void);
int event_once(evutil_socket_t, short, event_callback_fn, void *, const struct timeval *);
const char *event_get_method(void);
int event_priority_init(int);
void event_set(struct event *, evutil_socket_t, short, event_callback_fn, void *);

/* macros in C */
void evtimer_set(struct event *ev, event_callback_fn cb, void *arg);
void evsignal_set(struct event *ev, evutil_socket_t x, event_callback_fn cb, void *arg);
int timeout_add(struct event *ev, const struct timeval *tv);
void timeout_set(struct event *ev, event_callback_fn cb, void *arg);
int timeout_del(struct event *ev);
int timeout_pending(const struct event *ev, struct timeval *tv);
int timeout_initialized(const struct event *ev);
int signal_add(struct event *ev, const struct timeval *tv);
void signal_set(struct event *ev, evutil_socket_t x, event_callback_fn cb, void *arg);
int signal_del(struct event *ev);
int signal_pending(const struct event *ev, struct timeval *tv);
int signal_initialized(const struct event *ev);
int EVENT_FD(const struct event *ev);
int EVENT_SIGNAL(const struct event *ev);
