/* echo.c over TLS, by libevent_openssl.
 *
 *     tls_echo cert.pem
 *
 * The certificate and its key are in one file. Prints its port on stdout. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>

#include <openssl/ssl.h>

#include <event2/buffer.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/listener.h>

static SSL_CTX *ctx;

static void on_read(struct bufferevent *bev, void *arg)
{
    struct evbuffer *input = bufferevent_get_input(bev), *output = bufferevent_get_output(bev);
    size_t length;
    char *line;

    (void)arg;
    while ((line = evbuffer_readln(input, &length, EVBUFFER_EOL_LF))) {
        evbuffer_add(output, "Client msg ", 11);
        evbuffer_add(output, line, length);
        evbuffer_add(output, "\n", 1);
        free(line);
    }
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
    (void)arg;
    if (!(what & BEV_EVENT_CONNECTED))
        bufferevent_free(bev);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address,
                      int length, void *arg)
{
    struct bufferevent *bev;
    int one = 1;

    (void)address;
    (void)length;
    (void)arg;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    bev = bufferevent_openssl_socket_new(evconnlistener_get_base(listener), fd, SSL_new(ctx),
                                         BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
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

    ctx = SSL_CTX_new(TLS_server_method());
    if (argc != 2 || !SSL_CTX_use_certificate_chain_file(ctx, argv[1]) ||
        !SSL_CTX_use_PrivateKey_file(ctx, argv[1], SSL_FILETYPE_PEM)) {
        fprintf(stderr, "tls_echo: no certificate\n");
        return 1;
    }
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
    return 0;
}
