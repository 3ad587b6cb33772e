/* Every way from C into Python, on one page. build_libevent.py wraps it in extern "Python+C",
 * our C source includes it as it is. Each is a function in pylibevent/_callbacks.py and returns
 * an enum pyle_answer. slot and token name the Python object: the base's table, and its key. */

/* an event, a timer, a signal fired; released: it is not pending any more */
int pyle_py_event(int slot, long long token, int fd, int what, int released);
int pyle_py_timer(int slot, long long token, int fd, int what, int released);
int pyle_py_signal(int slot, long long token, int fd, int what, int released);

/* an event was finalized: no callback of it runs or will */
int pyle_py_finalized(int slot, long long token);
/* a callback raised in a loop that C runs: the exception is for the next loop of Python's */
int pyle_py_keep(int slot);

/* a bufferevent's three callbacks; error is the errno of a BEV_EVENT_ERROR */
int pyle_py_bev_read(int slot, long long token);
int pyle_py_bev_write(int slot, long long token);
int pyle_py_bev_event(int slot, long long token, int what, int error);
/* asyncio's: those of its bufferevents that are noted have input */
int pyle_py_noted(int slot, long long token);
/* a filter is to move bytes on: of the input, or of the output */
int pyle_py_bev_filter(int slot, long long token, int output, ssize_t limit, int mode);
/* close_after_write() has written it all, or cannot */
int pyle_py_bev_finished(int slot, long long token);

/* a listener accepted fd (the address as text and numbers); its accept failed */
int pyle_py_accept(int slot, long long token, int fd, int family,
                   const char *host, int host_length, int port, unsigned flowinfo, unsigned scope);
int pyle_py_accept_error(int slot, long long token, int error);

/* an evbuffer with callbacks changed; slot: of the base whose loop made the change, or to which
 * the callbacks are deferred, -1: a call of the user's did. Nothing added, nothing deleted: just
 * let go of it. It has callbacks that wait for the loop: hold on to it. */
int pyle_py_buffer(int slot, long long token, size_t orig_size, size_t n_added, size_t n_deleted);
int pyle_py_buffer_waits(int slot, long long token);

/* a look-up has ended, with a DNS_ERR_*; data: count addresses, or a name */
int pyle_py_dns(int slot, long long token, int error, int type, int count, int ttl,
                const char *data, int length);
/* a DnsBase that was closed in a callback is freed now */
int pyle_py_dns_closed(int slot, long long token);
/* a DnsServerPort was asked something */
int pyle_py_dns_query(int slot, long long token);

/* an HttpServer has a request for the handler that the token is of; pyle_request_take() */
int pyle_py_http_request(int slot, long long token);
/* it wants a bufferevent for a connection: pyle_http_give(); one that it has given is gone */
int pyle_py_http_bev(int slot, long long token);
int pyle_py_http_gone(int slot, long long token);
/* of a request: a PYLE_HTTP_CHUNK and so on, an EVREQ_HTTP_*, and how many chunks that have callbacks are written */
int pyle_py_http_told(int slot, long long token, int what, int error, int chunks);
/* an HttpConnection has to connect: to the first address, or to the next one */
int pyle_py_http_connect(int slot, long long token, int again);
/* it was connected, and is not any more */
int pyle_py_http_closed(int slot, long long token);
/* it was to be closed after the last request, which is over */
int pyle_py_http_over(int slot, long long token);
/* a client's request: its reply's headers are there; a part of its body; it has ended, with an EVREQ_HTTP_* or -1,
 * and an errno, 0, or -1 for an exception that Python has */
int pyle_py_http_headers(int slot, long long token);
int pyle_py_http_chunk(int slot, long long token);
int pyle_py_http_done(int slot, long long token, int error, int system_error);

/* a signal came while the main thread was in the loop: let Python run its handler */
int pyle_py_signals(void);
/* libevent let go of memory that add_reference() lent it */
int pyle_py_release(void);
/* libevent has logged something */
int pyle_py_log_messages(void);
