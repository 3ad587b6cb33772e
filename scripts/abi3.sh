#!/bin/sh
# One wheel, built once by the first argument's Python, and the tests with it on each CPython that is here. Further
# arguments are pytest's.
set -eu
builder=$1
shift
work=build/abi3
rm -rf "$work"
mkdir -p "$work/tree"
"$builder" -m pip wheel -q --no-deps -w "$work" .
wheel=$(echo "$PWD/$work"/*.whl)
# Without the package beside them, and what builds it.
tar cf - --exclude=__pycache__ tests examples benchmarks scripts pyproject.toml README.md Makefile | tar xf - -C "$work/tree"
failed=
for python in $(scripts/pythons.sh); do
	name=$("$python" -c 'import platform; print(platform.python_version())')
	"$python" -m venv "$work/$name"
	"$work/$name/bin/python" -m pip install -q "$wheel[test]"
	echo "--- CPython $name, $(basename "$wheel")"
	(cd "$work/tree" && "../$name/bin/python" -m pytest -q -p no:cacheprovider --ignore=tests/test_build.py \
		--ignore=tests/test_docs.py --ignore=tests/test_docstrings.py --ignore=tests/test_typing.py "$@") || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed on$failed" >&2; exit 1; }
