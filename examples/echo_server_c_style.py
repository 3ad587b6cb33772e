"""The C echo server of libevent 1.x, line by line on the raw layer.

To the right of a line stands the C line that it was; (not in C) marks what repairs a fault of the
C program or what Python needs. examples/echo_server.py is the same server as one writes it today.

    python examples/echo_server_c_style.py [--host 127.0.0.1] [--port 8899]
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from typing import Any

from pylibevent import ffi, lib  # #include <event.h>

SERVER_PORT = 8899  # #define SERVER_PORT 8899
MAX_LINE = 64 * 1024  # (not in C) a peer that sends no end of line is dropped here
MAX_OUTPUT = 16 * 1024  # (not in C) no more is read from a peer that leaves this much unread
LAST_WRITE = 30  # (not in C) seconds that a peer which has sent its end may leave answers unread


class Client:  # struct client {
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock  # int fd;
        self.buf_ev = ffi.NULL  # struct bufferevent *buf_ev;
        self.ended = False  # (not in C) the peer has sent its end, answers are still due


class Server:  # (not in C) the locals of main() that on_accept needs
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock  # int socketlisten;
        self.accept_event = ffi.new("struct event *")  # struct event accept_event;
        self.pointer = ffi.new_handle(self)


# (not in C) Each client with the void * that libevent has for it, which keeps nothing alive.
clients: dict[Client, Any] = {}


def free_client(client: Client) -> None:
    # (not in C) First out of epoll, while the descriptor is still ours: libevent holds on to the
    # bufferevent until the callback that we may be in has returned.
    lib.bufferevent_disable(client.buf_ev, lib.EV_READ | lib.EV_WRITE)
    lib.bufferevent_free(client.buf_ev)  # bufferevent_free(client->buf_ev);
    client.sock.close()  # close(client->fd);
    clients.pop(client, None)  # free(client);


def send_answer(incoming: Any, req: Any) -> bool:
    evreturn = lib.evbuffer_new()  # evreturn = evbuffer_new();
    if not evreturn:  # (not in C)
        return False
    # evbuffer_add_printf(evreturn,"Client msg %s\n",req);
    done = lib.evbuffer_add_printf(evreturn, b"Client msg %s\n", req) >= 0
    # bufferevent_write_buffer(incoming,evreturn);
    done = done and lib.bufferevent_write_buffer(incoming, evreturn) == 0
    lib.evbuffer_free(evreturn)  # evbuffer_free(evreturn);
    return bool(done)


def answer_lines(client: Client) -> None:
    incoming = client.buf_ev
    # (not in C) All lines that are there: C left all but the first until the peer sent more.
    while lib.EVBUFFER_LENGTH(incoming.output) < MAX_OUTPUT:
        req = lib.evbuffer_readline(incoming.input)  # req = evbuffer_readline(incoming->input);
        if not req:  # if (req == NULL)
            if lib.EVBUFFER_LENGTH(incoming.input) >= MAX_LINE:  # (not in C)
                free_client(client)
            return  # return;
        done = send_answer(incoming, req)
        lib.free(req)  # free(req);
        if not done:  # (not in C) no memory
            free_client(client)
            return
    lib.bufferevent_disable(incoming, lib.EV_READ)  # (not in C) until what is written is read


@ffi.callback("bufferevent_data_cb")
def buf_read_callback(incoming: Any, arg: Any) -> None:
    answer_lines(ffi.from_handle(arg))


@ffi.callback("bufferevent_data_cb")
def buf_write_callback(bev: Any, arg: Any) -> None:
    # (not in C, where it is empty) All output is with the peer: on with what had to wait for that.
    client: Client = ffi.from_handle(arg)
    if client.ended:
        free_client(client)
        return
    lib.bufferevent_enable(bev, lib.EV_READ)
    answer_lines(client)


@ffi.callback("bufferevent_event_cb")
def buf_error_callback(bev: Any, what: int, arg: Any) -> None:
    client: Client = ffi.from_handle(arg)  # struct client *client = (struct client *)arg;
    if what & lib.EVBUFFER_EOF and lib.EVBUFFER_LENGTH(bev.output) > 0:
        # (not in C) The peer has sent all that it wants to (nc -N) and waits for the answers.
        client.ended = True
        lib.bufferevent_settimeout(bev, 0, LAST_WRITE)
        return
    free_client(client)  # bufferevent_free(client->buf_ev); close(client->fd); free(client);


@ffi.callback("event_callback_fn")
def accept_again(fd: int, ev: int, arg: Any) -> None:
    # (not in C)
    server: Server = ffi.from_handle(arg)
    lib.event_add(server.accept_event, ffi.NULL)


@ffi.callback("event_callback_fn")
def on_accept(fd: int, ev: int, arg: Any) -> None:
    server: Server = ffi.from_handle(arg)
    try:
        # client_fd = accept(fd, (struct sockaddr *)&client_addr, &client_len);
        client_sock, _ = server.sock.accept()
    except (BlockingIOError, ConnectionAbortedError):  # (not in C) it has gone again
        return
    except OSError as error:  # if (client_fd < 0)
        # fprintf(stderr,"Client: accept() failed\n");
        print(f"Client: accept() failed: {error.strerror}", file=sys.stderr)
        # (not in C) Out of descriptors: it would fail again at once, and again; wait a second.
        second = ffi.new("struct timeval *", (1, 0))
        if lib.event_once(-1, lib.EV_TIMEOUT, accept_again, arg, second) == 0:
            lib.event_del(server.accept_event)
        return  # return;

    client_sock.setblocking(False)  # setnonblock(client_fd);

    client = Client(client_sock)  # client = calloc(1, sizeof(*client)); client->fd = client_fd;
    clients[client] = ffi.new_handle(client)

    client.buf_ev = lib.bufferevent_new(  # client->buf_ev = bufferevent_new(
        client_sock.fileno(),  # client_fd,
        buf_read_callback,  # buf_read_callback,
        buf_write_callback,  # buf_write_callback,
        buf_error_callback,  # buf_error_callback,
        clients[client],  # client);
    )
    if not client.buf_ev:  # (not in C)
        print("Client: bufferevent_new() failed", file=sys.stderr)
        client_sock.close()
        del clients[client]
        return
    lib.bufferevent_setwatermark(client.buf_ev, lib.EV_READ, 0, MAX_LINE)  # (not in C)

    # bufferevent_enable(client->buf_ev, EV_READ);
    if lib.bufferevent_enable(client.buf_ev, lib.EV_READ) != 0:
        free_client(client)  # (not in C)


def main() -> int:  # int main(int argc, char **argv)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # (not in C)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=SERVER_PORT, help="0: any (%(default)s)")
    args = parser.parse_args()

    # (not in C) Ctrl-C ends the program, as it does in C. Python's own handler only leaves a note
    # for the interpreter, which does not run while event_dispatch waits. SIGTERM is left alone by
    # Python; SIGPIPE, which could end the C program, is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    if not lib.event_init():  # event_init();
        print("Failed to initialise libevent", file=sys.stderr)
        return 1

    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        # socketlisten = socket(AF_INET, SOCK_STREAM, 0);
        socketlisten = socket.socket(family, socket.SOCK_STREAM, 0)
    except OSError as error:  # if (socketlisten < 0)
        # fprintf(stderr,"Failed to create listen socket");
        print(f"Failed to create listen socket: {error.strerror}", file=sys.stderr)
        return 1

    # setsockopt(socketlisten, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse));
    # In C it stands behind bind(), where it is too late to help.
    socketlisten.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    try:
        # if (bind(socketlisten, (struct sockaddr *)&addresslisten, sizeof(addresslisten)) < 0)
        socketlisten.bind((args.host, args.port))
        socketlisten.listen(socket.SOMAXCONN)  # if (listen(socketlisten, 5) < 0)
    except (OSError, OverflowError) as error:
        # fprintf(stderr,"Failed to bind"); fprintf(stderr,"Failed to listen to socket");
        print(f"Failed to listen on {args.host}:{args.port}: {error}", file=sys.stderr)
        return 1

    socketlisten.setblocking(False)  # setnonblock(socketlisten);

    server = Server(socketlisten)

    lib.event_set(  # event_set(
        server.accept_event,  # &accept_event,
        socketlisten.fileno(),  # socketlisten,
        lib.EV_READ | lib.EV_PERSIST,  # EV_READ|EV_PERSIST,
        on_accept,  # on_accept,
        server.pointer,  # NULL);
    )

    if lib.event_add(server.accept_event, ffi.NULL) != 0:  # event_add(&accept_event, NULL);
        print("Failed to watch the listen socket", file=sys.stderr)
        return 1

    host, port = socketlisten.getsockname()[:2]
    print(f"listening on {host}:{port}", file=sys.stderr, flush=True)  # (not in C)

    lib.event_dispatch()  # event_dispatch();

    socketlisten.close()  # close(socketlisten);

    return 0  # return 0;


if __name__ == "__main__":
    sys.exit(main())
