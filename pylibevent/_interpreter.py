"""Nothing of C's is loaded outside of the main interpreter: libevent's locks and what our C source
knows of Python are one for the process."""

import importlib

for _name in ("_interpreters", "_xxsubinterpreters"):  # from 3.13 on, and before
    try:
        _interpreters = importlib.import_module(_name)
    except ImportError:
        continue
    if _interpreters.get_current() != _interpreters.get_main():
        raise ImportError("pylibevent works in the main interpreter only, and this is another one")
    break
