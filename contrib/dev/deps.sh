#!/bin/bash
# Installs what building and testing FastMig needs from Debian, if it is
# missing. Quiet and without root when nothing is to be done.
set -euo pipefail

packages=(
	gcc libc6-dev libseccomp-dev pkg-config # the shim and runc (cgo, seccomp)
	iptables                                # CNI: published ports
	python3                                 # tests of PID 1
	curl                                    # tests of the FastMig interface
	iproute2                                # CRIU under the stock shim
)

fail() {
	echo "deps.sh: $*" >&2
	exit 1
}

if ! command -v dpkg-query >/dev/null; then
	fail "this is no Debian system: install the counterparts of: ${packages[*]}"
fi
missing=()
for package in "${packages[@]}"; do
	status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || :)
	[ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
	fail "not root, and these packages are missing: apt-get install ${missing[*]}"
fi
echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	fail "apt-get could not install ${missing[*]}"
fi
