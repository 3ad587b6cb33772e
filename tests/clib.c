/* A C library that uses libevent, for tests/test_sharing.py: it knows nothing of Python. */
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

struct counter {
    struct event *event;
    int count;
    int limit;
};

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct counter *c = arg;

    (void)fd;
    (void)what;
    if (++c->count == c->limit)
        event_del(c->event);
}

/* Ticks `limit` times, a millisecond apart. */
struct counter *counter_new(struct event_base *base, int limit)
{
    static const struct timeval tick = {0, 1000};
    struct counter *c = calloc(1, sizeof(*c));

    c->limit = limit;
    c->event = event_new(base, -1, EV_PERSIST, on_tick, c);
    event_add(c->event, &tick);
    return c;
}

int counter_count(const struct counter *c)
{
    return c->count;
}

struct event *counter_event(const struct counter *c)
{
    return c->event;
}

void counter_free(struct counter *c)
{
    event_free(c->event);
    free(c);
}

struct event_base *base_new(void)
{
    return event_base_new();
}

int base_dispatch(struct event_base *base)
{
    return event_base_dispatch(base);
}

void base_free(struct event_base *base)
{
    event_base_free(base);
}

static void on_read(struct bufferevent *bev, void *arg)
{
    (void)arg;
    bufferevent_write_buffer(bev, bufferevent_get_input(bev));
}

/* Echoes. */
struct bufferevent *echo_new(struct event_base *base, int fd)
{
    struct bufferevent *bev = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);

    bufferevent_setcb(bev, on_read, NULL, NULL, NULL);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    return bev;
}

void echo_free(struct bufferevent *bev)
{
    bufferevent_free(bev);
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
    (void)what;
    (void)arg;
    bufferevent_free(bev);
}

static void on_accept(struct evconnlistener *lev, evutil_socket_t fd, struct sockaddr *sa, int n,
                      void *arg)
{
    (void)sa;
    (void)n;
    (void)arg;
    bufferevent_setcb(echo_new(evconnlistener_get_base(lev), fd), on_read, NULL, on_event, NULL);
}

/* An echo server on a free port of 127.0.0.1. */
struct evconnlistener *server_new(struct event_base *base)
{
    struct sockaddr_in sin;

    memset(&sin, 0, sizeof(sin));
    sin.sin_family = AF_INET;
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return evconnlistener_new_bind(base, on_accept, NULL, LEV_OPT_CLOSE_ON_FREE, 16,
                                   (struct sockaddr *)&sin, sizeof(sin));
}

void server_restore(struct evconnlistener *lev)
{
    evconnlistener_set_cb(lev, on_accept, NULL);
}

void server_free(struct evconnlistener *lev)
{
    evconnlistener_free(lev);
}

/* A queue of lines. */
struct evbuffer *lines_new(void)
{
    struct evbuffer *buf = evbuffer_new();

    evbuffer_add_printf(buf, "first\nsecond\n");
    return buf;
}

/* The first line's length, -1: none; and takes it. */
int lines_take(struct evbuffer *buf)
{
    size_t n;
    char *line = evbuffer_readln(buf, &n, EVBUFFER_EOL_LF);

    free(line);
    return line ? (int)n : -1;
}

void lines_free(struct evbuffer *buf)
{
    evbuffer_free(buf);
}

/* A part of a file, to be sent to many. */
struct evbuffer_file_segment *part_new(int fd, int offset, int length)
{
    return evbuffer_file_segment_new(fd, offset, length, EVBUF_FS_DISABLE_MMAP);
}

int part_add(struct evbuffer_file_segment *part, struct evbuffer *buf)
{
    return evbuffer_add_file_segment(buf, part, 0, -1);
}

void part_free(struct evbuffer_file_segment *part)
{
    evbuffer_file_segment_free(part);
}

/* So many bytes a minute, for each connection or for all that share it. */
struct ev_token_bucket_cfg *limit_new(int n)
{
    static const struct timeval minute = {60, 0};

    return ev_token_bucket_cfg_new((size_t)n, (size_t)n, (size_t)n, (size_t)n, &minute);
}

void limit_free(struct ev_token_bucket_cfg *limit)
{
    ev_token_bucket_cfg_free(limit);
}

struct bufferevent_rate_limit_group *share_new(struct event_base *base,
                                               struct ev_token_bucket_cfg *limit)
{
    return bufferevent_rate_limit_group_new(base, limit);
}

int share_join(struct bufferevent_rate_limit_group *share, struct bufferevent *bev)
{
    return bufferevent_add_to_rate_limit_group(bev, share);
}

int share_written(struct bufferevent_rate_limit_group *share)
{
    ev_uint64_t read, written;

    bufferevent_rate_limit_group_get_totals(share, &read, &written);
    return (int)written;
}

void share_free(struct bufferevent_rate_limit_group *share)
{
    bufferevent_rate_limit_group_free(share);
}
