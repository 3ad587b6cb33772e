#!/bin/sh
# The tests with the C source built with AddressSanitizer and UBSan, in a copy of the tree with an environment of its
# own (build/sanitize); then the tests of the core with LeakSanitizer. Arguments, if any, are pytest's, for one run.
set -eu
copy=build/sanitize
fail() {
	echo "sanitize: $*" >&2
	exit 1
}

asan=$(cc -print-file-name=libasan.so)
ubsan=$(cc -print-file-name=libubsan.so)
[ -e "$asan" ] && [ -e "$ubsan" ] || fail "the compiler has no libasan and libubsan: gcc is needed"

mkdir -p "$copy"
tar cf - --exclude=./build --exclude=./dist --exclude='./.venv*' --exclude=./.git --exclude='*.so' --exclude='*.egg-info' \
	--exclude=__pycache__ --exclude='./.*_cache' --exclude=./.hypothesis . | tar xf - -C "$copy"
cd "$copy"
export VENV=.venv
export PYLIBEVENT_CFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer'
export PYLIBEVENT_LDFLAGS='-fsanitize=address,undefined'
make .venv/installed-test

reports=$PWD/reports
rm -rf "$reports"
mkdir "$reports"
# Three frames of each allocation tell Python's own from ours, which scripts/lsan.supp leaves out.
run() {
	leaks=$1 frames=$2
	shift 2
	env LD_PRELOAD="$asan $ubsan" PYTHONMALLOC=malloc PYLIBEVENT_SANITIZED=1 \
		ASAN_OPTIONS="detect_leaks=$leaks:malloc_context_size=$frames:abort_on_error=1:allocator_may_return_null=1:log_path=$reports/asan" \
		LSAN_OPTIONS="suppressions=$PWD/scripts/lsan.supp:print_suppressions=0" \
		UBSAN_OPTIONS="print_stacktrace=1:log_path=$reports/ubsan" \
		.venv/bin/python -m pytest -q -p no:cacheprovider "$@" || failed=1
}

failed=0
if [ $# -gt 0 ]; then
	run 0 30 "$@"
else
	run 1 3 tests/test_buffer.py tests/test_bufferevent.py tests/test_event.py tests/test_listener.py tests/test_filter.py \
		tests/test_fast.py tests/test_ratelimit.py tests/test_sharing.py tests/test_lifetime.py tests/regress
	run 0 30 --ignore tests/test_build.py --ignore tests/test_typing.py # which run none of our C code
fi
for report in "$reports"/*; do
	[ ! -s "$report" ] || { failed=1; echo "--- $report"; head -n 60 "$report"; }
done
[ $failed = 0 ] || fail 'something was found, see above'
