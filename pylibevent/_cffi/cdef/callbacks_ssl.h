/* The way from tls.c into Python: a client has named the host it wants. */
int pyle_py_sni(int slot, long long token, const char *name);
