/* event2/dns_struct.h */

struct evdns_server_request {
    int flags;
    int nquestions;
    struct evdns_server_question **questions;
    ...;
};
struct evdns_server_question {
    int type;
    int dns_question_class;  /* in C the name is a macro for the field "class" */
    char name[];             /* in C name[1], with the rest of the name behind it */
    ...;
};
