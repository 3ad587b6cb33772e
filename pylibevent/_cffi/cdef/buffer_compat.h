/* event2/buffer_compat.h: the calls of libevent 1.x */

char *evbuffer_readline(struct evbuffer *buffer);
typedef void (*evbuffer_cb)(struct evbuffer *buffer, size_t old_len, size_t new_len, void *arg);
int evbuffer_setcb(struct evbuffer *buffer, evbuffer_cb cb, void *cbarg);
unsigned char *evbuffer_find(struct evbuffer *buffer, const unsigned char *what, size_t len);

/* macros in C */
size_t EVBUFFER_LENGTH(const struct evbuffer *x);
unsigned char *EVBUFFER_DATA(struct evbuffer *x);
