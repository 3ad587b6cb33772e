#!/bin/sh
# The tests of the core classes under valgrind's memcheck, with the Python and the build of the first argument's
# environment. Further arguments are pytest's.
set -eu
python=$1
shift
[ $# -gt 0 ] || set -- tests/test_event.py tests/test_buffer.py tests/test_buffer_model.py tests/test_bufferevent.py \
	tests/test_listener.py tests/test_lifetime.py tests/test_exceptions.py tests/test_traps.py
command -v valgrind >/dev/null || {
	echo 'valgrind: needs valgrind (Debian: apt-get install valgrind)' >&2
	exit 1
}
reports=build/valgrind
rm -rf "$reports"
mkdir -p "$reports"
failed=0
PYTHONMALLOC=malloc PYLIBEVENT_SANITIZED=1 timeout -s ABRT 1800 valgrind -q --num-callers=30 --suppressions=scripts/python.vgsupp \
	--log-file="$reports/%p" "$python" -X faulthandler -m pytest -q -p no:cacheprovider "$@" || failed=1
for report in "$reports"/*; do
	[ ! -s "$report" ] || { failed=1; echo "--- $report"; head -n 60 "$report"; }
done
[ $failed = 0 ] || { echo 'valgrind: something was found, see above' >&2; exit 1; }
