#!/bin/sh
# The tests with the wheel named, on each CPython that is here. Further arguments are pytest's.
set -eu
wheel=$(realpath "$1")
shift
work=build/test_wheel
rm -rf "$work"
mkdir -p "$work/tree"
# Without the package beside them, and what builds it.
tar cf - --exclude=__pycache__ tests examples benchmarks scripts pyproject.toml README.md Makefile | tar xf - -C "$work/tree"
failed=
for python in $(scripts/pythons.sh); do
	name=$("$python" -c 'import platform; print(platform.python_version())')
	"$python" -m venv "$work/$name"
	"$work/$name/bin/python" -m pip install -q "$wheel[test]"
	echo "--- CPython $name, $(basename "$wheel")"
	(cd "$work/tree" && "../$name/bin/python" -m pylibevent && "../$name/bin/python" -m pytest -q -p no:cacheprovider --ignore=tests/test_build.py \
		--ignore=tests/test_docs.py --ignore=tests/test_docstrings.py --ignore=tests/test_typing.py "$@") || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed on$failed" >&2; exit 1; }
