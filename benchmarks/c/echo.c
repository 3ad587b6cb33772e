/* The echo server on plain libevent 2: the yardstick. Answers each line with `Client msg <line>`.
 *
 *     echo [-n]      -n: TCP_NODELAY, which libevent leaves off
 *
 * Prints its port on stdout. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

static int nodelay;

static void on_read(struct bufferevent *bev, void *arg)
{
    struct evbuffer *input = bufferevent_get_input(bev), *output = bufferevent_get_output(bev);
    size_t length;
    char *line;

    (void)arg;
    while ((line = evbuffer_readln(input, &length, EVBUFFER_EOL_LF))) {
        /* Three calls, which cost less than evbuffer_add_printf: half, for long lines. */
        evbuffer_add(output, "Client msg ", 11);
        evbuffer_add(output, line, length);
        evbuffer_add(output, "\n", 1);
        free(line);
    }
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
    (void)what;
    (void)arg;
    bufferevent_free(bev);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address,
                      int length, void *arg)
{
    struct bufferevent *bev;

    (void)address;
    (void)length;
    (void)arg;
    if (nodelay)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &nodelay, sizeof(nodelay));
    bev = bufferevent_socket_new(evconnlistener_get_base(listener), fd, BEV_OPT_CLOSE_ON_FREE);
    if (!bev) {
        evutil_closesocket(fd);
        return;
    }
    bufferevent_setcb(bev, on_read, NULL, on_event, NULL);
    bufferevent_enable(bev, EV_READ);
}

int main(int argc, char **argv)
{
    struct event_base *base = event_base_new();
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof(address);
    struct evconnlistener *listener;
    struct rlimit limit;

    nodelay = argc > 1 && strcmp(argv[1], "-n") == 0;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = evconnlistener_new_bind(base, on_accept, NULL,
                                       LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, -1,
                                       (struct sockaddr *)&address, sizeof(address));
    if (!listener) {
        perror("listen");
        return 1;
    }
    getsockname(evconnlistener_get_fd(listener), (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    event_base_dispatch(base);
    evconnlistener_free(listener);
    event_base_free(base);
    return 0;
}
