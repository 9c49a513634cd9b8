#!/usr/bin/env bash
# Installs the Debian packages that measuring needs, if any is missing, and says so. Their services
# are not started. Where that is not permitted, prints the line to run and exits 1.
set -euo pipefail

# What asks for each package:
#   nginx haproxy  the peers that are measured beside the gateway
#   util-linux     taskset, which keeps every process on its core
#   openssl        its version stands in the report: the peers' cryptography
# More may be named as arguments.
PACKAGES=(nginx haproxy util-linux openssl "$@")

# Debian asks this file whether a service may be started when its package is installed.
POLICY=/usr/sbin/policy-rc.d
POLICY_WRITTEN=

# What a command is run with to be root.
ROOT=(env)

installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing_packages() {
    local package
    for package in "${PACKAGES[@]}"; do
        installed "$package" || printf '%s\n' "$package"
    done
}

# No package may start its service, until allow_services.
forbid_services() {
    [ -e "$POLICY" ] && return 0
    printf '#!/bin/sh\nexit 101\n' | "${ROOT[@]}" tee "$POLICY" >/dev/null
    POLICY_WRITTEN=yes
    "${ROOT[@]}" chmod 755 "$POLICY"
}

# Takes away what forbid_services wrote, and only that.
allow_services() {
    [ -n "$POLICY_WRITTEN" ] || return 0
    "${ROOT[@]}" rm -f "$POLICY"
    POLICY_WRITTEN=
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
            echo "error: these packages are missing and may not be installed from here; run:" >&2
            echo "  sudo apt-get install --yes ${missing[*]}" >&2
            exit 1
        fi
        ROOT=(sudo -n)
    fi
    echo "installing Debian packages (their services are not started): ${missing[*]}"
    "${ROOT[@]}" apt-get update --quiet
    trap allow_services EXIT
    forbid_services
    "${ROOT[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
    allow_services
    trap - EXIT
}

# Without Debian's packages the programs themselves must be there.
check_programs() {
    local program missing=()
    for program in nginx haproxy taskset openssl; do
        command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing+=("$program")
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        echo "error: install these programs first: ${missing[*]}" >&2
        exit 1
    fi
}

if command -v dpkg-query >/dev/null; then
    install_packages
fi
check_programs
