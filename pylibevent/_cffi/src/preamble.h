/* Every header that the cdef files declare from: system first, libevent 2, then 1.x. */
#ifndef PYLE_PREAMBLE_H
#define PYLE_PREAMBLE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sys/types.h>
#include <sys/time.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <netdb.h>

#include <event2/util.h>
#include <event2/thread.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_struct.h>
#include <event2/listener.h>
#include <event2/keyvalq_struct.h>
#include <event2/dns.h>
#include <event2/dns_struct.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/tag.h>

#include <event.h>  /* 1.x: with event2/{event,buffer,bufferevent,tag}_compat.h */
#include <evdns.h>  /* and event2/dns_compat.h */
#include <evhttp.h> /* and event2/http_compat.h */

/* libevent 2.1 lacks it where the C library has arc4random, which needs no more randomness. */
void evutil_secure_rng_add_bytes(const char *data, size_t length);
#pragma weak evutil_secure_rng_add_bytes
static inline void pyle_secure_rng_add_bytes(const char *data, size_t length)
{
    if (evutil_secure_rng_add_bytes)
        evutil_secure_rng_add_bytes(data, length);
}
#define evutil_secure_rng_add_bytes pyle_secure_rng_add_bytes

#endif
