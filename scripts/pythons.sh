#!/bin/sh
# Prints each CPython from 3.10 on that is here, one of each minor version: of the PATH's and of pyenv's.
set -eu
for minor in 10 11 12 13; do
	for python in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python; do
		found=$("$python" -c 'import sys, venv; print(sys.implementation.name, sys.version_info[1])' 2>/dev/null) || continue
		if [ "$found" = "cpython $minor" ]; then
			command -v "$python"
			break
		fi
	done
done
