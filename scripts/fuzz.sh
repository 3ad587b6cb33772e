#!/bin/sh
# fuzz.sh PYTHON MINUTES SEED: the tests that draw what they do, with one seed after the other until one fails or the
# time is over. `make fuzz` calls it.
set -eu
python=$1 minutes=$2 seed=$3
log=build/fuzz.log
mkdir -p build
end=$(($(date +%s) + minutes * 60))
while :; do
	echo "fuzz: SEED=$seed"
	PYLIBEVENT_FUZZ=5 PYLIBEVENT_FUZZ_LOG=$log PYLIBEVENT_FUZZ_SEED=$((seed * 1000)) \
		"$python" -m pytest -q -x -p no:cacheprovider --hypothesis-seed="$seed" tests/test_machine.py \
		tests/test_machine_http.py tests/test_machine_net.py tests/test_aio_model.py tests/test_buffer_model.py \
		tests/test_readers.py tests/test_http_hostile.py || {
		echo "fuzz: make fuzz SEED=$seed does that again; if it was a crash, the steps that led to it are in $log" >&2
		exit 1
	}
	[ "$(date +%s)" -lt $end ] || exit 0
	seed=$((seed + 1))
done
