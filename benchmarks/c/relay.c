/* A relay on plain libevent 2, as libevent's sample/le-proxy.c has it: the yardstick.
 *
 *     relay [-n] PORT      PORT: of the backend on 127.0.0.1. -n: TCP_NODELAY
 *
 * Prints its port on stdout. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

#define MAX_OUTPUT (512 * 1024)

static int nodelay;
static struct sockaddr_in backend = {.sin_family = AF_INET};

static void on_read(struct bufferevent *bev, void *other);
static void on_drained(struct bufferevent *bev, void *other);

static void on_event(struct bufferevent *bev, short what, void *other)
{
    if (what & BEV_EVENT_CONNECTED)
        return;
    bufferevent_free(bev);
    bufferevent_free(other);
}

static void on_read(struct bufferevent *bev, void *other)
{
    struct evbuffer *output = bufferevent_get_output(other);

    evbuffer_add_buffer(output, bufferevent_get_input(bev));
    if (evbuffer_get_length(output) >= MAX_OUTPUT) {
        bufferevent_setcb(other, on_read, on_drained, on_event, bev);
        bufferevent_setwatermark(other, EV_WRITE, MAX_OUTPUT / 2, MAX_OUTPUT);
        bufferevent_disable(bev, EV_READ);
    }
}

static void on_drained(struct bufferevent *bev, void *other)
{
    bufferevent_setcb(bev, on_read, NULL, on_event, other);
    bufferevent_setwatermark(bev, EV_WRITE, 0, 0);
    bufferevent_enable(other, EV_READ);
}

static void set_nodelay(struct bufferevent *bev)
{
    if (nodelay)
        setsockopt(bufferevent_getfd(bev), IPPROTO_TCP, TCP_NODELAY, &nodelay, sizeof(nodelay));
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address,
                      int length, void *arg)
{
    struct event_base *base = evconnlistener_get_base(listener);
    struct bufferevent *client = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    struct bufferevent *server = bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);

    (void)address;
    (void)length;
    (void)arg;
    if (!client || !server ||
        bufferevent_socket_connect(server, (struct sockaddr *)&backend, sizeof(backend)) < 0) {
        fputs("relay: no connection\n", stderr);
        exit(1);
    }
    set_nodelay(client);
    set_nodelay(server);
    bufferevent_setcb(client, on_read, NULL, on_event, server);
    bufferevent_setcb(server, on_read, NULL, on_event, client);
    bufferevent_enable(client, EV_READ);
    bufferevent_enable(server, EV_READ);
}

int main(int argc, char **argv)
{
    struct event_base *base = event_base_new();
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof(address);
    struct evconnlistener *listener;

    if (argc < 2)
        return 2;
    nodelay = strcmp(argv[1], "-n") == 0;
    backend.sin_port = htons((uint16_t)atoi(argv[argc - 1]));
    backend.sin_addr.s_addr = address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
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
    return 0;
}
