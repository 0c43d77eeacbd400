# Read by the other scripts: how they speak, retry, and get the Debian packages they need.
# shellcheck shell=sh

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$*"; exit 1; }

quietly() {  # COMMAND...   Its output is shown only if it fails.
    output=$(mktemp)
    if "$@" >"$output" 2>&1; then rm -f "$output"; return 0; fi
    tail -n 8 "$output" >&2; rm -f "$output"
    return 1
}

retry() {  # COMMAND...   Three tries: mirrors and registries fail for a moment now and then.
    "$@" || { sleep 2; "$@"; } || { sleep 10; "$@"; }
}

missing=
need() {  # PACKAGE COMMAND...   PACKAGE is missing if COMMAND fails.
    package=$1; shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

install_missing() {
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || fail "missing (by the names of Debian's packages):$missing"
    [ "$(id -u)" = 0 ] || fail "missing packages; once, as root: apt-get install$missing"
    say "installing$missing"
    # A third-party source that cannot be reached fails the update and may not matter: the install decides.
    quietly retry apt-get -q update || say "apt-get update failed; going on with the lists that are here"
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive quietly retry apt-get -q install -y --no-install-recommends \
        -o DPkg::Lock::Timeout=120 $missing || fail "apt-get could not install:$missing"
    missing=
}

static_busybox() {  # Whether there is one; it is then in $busybox.
    busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1
}
