/* event2/util.h, and the system types that libevent's calls take */

typedef int... time_t;
typedef int... suseconds_t;
typedef int... socklen_t;
typedef int... sa_family_t;
typedef int... in_port_t;

struct timeval { time_t tv_sec; suseconds_t tv_usec; ...; };
struct timezone { int tz_minuteswest; int tz_dsttime; ...; };
struct tm {
    int tm_sec; int tm_min; int tm_hour; int tm_mday; int tm_mon; int tm_year;
    int tm_wday; int tm_yday; int tm_isdst; ...;
};
struct sockaddr { sa_family_t sa_family; char sa_data[...]; ...; };
struct sockaddr_storage { sa_family_t ss_family; ...; };
struct in_addr { uint32_t s_addr; ...; };
struct in6_addr { uint8_t s6_addr[16]; ...; };
struct sockaddr_in { sa_family_t sin_family; in_port_t sin_port; struct in_addr sin_addr; ...; };
struct sockaddr_in6 {
    sa_family_t sin6_family; in_port_t sin6_port; uint32_t sin6_flowinfo;
    struct in6_addr sin6_addr; uint32_t sin6_scope_id; ...;
};
struct sockaddr_un { sa_family_t sun_family; char sun_path[...]; ...; };

/* For what libevent hands over with malloc (evbuffer_readln, evhttp_encode_uri, ...). */
void free(void *ptr);

/* libevent's integer types are macros in C */
typedef uint64_t ev_uint64_t;
typedef int64_t ev_int64_t;
typedef uint32_t ev_uint32_t;
typedef int32_t ev_int32_t;
typedef uint16_t ev_uint16_t;
typedef int16_t ev_int16_t;
typedef uint8_t ev_uint8_t;
typedef int8_t ev_int8_t;
typedef uintptr_t ev_uintptr_t;
typedef intptr_t ev_intptr_t;
typedef ssize_t ev_ssize_t;
typedef int... ev_off_t;
typedef socklen_t ev_socklen_t;
typedef int evutil_socket_t;

#define EV_UINT64_MAX ...
#define EV_INT64_MAX ...
#define EV_INT64_MIN ...
#define EV_UINT32_MAX ...
#define EV_INT32_MAX ...
#define EV_INT32_MIN ...
#define EV_UINT16_MAX ...
#define EV_INT16_MAX ...
#define EV_INT16_MIN ...
#define EV_UINT8_MAX ...
#define EV_INT8_MAX ...
#define EV_INT8_MIN ...
#define EV_SIZE_MAX ...
#define EV_SSIZE_MAX ...
#define EV_SSIZE_MIN ...

#define EV_MONOT_PRECISE ...
#define EV_MONOT_FALLBACK ...

#define EVUTIL_INVALID_SOCKET ...

#define EVUTIL_EAI_ADDRFAMILY ...
#define EVUTIL_EAI_AGAIN ...
#define EVUTIL_EAI_BADFLAGS ...
#define EVUTIL_EAI_FAIL ...
#define EVUTIL_EAI_FAMILY ...
#define EVUTIL_EAI_MEMORY ...
#define EVUTIL_EAI_NODATA ...
#define EVUTIL_EAI_NONAME ...
#define EVUTIL_EAI_SERVICE ...
#define EVUTIL_EAI_SOCKTYPE ...
#define EVUTIL_EAI_SYSTEM ...
#define EVUTIL_EAI_CANCEL ...

#define EVUTIL_AI_PASSIVE ...
#define EVUTIL_AI_CANONNAME ...
#define EVUTIL_AI_NUMERICHOST ...
#define EVUTIL_AI_NUMERICSERV ...
#define EVUTIL_AI_V4MAPPED ...
#define EVUTIL_AI_ALL ...
#define EVUTIL_AI_ADDRCONFIG ...

struct evutil_monotonic_timer;
struct evutil_addrinfo {
    int ai_flags; int ai_family; int ai_socktype; int ai_protocol; socklen_t ai_addrlen;
    char *ai_canonname; struct sockaddr *ai_addr; struct evutil_addrinfo *ai_next; ...;
};

int evutil_date_rfc1123(char *date, const size_t datelen, const struct tm *tm);
struct evutil_monotonic_timer *evutil_monotonic_timer_new(void);
void evutil_monotonic_timer_free(struct evutil_monotonic_timer *timer);
int evutil_configure_monotonic_time(struct evutil_monotonic_timer *timer, int flags);
int evutil_gettime_monotonic(struct evutil_monotonic_timer *timer, struct timeval *tp);
int evutil_socketpair(int d, int type, int protocol, evutil_socket_t sv[2]);
int evutil_make_socket_nonblocking(evutil_socket_t sock);
int evutil_make_listen_socket_reuseable(evutil_socket_t sock);
int evutil_make_listen_socket_reuseable_port(evutil_socket_t sock);
int evutil_make_listen_socket_ipv6only(evutil_socket_t sock);
int evutil_make_socket_closeonexec(evutil_socket_t sock);
int evutil_closesocket(evutil_socket_t sock);
int evutil_make_tcp_listen_socket_deferred(evutil_socket_t sock);
ev_int64_t evutil_strtoll(const char *s, char **endptr, int base);
int evutil_snprintf(char *buf, size_t buflen, const char *format, ...);
const char *evutil_inet_ntop(int af, const void *src, char *dst, size_t len);
int evutil_inet_pton_scope(int af, const char *src, void *dst, unsigned *indexp);
int evutil_inet_pton(int af, const char *src, void *dst);
int evutil_parse_sockaddr_port(const char *str, struct sockaddr *out, int *outlen);
int evutil_sockaddr_cmp(const struct sockaddr *sa1, const struct sockaddr *sa2, int include_port);
int evutil_ascii_strcasecmp(const char *str1, const char *str2);
int evutil_ascii_strncasecmp(const char *str1, const char *str2, size_t n);
int evutil_getaddrinfo(const char *nodename, const char *servname,
    const struct evutil_addrinfo *hints_in, struct evutil_addrinfo **res);
void evutil_freeaddrinfo(struct evutil_addrinfo *ai);
const char *evutil_gai_strerror(int err);
void evutil_secure_rng_get_bytes(void *buf, size_t n);
int evutil_secure_rng_init(void);
int evutil_secure_rng_set_urandom_device_file(char *fname);
void evutil_secure_rng_add_bytes(const char *dat, size_t datlen);

/* macros in C */
int EVUTIL_CLOSESOCKET(evutil_socket_t s);
int EVUTIL_SOCKET_ERROR(void);
void EVUTIL_SET_SOCKET_ERROR(int errcode);
int evutil_socket_geterror(evutil_socket_t sock);
const char *evutil_socket_error_to_string(int errcode);
void evutil_timeradd(const struct timeval *tvp, const struct timeval *uvp, struct timeval *vvp);
void evutil_timersub(const struct timeval *tvp, const struct timeval *uvp, struct timeval *vvp);
void evutil_timerclear(struct timeval *tvp);
int evutil_timerisset(const struct timeval *tvp);
int evutil_gettimeofday(struct timeval *tv, struct timezone *tz);
