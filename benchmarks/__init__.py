"""libevent for Python beside C, asyncio, uvloop and gevent. README.md says how."""
