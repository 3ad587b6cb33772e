#!/bin/sh
# The tests with the C source built with AddressSanitizer, LeakSanitizer and UBSan, in a copy of the tree with an
# environment of its own (build/sanitize). Arguments are pytest's; without any, all tests in two processes.
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
# Leaks are looked for at the end of the tests (tests/conftest.py), not at the end of each process.
run() {
	env LD_PRELOAD="$asan $ubsan" PYTHONMALLOC=malloc PYLIBEVENT_SANITIZED=1 \
		ASAN_OPTIONS="detect_leaks=1:leak_check_at_exit=0:abort_on_error=1:allocator_may_return_null=1:max_free_fill_size=4096:log_path=$reports/asan" \
		LSAN_OPTIONS="suppressions=$PWD/scripts/lsan.supp:print_suppressions=0" \
		UBSAN_OPTIONS="print_stacktrace=1:log_path=$reports/ubsan" \
		timeout -s ABRT 1800 .venv/bin/python -X faulthandler -m pytest -q -p no:cacheprovider "$@"
}

failed=0
if [ $# -gt 0 ]; then
	run "$@" || failed=1
else
	odd='' even=''
	for file in tests/test_*.py tests/regress/test_*.py; do
		case $file in # those build, measure, or run what others run
		*_asyncio_suite.py | *_benchmarks.py | *_build.py | *_docs.py | *_soak.py | *_typing.py) continue ;;
		esac
		if [ ${#odd} -le ${#even} ]; then odd="$odd $file"; else even="$even $file"; fi
	done
	run $odd >odd.log 2>&1 &
	run $even || failed=1
	wait $! || failed=1
	cat odd.log
fi
for report in "$reports"/*; do
	# That a size no allocator has is refused is what a test is about.
	! grep -qv 'WARNING: AddressSanitizer failed to allocate' "$report" || { failed=1; echo "--- $report"; head -n 60 "$report"; }
done
[ $failed = 0 ] || fail 'something was found, see above'
