/* event2/tag_compat.h: the calls of libevent 1.x */

/* macros in C */
void encode_int(struct evbuffer *evbuf, ev_uint32_t number);
void encode_int64(struct evbuffer *evbuf, ev_uint64_t number);
