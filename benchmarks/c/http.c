/* A web server on evhttp.
 *
 *     http FILE
 *
 * Answers / with 13 bytes, and /file with that file, by sendfile. Prints its port on stdout. */
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>

static void on_root(struct evhttp_request *request, void *arg)
{
    (void)arg;
    evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Type", "text/plain");
    evbuffer_add(evhttp_request_get_output_buffer(request), "Hello, world!", 13);
    evhttp_send_reply(request, 200, "OK", NULL);
}

static void on_file(struct evhttp_request *request, void *arg)
{
    struct stat status;
    int fd = open(arg, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &status) < 0 ||
        evbuffer_add_file(evhttp_request_get_output_buffer(request), fd, 0, status.st_size) < 0) {
        evhttp_send_error(request, 500, NULL);
        return;
    }
    evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Type", "application/octet-stream");
    evhttp_send_reply(request, 200, "OK", NULL);
}

int main(int argc, char **argv)
{
    struct event_base *base = event_base_new();
    struct evhttp *http = evhttp_new(base);
    struct evhttp_bound_socket *bound = evhttp_bind_socket_with_handle(http, "127.0.0.1", 0);
    struct sockaddr_in address;
    socklen_t length = sizeof(address);

    if (!bound || argc != 2)
        return 1;
    evhttp_set_cb(http, "/", on_root, NULL);
    evhttp_set_cb(http, "/file", on_file, argv[1]);
    getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    event_base_dispatch(base);
    evhttp_free(http);
    event_base_free(base);
    return 0;
}
