/* event2/bufferevent_compat.h: the calls of libevent 1.x */

#define EVBUFFER_READ ...
#define EVBUFFER_WRITE ...
#define EVBUFFER_EOF ...
#define EVBUFFER_ERROR ...
#define EVBUFFER_TIMEOUT ...

/* macros in C */
typedef bufferevent_data_cb evbuffercb;
typedef bufferevent_event_cb everrorcb;

struct bufferevent *bufferevent_new(evutil_socket_t fd, evbuffercb readcb, evbuffercb writecb,
    everrorcb errorcb, void *cbarg);
void bufferevent_settimeout(struct bufferevent *bufev, int timeout_read, int timeout_write);

/* macros in C */
struct evbuffer *EVBUFFER_INPUT(struct bufferevent *x);
struct evbuffer *EVBUFFER_OUTPUT(struct bufferevent *x);
