#!/usr/bin/env bash
# Installs the Debian packages that building and testing need, if any is missing, and says so.
# Where that is not permitted, prints the line to run and exits 1.
set -euo pipefail

# What asks for each package:
#   cmake g++     zlib-ng inside pingora, and AWS-LC (the cryptography library)
#   gcc make      the same, and the linker driver of rustc
#   pkg-config libpcsclite-dev pcscd's client library, for the card reader in office-helper
#   curl openssl  the outside clients of the end-to-end tests
#   faketime      moves the clock in the tests of validity periods
#   python3       a second reader of the audit log, and an HTTPS receiver, in the tests
#   valgrind      counts instructions in `make bench-gate`
PACKAGES=(cmake g++ gcc make pkg-config libpcsclite-dev curl openssl ca-certificates faketime
    python3 valgrind)

installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing_packages() {
    local package
    for package in "${PACKAGES[@]}"; do
        installed "$package" || printf '%s\n' "$package"
    done
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -eq 0 ] && return 0
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
            echo "error: these packages are missing and may not be installed from here; run:" >&2
            echo "  sudo apt-get install --yes ${missing[*]}" >&2
            exit 1
        fi
        root=(sudo -n)
    fi
    echo "installing Debian packages: ${missing[*]}"
    "${root[@]}" apt-get update --quiet
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
}

# Rust itself is the one thing that is expected to be there.
check_rust() {
    if ! command -v cargo >/dev/null; then
        echo "error: cargo is not on PATH: install Rust 1.95 or newer (https://rustup.rs)" >&2
        exit 1
    fi
    local part
    for part in fmt clippy; do
        if ! cargo "$part" --version >/dev/null 2>&1; then
            echo "error: cargo $part is missing; run: rustup component add rustfmt clippy" >&2
            exit 1
        fi
    done
}

if command -v dpkg-query >/dev/null; then
    install_packages
else
    echo "note: no Debian packages here; make sure that these are installed: ${PACKAGES[*]}"
fi
check_rust
