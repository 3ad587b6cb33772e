/* event2/http_compat.h: the calls of libevent 1.x */

struct evhttp *evhttp_start(const char *address, ev_uint16_t port);
struct evhttp_connection *evhttp_connection_new(const char *address, ev_uint16_t port);
void evhttp_connection_set_base(struct evhttp_connection *evcon, struct event_base *base);

/* a macro in C */
const char *evhttp_request_uri(const struct evhttp_request *req);
