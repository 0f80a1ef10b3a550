#!/bin/sh
# Installs the Debian packages that the demo and the integration tests use, where this is root on Debian and something is missing.
# Elsewhere it does nothing: the tests that need a missing part are skipped by name.
set -eu
commands="podman runc buildah docker-registry skopeo bwrap mosquitto sshd qemu-aarch64-static git apt-get chromium"
packages="podman runc buildah docker-registry skopeo bubblewrap mosquitto openssh-server qemu-user-static binfmt-support git apt chromium fonts-dejavu-core"
missing=""
for command in $commands; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null 2>&1 || missing="$missing $command"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && grep -qs '^ID=debian' /etc/os-release; then
        echo "installing Debian packages for:$missing" >&2
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    else
        echo "missing and not installed (needs root on Debian):$missing" >&2
    fi
fi
# learners of a foreign architecture run under qemu's user emulation
if [ "$(id -u)" = 0 ] && command -v update-binfmts >/dev/null 2>&1; then
    [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc 2>/dev/null || true
    [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64 >/dev/null 2>&1 || true
fi
