/* What our own C source offers the Python layer: one function for each whole step. Unless it
 * says otherwise, a function returns 0 or more for success and an enum pyle_code below 0. */

struct pyle_base;
struct pyle_event;
struct pyle_buf;
struct pyle_bev;
struct pyle_listener;
struct pyle_limit;
struct pyle_group;
struct pyle_segment;
struct pyle_tls;
struct pyle_tls_hooks;
struct pyle_tls_services;
struct pyle_dns;
struct pyle_lookup;
struct pyle_port;
struct pyle_query;
struct pyle_poll;
struct pyle_uri;
struct pyle_request;
struct pyle_http;
struct pyle_bound;
struct pyle_client;

/* What a call counts for Python stands in memory that Python has made before it, and whose end gives
 * it back: a signal handler's exception may come in as soon as the call is over. */
struct pyle_held {
    struct pyle_buf *view;      /* memory of its that is shown */
    struct pyle_buf *buf_lock;  /* lock() */
    struct pyle_bev *bev_lock;
    struct pyle_base *claim;    /* its end is up to us */
};
void pyle_let_go(struct pyle_held *);                   /* as often as you like */

/* The same for a struct that Python is to own: who makes it has made this before. */
struct pyle_owned {
    void *it;
    int what;                   /* an enum pyle_thing */
};
void pyle_disown(struct pyle_owned *);                  /* gives back what is in it */

/* ---- base.c ---- */
enum pyle_thing {
    PYLE_NOTHING, PYLE_BASES, PYLE_BUFS, PYLE_BEVS, PYLE_LISTENERS, PYLE_LIMITS, PYLE_GROUPS, PYLE_SEGMENTS,
    PYLE_DNS_BASES, PYLE_LOOKUPS, PYLE_PORTS, PYLE_QUERIES, PYLE_POLLS, PYLE_WATCHES, PYLE_URIS,
    PYLE_REQUESTS, PYLE_HTTPS, PYLE_HTTP_CONNS, PYLE_ROUTES, PYLE_BOUNDS,
    PYLE_CLIENTS, PYLE_EXCHANGES,
    PYLE_SHARES,                                        /* of memory between buffers */
    PYLE_PINS                                           /* of Python objects in libevent's hands */
};
int pyle_alive(enum pyle_thing);                        /* how many there are: for tests */
int pyle_signals(void);                                 /* whether any base has a signal's event */
int pyle_init(void);
int pyle_socketpair(int family, int type, int protocol, int fds[2]); /* close-on-exec; -1, -1 on failure */
void pyle_before_fork(void);
void pyle_after_fork(int in_child);
void pyle_set_exiting(void);
int pyle_outermost(void);                               /* no loop and no call up the stack */
int pyle_loop_slot(void);                               /* of the loop that has to raise; -1: a call has */
int pyle_raised(void);                                  /* behind a PYLE_RAISED: how many exceptions */

struct pyle_base *pyle_base_new(struct pyle_owned *, int slot); /* NULL: no memory */
void pyle_base_unref(struct pyle_base *);
/* config may be NULL; select: the config leaves no other method */
int pyle_base_open(struct pyle_base *, struct event_config *config, int nolock, int select);
int pyle_base_borrow(struct pyle_base *, struct event_base *);  /* never frees it */
int pyle_enable_debug_mode(void);
int pyle_config_max_dispatch_interval(struct event_config *, double seconds, int callbacks,
                                      int priority);
struct event_base *pyle_base_ptr(struct pyle_base *);   /* NULL once closed */
int pyle_base_wakefd(struct pyle_base *);               /* made on first use */
void pyle_base_pass_on(struct pyle_base *, int wakefd);  /* what signals have written, to another wakeup descriptor */
int pyle_base_loop(struct pyle_base *, int flags, int chained_wakefd);
int pyle_base_loopexit(struct pyle_base *, double seconds);
int pyle_base_loopbreak(struct pyle_base *);
int pyle_base_loopcontinue(struct pyle_base *);
int pyle_base_reinit(struct pyle_base *);
int pyle_base_state(struct pyle_base *, int what);      /* a PYLE_STATE_* */
int pyle_base_priority_init(struct pyle_base *, int n);
int pyle_base_num_events(struct pyle_base *, unsigned flags);
int pyle_base_max_events(struct pyle_base *, unsigned flags, int clear);
double pyle_base_gettimeofday_cached(struct pyle_base *);
int pyle_base_update_cache_time(struct pyle_base *);
int pyle_base_active_by_fd(struct pyle_base *, int fd, int what);
int pyle_base_active_by_signal(struct pyle_base *, int signum);
long long pyle_base_running_event(struct pyle_base *);  /* its token, 0: none */
int pyle_base_common_timeout(struct pyle_base *, double seconds);
char *pyle_base_dump(struct pyle_base *, size_t *length, int *rc); /* to be freed */
int pyle_base_shut(struct pyle_base *);                 /* no use from here on */
int pyle_base_claim_free(struct pyle_base *, struct pyle_held *); /* 1: shut, not running, the caller frees it; 2: that is done */
int pyle_base_free(struct pyle_base *);

#define PYLE_STATE_CHECK 0       /* 0 or an error: may it be used? */
#define PYLE_STATE_RUNNING 1
#define PYLE_STATE_RUNNING_HERE 2
#define PYLE_STATE_GOT_EXIT 3
#define PYLE_STATE_GOT_BREAK 4
#define PYLE_STATE_NPRIORITIES 5
#define PYLE_STATE_FEATURES 6
#define PYLE_STATE_FORKED 7

/* ---- event.c ---- */
int pyle_event_init(struct pyle_base *, struct pyle_event *, int fd, int what, int kind);
int pyle_event_borrow(struct pyle_base *, struct pyle_event *, struct event *);
int pyle_event_add(struct pyle_event *, long long token, double seconds); /* 1: token is in use now */
int pyle_event_active(struct pyle_event *, long long token, int what);    /* the same */
long long pyle_event_token(struct pyle_event *);              /* 0: not pending */
int pyle_event_again(struct pyle_event *, int calls);          /* a signal's calls that an exception cut off */
long long pyle_event_del(struct pyle_event *, int close);     /* the token let go of, 0: none */
long long pyle_event_remove_timer(struct pyle_event *);       /* the same */
int pyle_event_pending(struct pyle_event *, int what);
double pyle_event_expires(struct pyle_event *);               /* seconds from now, -1: no timeout */
int pyle_event_get_priority(struct pyle_event *);
int pyle_event_set_priority(struct pyle_event *, int priority);
struct event *pyle_event_ptr(struct pyle_event *);            /* NULL once closed */
long long pyle_event_owner(struct event *);                   /* its token, 0: not pending; -1: not ours */
long long pyle_event_finalize(struct pyle_event *, long long token); /* the token it had, 0: none */

struct pyle_event_info {   /* an event of a base's, as it is at that moment */
    long long token;       /* 0: not one of ours */
    double seconds;        /* until its timeout, -1: none */
    int fd;
    int events;            /* what it was made for */
    int pending;           /* what it is pending or active for */
    int priority;
    int internal;          /* of libevent's or ours own, not the user's */
};
/* How many there are; the first max of them in out. */
int pyle_base_events(struct pyle_base *, struct pyle_event_info *out, int max);

/* ---- buffer.c ---- */
struct pyle_buf *pyle_buf_new(struct pyle_owned *);            /* NULL: no memory */
struct pyle_buf *pyle_buf_borrow(struct pyle_owned *, struct evbuffer *); /* the same */
void pyle_buf_unref(struct pyle_buf *);
int pyle_buf_close(struct pyle_buf *);
struct evbuffer *pyle_buf_ptr(struct pyle_buf *);
struct evbuffer *pyle_buf_expose(struct pyle_buf *);           /* the same, for the user */
ssize_t pyle_buf_length(struct pyle_buf *);
ssize_t pyle_buf_contiguous(struct pyle_buf *);
int pyle_buf_add(struct pyle_buf *, const void *data, size_t n);
int pyle_buf_prepend(struct pyle_buf *, const void *data, size_t n);
int pyle_buf_expand(struct pyle_buf *, size_t n);
int pyle_buf_drain(struct pyle_buf *, size_t n);
ssize_t pyle_buf_remove(struct pyle_buf *, void *out, size_t n);
ssize_t pyle_buf_copyout(struct pyle_buf *, ssize_t position, void *out, size_t n);
/* The line's length; PYLE_LAST is set in it (in room for less only) if nothing is left: .dry says whether that still
 * holds. A number that Python has in one digit. */
#define PYLE_LAST 536870912
#define PYLE_KEEP 256 /* and an EVBUFFER_EOL_*: the line with its end */
ssize_t pyle_buf_readln(struct pyle_buf *, char *out, size_t size, int eol, ssize_t max_length);
/* The bytes up to the end of the last line; PYLE_MORE is set in it if there are more lines. */
#define PYLE_MORE 4611686018427387904
ssize_t pyle_buf_readlines(struct pyle_buf *, char *out, size_t size, int eol, ssize_t max_length);
ssize_t pyle_buf_search(struct pyle_buf *, const void *what, size_t n, ssize_t start, ssize_t end);
ssize_t pyle_buf_search_eol(struct pyle_buf *, ssize_t start, int eol, size_t *eol_length);
int pyle_buf_pullup(struct pyle_buf *, ssize_t n, struct evbuffer_iovec *out, struct pyle_held *);
int pyle_buf_peek(struct pyle_buf *, ssize_t start, ssize_t n, struct evbuffer_iovec *out, int max, struct pyle_held *);
int pyle_buf_add_buffer(struct pyle_buf *dst, struct pyle_buf *src);
int pyle_buf_prepend_buffer(struct pyle_buf *dst, struct pyle_buf *src);
ssize_t pyle_buf_remove_buffer(struct pyle_buf *src, struct pyle_buf *dst, size_t n);
int pyle_buf_add_reference(struct pyle_buf *, const void *data, size_t n, long long pin, int *taken);
long long pyle_pin_take(void);                                 /* a pin let go of, 0: none */
int pyle_buf_add_file(struct pyle_buf *, int fd, long long offset, long long length); /* duplicates fd */
int pyle_buf_add_segment(struct pyle_buf *, struct pyle_segment *, long long offset, long long length);
int pyle_buf_add_iovec(struct pyle_buf *, struct evbuffer_iovec *vec, int n, size_t total);
int pyle_buf_add_buffer_reference(struct pyle_buf *dst, struct pyle_buf *src);
int pyle_buf_reserve(struct pyle_buf *, size_t n, struct evbuffer_iovec *out, int max, struct pyle_held *);
int pyle_buf_hold(struct pyle_buf *, size_t n, struct pyle_held *); /* n of the reserved bytes: one more view */
int pyle_buf_commit(struct pyle_buf *, size_t n, struct pyle_held *); /* which this lets go of */
int pyle_buf_flags(struct pyle_buf *, unsigned long long flags, int on);
int pyle_buf_defer(struct pyle_buf *, struct pyle_base *);
int pyle_buf_enable_locking(struct pyle_buf *);
int pyle_buf_lock(struct pyle_buf *, struct pyle_held *);
struct pyle_segment *pyle_segment_new(struct pyle_owned *, struct evbuffer_file_segment *); /* NULL: not open yet; NULL: no memory */
void pyle_segment_unref(struct pyle_segment *);
int pyle_segment_open(struct pyle_segment *, int fd, long long offset, long long length, unsigned flags); /* duplicates fd */
int pyle_segment_close(struct pyle_segment *);
struct evbuffer_file_segment *pyle_segment_ptr(struct pyle_segment *); /* NULL once closed */
int pyle_segment_cleanup(struct pyle_segment *, long long pin, int *taken); /* let go of when the segment is freed */
ssize_t pyle_buf_read(struct pyle_buf *, int fd, int n);
ssize_t pyle_buf_write(struct pyle_buf *, int fd, ssize_t n);
int pyle_buf_freeze(struct pyle_buf *, int at_front, int on);
int pyle_buf_callbacks(struct pyle_buf *, long long token);    /* 0: none any more */

/* ---- tag.c ---- */
#define PYLE_TAG_TAG 0           /* what to encode, decode or peek at: a tag by itself */
#define PYLE_TAG_INT 1
#define PYLE_TAG_INT64 2
#define PYLE_TAG_MARSHAL_INT 3
#define PYLE_TAG_MARSHAL_INT64 4
#define PYLE_TAG_MARSHAL_TIMEVAL 5
#define PYLE_TAG_LENGTH 6        /* of the whole record */
#define PYLE_TAG_PAYLOAD_LENGTH 7
int pyle_tag_encode(struct pyle_buf *, int what, unsigned tag, uint64_t number, unsigned micros);
int pyle_tag_marshal(struct pyle_buf *, unsigned tag, const void *data, unsigned n);
int pyle_tag_marshal_buffer(struct pyle_buf *, unsigned tag, struct pyle_buf *payload);
ssize_t pyle_tag_peek(struct pyle_buf *, int what);
int pyle_tag_decode(struct pyle_buf *, int what, uint64_t *number);
ssize_t pyle_tag_unmarshal_header(struct pyle_buf *, unsigned *tag);   /* the payload's length */
int pyle_tag_consume(struct pyle_buf *);
int pyle_tag_unmarshal_int(struct pyle_buf *, unsigned tag, int bits, uint64_t *number);
int pyle_tag_unmarshal_timeval(struct pyle_buf *, unsigned tag, uint64_t *seconds, uint64_t *micros);
/* length -1: any; the payload's length. out has room for the header too: PYLE_TAG_HEADER bytes. */
#define PYLE_TAG_HEADER 10
ssize_t pyle_tag_unmarshal_bytes(struct pyle_buf *, unsigned tag, ssize_t length, char *out, size_t size);
ssize_t pyle_tag_unmarshal(struct pyle_buf *src, struct pyle_buf *dst); /* the tag */

/* ---- uri.c ---- */
struct pyle_text {              /* an answer; Python makes it before the call */
    char *bytes;
    size_t n;
};
void pyle_text_end(struct pyle_text *);
#define PYLE_URI_SCHEME 0
#define PYLE_URI_USERINFO 1
#define PYLE_URI_HOST 2
#define PYLE_URI_PATH 3
#define PYLE_URI_QUERY 4
#define PYLE_URI_FRAGMENT 5
struct pyle_uri *pyle_uri_new(struct pyle_owned *);     /* NULL: no memory */
void pyle_uri_unref(struct pyle_uri *);
int pyle_uri_open(struct pyle_uri *, const char *source, unsigned flags); /* source NULL: an empty one */
struct evhttp_uri *pyle_uri_ptr(struct pyle_uri *);
unsigned pyle_uri_flags(struct pyle_uri *);
int pyle_uri_set_flags(struct pyle_uri *, unsigned flags);
int pyle_uri_get(struct pyle_uri *, int part, struct pyle_text *); /* PYLE_NONE: it has none */
int pyle_uri_set(struct pyle_uri *, int part, const char *value);  /* NULL: none */
int pyle_uri_port(struct pyle_uri *);                   /* PYLE_NONE: it has none */
int pyle_uri_set_port(struct pyle_uri *, int port);
int pyle_uri_join(struct pyle_uri *, struct pyle_text *);
int pyle_uriencode(struct pyle_text *, const char *data, size_t n, int space_to_plus);
int pyle_uridecode(struct pyle_text *, const char *data, int plus);
int pyle_decode_uri(struct pyle_text *, const char *uri);
int pyle_htmlescape(struct pyle_text *, const char *html);
int pyle_parse_query(struct pyle_text *, const char *query); /* name, NUL, value, NUL, name and so on */

/* ---- http.c: requests, the client's too ---- */
#define PYLE_REQUEST_URI 0
#define PYLE_REQUEST_HOST 1
#define PYLE_REQUEST_REMOTE 2
#define PYLE_REQUEST_REASON 3
#define PYLE_REQUEST_TYPE 0
#define PYLE_REQUEST_MAJOR 1
#define PYLE_REQUEST_MINOR 2
#define PYLE_REQUEST_PORT 3
#define PYLE_REQUEST_CODE 4
#define PYLE_REQUEST_OWNED 5
struct pyle_request *pyle_request_new(struct pyle_owned *, long long token); /* a client's; NULL: no memory */
void pyle_request_unref(struct pyle_request *);
struct evhttp_request *pyle_request_ptr(struct pyle_request *); /* NULL once it is over */
int pyle_request_check(struct pyle_request *);
int pyle_request_own(struct pyle_request *);
int pyle_request_text(struct pyle_request *, int what, struct pyle_text *); /* PYLE_NONE: it has none */
int pyle_request_number(struct pyle_request *, int what);
struct pyle_buf *pyle_request_buffer(struct pyle_owned *, struct pyle_request *, int input); /* NULL: no memory */
/* The headers; PYLE_RANGE: no name of a header, or no value. */
int pyle_headers_get(struct pyle_request *, int input, const char *name, size_t, struct pyle_text *); /* the first; PYLE_NONE */
int pyle_headers_all(struct pyle_request *, int input, struct pyle_text *); /* name, NUL, value, NUL and so on */
int pyle_headers_count(struct pyle_request *, int input);
int pyle_headers_add(struct pyle_request *, int input, const char *name, size_t, const char *value, size_t);
int pyle_headers_set(struct pyle_request *, int input, const char *name, size_t, const char *value, size_t); /* the only one of that name */
int pyle_headers_remove(struct pyle_request *, int input, const char *name, size_t); /* how many there were */
int pyle_headers_clear(struct pyle_request *, int input);
int pyle_headers_extend(struct pyle_request *, int input, const char *pairs, size_t); /* ended by NUL */
int pyle_request_all(struct pyle_request *, struct pyle_text *); /* method, version, length of the body, port, address, URI, headers */

/* ---- http.c: the server ---- */
#define PYLE_HTTP_METHODS 0
#define PYLE_HTTP_MAX_HEADERS 1
#define PYLE_HTTP_MAX_BODY 2
#define PYLE_HTTP_FLAGS 3
#define PYLE_HTTP_BEVCB 4
#define PYLE_HTTP_CHUNK 1
#define PYLE_HTTP_COMPLETE 2
#define PYLE_HTTP_FAILED 4
struct pyle_http *pyle_http_new(struct pyle_owned *, struct pyle_base *, long long token); /* NULL: no memory */
void pyle_http_unref(struct pyle_http *);
int pyle_http_open(struct pyle_http *);
int pyle_http_close(struct pyle_http *, int by_base);
int pyle_http_after_fork(struct pyle_http *);
struct evhttp *pyle_http_ptr(struct pyle_http *);       /* NULL once closed */
int pyle_http_set_cb(struct pyle_http *, const char *path, long long token); /* PYLE_INUSE: there is one */
int pyle_http_del_cb(struct pyle_http *, const char *path, long long token);
int pyle_http_set_gencb(struct pyle_http *, long long token); /* 0: none */
int pyle_http_add_vhost(struct pyle_http *, const char *pattern, struct pyle_http *vhost);
int pyle_http_remove_vhost(struct pyle_http *, struct pyle_http *vhost);
int pyle_http_alias(struct pyle_http *, const char *alias, int add);
int pyle_http_set(struct pyle_http *, int what, long long value);
int pyle_http_unanswered(struct pyle_http *);
int pyle_http_give(struct pyle_bev *);                  /* in pyle_py_http_bev(): this one; 1: it is TLS */
int pyle_http_set_timeout(struct pyle_http *, double seconds); /* < 0: none */
int pyle_http_set_content_type(struct pyle_http *, const char *type);
struct pyle_bound *pyle_bound_new(struct pyle_owned *, struct pyle_http *); /* NULL: no memory */
void pyle_bound_unref(struct pyle_bound *);
/* address NULL: fd listens already, and is closed with it */
int pyle_bound_open(struct pyle_bound *, const void *address, int length, int fd, int flags, int backlog);
int pyle_bound_close(struct pyle_bound *);
int pyle_bound_enable(struct pyle_bound *, int on);
int pyle_bound_fd(struct pyle_bound *);
struct evhttp_bound_socket *pyle_bound_ptr(struct pyle_bound *); /* NULL once closed */

/* A request of a server's. Replies: PYLE_RANGE: no code, reason or length; PYLE_INUSE: one has begun, PYLE_NONE: none. */
struct pyle_request *pyle_request_take(struct pyle_owned *, long long token); /* the one that the callback is for */
int pyle_http_reply(struct pyle_request *, int code, const char *reason, size_t, const void *data, size_t n);
int pyle_http_error(struct pyle_request *, int code, const char *reason, size_t);
int pyle_http_start(struct pyle_request *, int code, const char *reason, size_t);
int pyle_http_chunk(struct pyle_request *, const void *data, size_t n, int callback);
int pyle_http_chunk_buffer(struct pyle_request *, struct pyle_buf *, int callback);
int pyle_http_end(struct pyle_request *);
int pyle_http_take_over(struct pyle_request *, struct pyle_bev *); /* which has no descriptor yet */
long long pyle_http_bev(struct pyle_request *);           /* the token of the BufferEvent that has its TLS; 0: none */
int pyle_http_cancel(struct pyle_request *);
int pyle_http_tell(struct pyle_request *);              /* it has callbacks; 1: too late */
void pyle_http_untell(struct pyle_request *);

/* ---- http_client.c ---- */
#define PYLE_HTTP_WANTS_CHUNKS 1
#define PYLE_HTTP_WANTS_HEADERS 2
#define PYLE_HTTP_REFUSED 16    /* what pyle_py_http_headers answers to have no body of it */
#define PYLE_CLIENT_TIMEOUT 0   /* in seconds; -1: evhttp's own */
#define PYLE_CLIENT_INITIAL_RETRY 1
#define PYLE_CLIENT_RETRIES 2
#define PYLE_CLIENT_MAX_HEADERS 3
#define PYLE_CLIENT_MAX_BODY 4  /* -1: no limit; -2: a sensible one, but for streams */
#define PYLE_CLIENT_FLAGS 5
#define PYLE_CLIENT_LOCAL_PORT 6
#define PYLE_CLIENT_WANTS_CLOSED 7
#define PYLE_CLIENT_FREE_WHEN_DONE 8
struct pyle_client *pyle_client_new(struct pyle_owned *, struct pyle_base *, long long token); /* NULL: no memory */
void pyle_client_unref(struct pyle_client *);
int pyle_client_start(struct pyle_client *);
int pyle_client_close(struct pyle_client *, int by_base);
int pyle_client_closed(struct pyle_client *);
int pyle_client_check(struct pyle_client *);
int pyle_client_set(struct pyle_client *, int what, double seconds, long long number);
int pyle_client_set_local_address(struct pyle_client *, const char *address);
struct evhttp_connection *pyle_client_ptr(struct pyle_client *); /* NULL: none now */
int pyle_client_connected(struct pyle_client *);
/* Answers to pyle_py_http_connect: where to, by TLS or with NULL, and how many more addresses there are; or
 * that there is none. */
int pyle_client_open(struct pyle_client *, const char *address, int port, struct pyle_tls *, int more);
int pyle_client_failed(struct pyle_client *);
void pyle_client_again(struct pyle_client *);           /* or that it has to be asked once more */
void pyle_client_after_fork(struct pyle_client *);
int pyle_client_make_request(struct pyle_client *, struct pyle_request *, int type, const char *uri, int wants);
ssize_t pyle_request_length(struct pyle_request *);     /* of the body that is to go out */
int pyle_request_made(struct pyle_request *);
int pyle_client_take_over(struct pyle_request *, struct pyle_bev *); /* PYLE_NONE: there is nothing to take */
int pyle_request_cancel(struct pyle_request *);         /* 1: it will be told so */

/* ---- bufferevent.c ---- */
struct pyle_bev *pyle_bev_new(struct pyle_owned *, struct pyle_base *, long long token); /* NULL: no memory */
void pyle_bev_unref(struct pyle_bev *);
int pyle_bev_socket(struct pyle_bev *, int fd, int options, int nodelay);
void pyle_bev_unopen(struct pyle_bev *);                       /* fd is the caller's again */
int pyle_bev_pair(struct pyle_bev *, struct pyle_bev *, int options);
int pyle_bev_filter(struct pyle_bev *, struct pyle_bev *under, int filters, int options);
int pyle_bev_tls_socket(struct pyle_bev *, struct pyle_tls *, int fd, int options, int nodelay);
int pyle_bev_tls_filter(struct pyle_bev *, struct pyle_tls *, struct pyle_bev *under, int options);
const struct pyle_tls_services *pyle_set_tls_hooks(const struct pyle_tls_hooks *);
int pyle_bev_borrow(struct pyle_bev *, struct bufferevent *);
int pyle_bev_close(struct pyle_bev *, int by_base);
/* timeout: for writing, -1: as it is. 1: nothing to wait for, close it */
int pyle_bev_finish(struct pyle_bev *, double timeout);
struct bufferevent *pyle_bev_ptr(struct pyle_bev *);
struct bufferevent *pyle_bev_expose(struct pyle_bev *);        /* the same, for the user */
struct pyle_buf *pyle_bev_buffer(struct pyle_bev *, int input); /* its own; NULL: closed, or no memory */
int pyle_bev_setcb(struct pyle_bev *, int read, int write, int event);
int pyle_bev_enable(struct pyle_bev *, int what);
int pyle_bev_disable(struct pyle_bev *, int what);
int pyle_bev_enabled(struct pyle_bev *);
int pyle_bev_fd(struct pyle_bev *);                            /* and 1: 0 is none */
int pyle_bev_setfd(struct pyle_bev *, int fd, int own);        /* own: close it at the end, whatever the options */
int pyle_bev_write(struct pyle_bev *, const void *data, size_t n);
int pyle_bev_write_now(struct pyle_bev *, const void *data, size_t n, size_t most); /* 1: more than that waits */
int pyle_bev_write_buffer(struct pyle_bev *, struct pyle_buf *);
int pyle_bev_read_buffer(struct pyle_bev *, struct pyle_buf *);
int pyle_bev_connect(struct pyle_bev *, const void *address, int length);
int pyle_bev_connect_hostname(struct pyle_bev *, int family, const char *host, int port);
int pyle_bev_connect_failed(struct pyle_bev *, int error);     /* calls back soon; -1: may it connect? */
int pyle_bev_dns_error(struct pyle_bev *);                     /* 0, or an EVUTIL_EAI_* turned positive */
int pyle_bev_setwatermark(struct pyle_bev *, int what, size_t low, size_t high);
int pyle_bev_getwatermark(struct pyle_bev *, int what, size_t *low, size_t *high);
int pyle_bev_set_timeouts(struct pyle_bev *, double read, double write);
int pyle_bev_get_priority(struct pyle_bev *);
int pyle_bev_set_priority(struct pyle_bev *, int priority);
int pyle_bev_flush(struct pyle_bev *, int what, int mode);
int pyle_bev_trigger(struct pyle_bev *, int what, int options);
int pyle_bev_trigger_event(struct pyle_bev *, int what, int options);
int pyle_bev_lock(struct pyle_bev *, struct pyle_held *);
int pyle_unlock(struct pyle_held *);                           /* a buffer's too */

#define PYLE_FILTER_RESULT 16 /* and a BEV_*: what pyle_py_bev_filter answers */

/* ---- ratelimit.c ---- */
struct pyle_limit *pyle_limit_new(struct pyle_owned *, size_t read_rate, size_t read_burst, size_t write_rate,
                                  size_t write_burst, int msec); /* NULL: no memory */
struct pyle_limit *pyle_limit_borrow(struct pyle_owned *, struct ev_token_bucket_cfg *); /* NULL: no memory */
void pyle_limit_unref(struct pyle_limit *);
struct ev_token_bucket_cfg *pyle_limit_ptr(struct pyle_limit *);
struct pyle_group *pyle_group_new(struct pyle_owned *, struct pyle_base *); /* NULL: no memory */
void pyle_group_unref(struct pyle_group *);
int pyle_group_open(struct pyle_group *, struct pyle_limit *);
int pyle_group_borrow(struct pyle_group *, struct bufferevent_rate_limit_group *);
int pyle_group_close(struct pyle_group *);
struct bufferevent_rate_limit_group *pyle_group_ptr(struct pyle_group *); /* NULL once closed */
int pyle_group_set_cfg(struct pyle_group *, struct pyle_limit *);
int pyle_group_set_min_share(struct pyle_group *, size_t share);
int pyle_group_limit(struct pyle_group *, int write, long long *out);
int pyle_group_decrement(struct pyle_group *, int write, long long n);
int pyle_group_get_totals(struct pyle_group *, unsigned long long *out); /* 2: read, written */
int pyle_group_reset_totals(struct pyle_group *);
/* Of a pair, what sets something is PYLE_UNABLE. */
int pyle_bev_set_rate_limit(struct pyle_bev *, struct pyle_limit *); /* NULL: none */
int pyle_bev_has_rate_limit(struct pyle_bev *);
int pyle_bev_add_to_group(struct pyle_bev *, struct pyle_group *);
int pyle_bev_remove_from_group(struct pyle_bev *);
int pyle_bev_limit(struct pyle_bev *, int which, long long *out); /* a PYLE_LIMIT_* */
int pyle_bev_decrement(struct pyle_bev *, int write, long long n); /* PYLE_NONE: no limit is set */
int pyle_bev_set_max_single(struct pyle_bev *, int write, int n);

#define PYLE_LIMIT_READ 0
#define PYLE_LIMIT_WRITE 1
#define PYLE_LIMIT_MAX_TO_READ 2
#define PYLE_LIMIT_MAX_TO_WRITE 3
#define PYLE_LIMIT_MAX_SINGLE_READ 4
#define PYLE_LIMIT_MAX_SINGLE_WRITE 5

/* ---- listener.c ---- */
struct pyle_listener *pyle_listener_new(struct pyle_owned *, struct pyle_base *, long long token); /* NULL: no memory */
void pyle_listener_unref(struct pyle_listener *);
int pyle_listener_open(struct pyle_listener *, int fd, int flags, int backlog);
int pyle_listener_bind(struct pyle_listener *, const void *address, int length,
                       int flags, int backlog);
int pyle_listener_borrow(struct pyle_listener *, struct evconnlistener *);
int pyle_listener_setcb(struct pyle_listener *, int errors);   /* ours, in a borrowed one */
int pyle_listener_close(struct pyle_listener *);
int pyle_listener_enable(struct pyle_listener *, int on);
int pyle_listener_enabled(struct pyle_listener *);
int pyle_listener_fd(struct pyle_listener *);
struct evconnlistener *pyle_listener_ptr(struct pyle_listener *);
int pyle_listener_accepting(void);                             /* the descriptor not yet taken, -1 */
/* out: 128 bytes. The length of the address made, or 0 when host is not a number (AF_INET, AF_INET6). */
int pyle_sockaddr_inet(void *out, int family, const char *host, int port,
                       unsigned flowinfo, unsigned scope);
int pyle_sockaddr_unix(void *out, const char *path, int length);

/* ---- dns.c ---- */
struct pyle_dns *pyle_dns_new(struct pyle_owned *, struct pyle_base *, long long token); /* NULL: no memory */
void pyle_dns_unref(struct pyle_dns *);
int pyle_dns_open(struct pyle_dns *, int flags);
/* 1: it is freed in the loop, behind what waits there; look-ups have to be ended before. */
int pyle_dns_close(struct pyle_dns *, int by_base);
struct evdns_base *pyle_dns_ptr(struct pyle_dns *);            /* NULL once closed */
int pyle_dns_nameserver(struct pyle_dns *, const void *address, int length);
int pyle_dns_get_nameserver(struct pyle_dns *, int index, char *out, int size, int *port); /* the family */
int pyle_dns_count(struct pyle_dns *);
int pyle_dns_clear_nameservers(struct pyle_dns *);
int pyle_dns_resume(struct pyle_dns *);
int pyle_dns_resolv_conf(struct pyle_dns *, int flags, const char *path); /* evdns's answer */
int pyle_dns_hosts(struct pyle_dns *, const char *path);       /* NULL: forget them; 1: cannot be read */
int pyle_dns_search(struct pyle_dns *, const char *domain, int ndots); /* NULL, -1: none any more */
int pyle_dns_set_option(struct pyle_dns *, const char *name, const char *value);

struct pyle_lookup *pyle_lookup_new(struct pyle_owned *, struct pyle_dns *, long long token); /* NULL: no memory */
void pyle_lookup_unref(struct pyle_lookup *);
/* type: a DNS_*; what: a name, or for DNS_PTR the 4 or 16 bytes of an address */
int pyle_lookup_start(struct pyle_lookup *, int type, const char *what, int length, int flags);
int pyle_lookup_wait(struct pyle_lookup *, double seconds);    /* so long at most: DNS_ERR_TIMEOUT */
int pyle_lookup_end(struct pyle_lookup *, int error);          /* in the loop, with a DNS_ERR_* */
int pyle_lookup_forget(struct pyle_lookup *);                  /* no callback */

struct pyle_port *pyle_port_new(struct pyle_owned *, struct pyle_base *, long long token); /* NULL: no memory */
void pyle_port_unref(struct pyle_port *);
int pyle_port_open(struct pyle_port *, int fd);                /* owns fd from then on */
int pyle_port_close(struct pyle_port *);
struct evdns_server_port *pyle_port_ptr(struct pyle_port *);   /* NULL once closed */
int pyle_port_fd(struct pyle_port *);
struct pyle_query *pyle_query_take(struct pyle_owned *);                      /* the one that the callback is for */
void pyle_query_unref(struct pyle_query *);                    /* drops it if it was not answered */
struct evdns_server_request *pyle_query_ptr(struct pyle_query *); /* NULL once answered */
int pyle_query_question(struct pyle_query *, int index, char *name, int size, int *type, int *cls); /* 1: none */
int pyle_query_address(struct pyle_query *, char *host, int size, int *port, unsigned *scope); /* the family */
int pyle_query_flags(struct pyle_query *, int set, int flags);
int pyle_query_add(struct pyle_query *, int section, const char *name, int type, int cls, int ttl,
                   int length, int is_name, const char *data);
int pyle_query_respond(struct pyle_query *, int error);        /* 1: it waits for the socket */
int pyle_query_drop(struct pyle_query *);

/* ---- poll.c ---- */
#define PYLE_POLL_READ 1
#define PYLE_POLL_WRITE 2
#define PYLE_POLL_STOP 1073741824
struct pyle_poll *pyle_poll_new(struct pyle_owned *, struct pyle_base *); /* NULL: no memory */
void pyle_poll_unref(struct pyle_poll *);
int pyle_poll_open(struct pyle_poll *, long long token);
int pyle_poll_close(struct pyle_poll *, int by_base);
int pyle_poll_set(struct pyle_poll *, int fd, int events);     /* PYLE_POLL_*; 0: not any more */
/* One round of the loop, for so many seconds at most, from 1e9 on: any number. How many descriptors are ready: out
 * has two numbers for each, the second PYLE_POLL_*. And PYLE_POLL_STOP: loopexit or loopbreak came.
 * noted, or NULL: of PYLE_POLL_NOTES tokens, behind their number. To it those of the bufferevents are added that have
 * input and are pyle_bev_note()d. Python is told when the round has no more of them, and deletes them. */
#define PYLE_POLL_NOTES 512
int pyle_poll_wait(struct pyle_poll *, double seconds, int *out, int room, long long *noted);
void pyle_bev_note(struct pyle_bev *);

/* ---- log.c ---- */
extern int pyle_log_waiting;
int pyle_log_take(char *out, int size);                        /* the severity, -1: nothing there */
