#!/usr/bin/env bash
# Installs Debian's Slurm for tests/support/slurm_cluster.py, without starting its services; does nothing where it is
# installed already. Where it cannot, it prints one sentence and exits with 1: the tests that need a Slurm then skip.
set -euo pipefail

programs=(munged slurmctld slurmd sbatch)
packages=(munge slurmctld slurmd slurm-client)

all_there() {
    local program
    for program in "${programs[@]}"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || return 1
    done
}

give_up() {
    echo "No Slurm for the tests: $1." >&2
    exit 1
}

all_there && exit 0
[ "$(id -u)" = 0 ] || give_up "installing ${packages[*]} needs root"
command -v apt-get >/dev/null || give_up "there is no apt-get to install ${packages[*]} with"

# A Debian package starts its services when it is installed; these must not run. 101 means "not allowed". An existing
# policy stays as it is; RUNLEVEL=1 keeps the services down under it too.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
cleanup() { rm -f "$log" "${our_policy:-}"; }
trap cleanup EXIT
if [ ! -e "$policy" ]; then
    our_policy=$policy
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
options=(-qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=1 -o Acquire::http::Timeout=30)
install() { apt-get install "${options[@]}" -y --no-install-recommends "${packages[@]}"; }
# Package lists may be missing or too old: update them only when the first attempt fails.
install >"$log" 2>&1 </dev/null \
    || { apt-get update "${options[@]}" >>"$log" 2>&1 </dev/null && install >>"$log" 2>&1 </dev/null; } \
    || give_up "apt-get could not install ${packages[*]} ($(grep '^E:' "$log" | tail -n 1))"
all_there || give_up "apt-get installed ${packages[*]}, but not all of ${programs[*]} are there"
