#!/bin/sh
# Installs what the build needs (by apt, where that is possible), makes the virtual environment $VENV with $PYTHON and
# installs the package there, editable. Called by the Makefile when something that it depends on has changed.
set -eu
PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv}

fail() {
	echo "set-up: $*" >&2
	exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

python() { "$PYTHON" -c "import os, sys, sysconfig; $1" 2>/dev/null; }

# Debian packages for what is missing.
missing() {
	have cc || echo gcc libc6-dev
	have pkg-config || echo pkg-config
	pkg-config --exists 'libevent_core >= 2.1.12' libevent_extra 2>/dev/null || echo libevent-dev
	[ "${PYLIBEVENT_NO_OPENSSL:-0}" != 0 ] || pkg-config --exists openssl 2>/dev/null || echo libssl-dev
	if ! have "$PYTHON"; then
		[ "$PYTHON" != python3 ] || echo python3 python3-dev python3-venv
	elif python 'sys.exit(sys.base_prefix != "/usr")'; then
		name=$(python 'print("python%d.%d" % sys.version_info[:2])')
		python 'import ensurepip, venv' || echo "$name-venv"
		python 'sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || echo "$name-dev"
	fi
}

packages=$(missing | xargs)
if [ "$(id -u)" = 0 ]; then
	root=env
elif have sudo && sudo -n true 2>/dev/null; then
	root='sudo env'
else
	root=
fi
if [ -n "$packages" ] && [ -n "$root" ] && have apt-get; then
	echo "set-up: apt-get install $packages"
	$root DEBIAN_FRONTEND=noninteractive apt-get update -qq || echo 'set-up: apt-get update failed; going on without' >&2
	# shellcheck disable=SC2086  # several words each
	$root DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null ||
		fail "apt-get could not install: $packages. Install it by other means and run make again"
elif [ "$packages" = libssl-dev ]; then
	echo 'set-up: no OpenSSL headers (libssl-dev); going on without TLS' >&2
elif [ -n "$packages" ] && have apt-get; then
	fail "missing: $packages. Run: sudo apt-get install $packages, and then make again"
elif [ -n "$packages" ]; then
	fail "missing, by Debian's names: $packages. Install it and run make again." \
		"Fedora: dnf install libevent-devel openssl-devel pkgconf-pkg-config gcc python3-devel;" \
		"Alpine: apk add libevent-dev openssl-dev pkgconf gcc musl-dev python3-dev;" \
		"macOS: brew install libevent openssl pkg-config"
fi
have "$PYTHON" || fail "$PYTHON is not there; name a Python with make PYTHON=..."
python 'sys.exit(sys.version_info < (3, 10))' ||
	fail "$PYTHON is $("$PYTHON" --version 2>&1), and pylibevent needs 3.10 or later; name another with make PYTHON=..."

"$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear "$VENV"
# Without build isolation a rebuild needs no network. The versions are those of pyproject.toml.
"$VENV/bin/python" -m pip install -q 'setuptools>=77.0.3' 'cffi>=2.0'
"$VENV/bin/python" -m pip install -q --no-build-isolation -e .
