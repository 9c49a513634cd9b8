# shellcheck shell=bash
# Stages: run a named step, say how long it took, and remember it for the summary.
# Sourced by the other scripts; does nothing by itself.

STAGES=()
STARTED=$SECONDS

# stage NAME COMMAND...: runs the command; the first failure ends the script.
stage() {
    local name=$1 began=$SECONDS
    shift
    printf '\n==> %s\n' "$name"
    if ! "$@"; then
        printf '\n==> %s: failed after %d s\n' "$name" "$((SECONDS - began))" >&2
        printf '    run it alone: %s\n' "${*/#run_tests/cargo test --workspace}" >&2
        exit 1
    fi
    printf '==> %s: ok, %d s\n' "$name" "$((SECONDS - began))"
    STAGES+=("$(printf '%-34s %5d s' "$name" "$((SECONDS - began))")")
}

# summary: prints every stage with its time.
summary() {
    printf '\n'
    printf '  %s\n' "${STAGES[@]}"
    printf '  %-34s %5d s\n' "all" "$((SECONDS - STARTED))"
}

# target_dir: the folder that cargo builds into.
target_dir() {
    printf '%s\n' "${CARGO_TARGET_DIR:-target}"
}
